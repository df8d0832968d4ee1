//! Picking along one dimension by indices in memory, and its gradient.

use super::{executable::Run, memory::Plain, movement::by_size, real::Real};
use crate::backend::plan::Place;

/// What an index out of range gives: a value that shows, where the type has one.
trait Missing: Plain {
    const MISSING: Self;
}

impl Missing for f32 {
    const MISSING: Self = f32::NAN;
}

impl Missing for f64 {
    const MISSING: Self = f64::NAN;
}

/// The bits of bfloat16 and float16, where all ones are NaN.
impl Missing for u16 {
    const MISSING: Self = u16::MAX;
}

impl Missing for i64 {
    const MISSING: Self = 0;
}

impl Missing for i32 {
    const MISSING: Self = 0;
}

impl Missing for u8 {
    const MISSING: Self = 0;
}

/// Where an index points; a negative one counts from the end. The indices may be the trainer's.
fn place(index: i64, size: usize) -> Option<usize> {
    let index = if index < 0 { index.checked_add(size as i64)? } else { index };
    usize::try_from(index).ok().filter(|&index| index < size)
}

fn inner(place: &Place, dim: usize) -> usize {
    place.layout.shape()[dim + 1..].iter().product()
}

pub(super) fn forward(run: &Run<'_>, dim: usize) {
    by_size!(run.step.outputs[0].dtype, T => pick::<T>(run, dim));
}

fn pick<T: Missing>(run: &Run<'_>, dim: usize) {
    let (from, out) = (&run.step.inputs[0], &run.step.outputs[0]);
    let (x, indices) = (run.memory.read::<T>(from), run.memory.read::<i64>(&run.step.inputs[1]));
    let (inner, size) = (inner(from, dim), from.layout.shape()[dim]);
    if inner == 0 || indices.is_empty() {
        return;
    }
    run.pieces(run.memory.write::<T>(out), inner, |first, piece| {
        for (n, row) in piece.chunks_exact_mut(inner).enumerate() {
            let row_number = first / inner + n;
            let (outer, k) = (row_number / indices.len(), row_number % indices.len());
            match place(indices[k], size) {
                Some(at) => row.copy_from_slice(&x[(outer * size + at) * inner..][..inner]),
                None => row.fill(T::MISSING),
            }
        }
    });
}

/// One thread for each block before the dimension, so that equal indices add up in their order.
pub(super) fn backward<T: Real + Plain>(run: &Run<'_>, dim: usize) {
    let (from, out) = (&run.step.inputs[1], &run.step.outputs[0]);
    let (indices, gy) = (run.memory.read::<i64>(&run.step.inputs[0]), run.memory.read::<T>(from));
    let (inner, size) = (inner(out, dim), out.layout.shape()[dim]);
    let block = size * inner;
    if block == 0 {
        return;
    }
    run.pieces(run.memory.write::<T>(out), block, |first, piece| {
        for (n, block_of) in piece.chunks_exact_mut(block).enumerate() {
            block_of.fill(T::ZERO);
            let outer = first / block + n;
            for (k, &index) in indices.iter().enumerate() {
                let Some(at) = place(index, size) else { continue };
                let row = &gy[(outer * indices.len() + k) * inner..][..inner];
                block_of[at * inner..][..inner].iter_mut().zip(row).for_each(|(sum, &g)| *sum += g);
            }
        }
    });
}
