//! Copies: strided to contiguous, slices in and out, concatenation. Bytes move, types do not matter.

use super::{
    executable::Run,
    memory::{Plain, Shared, Strided},
    walk::{Span, Walk},
};

/// Calls the function with a type of the place's element size.
macro_rules! by_size {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            $crate::tensor::DType::F32 => {
                type $T = f32;
                $body
            }
            $crate::tensor::DType::F64 => {
                type $T = f64;
                $body
            }
            $crate::tensor::DType::I64 => {
                type $T = i64;
                $body
            }
            $crate::tensor::DType::I32 => {
                type $T = i32;
                $body
            }
            $crate::tensor::DType::BF16 | $crate::tensor::DType::F16 => {
                type $T = u16;
                $body
            }
            $crate::tensor::DType::U8 | $crate::tensor::DType::Bool => {
                type $T = u8;
                $body
            }
        }
    };
}
pub(super) use by_size;

/// Copies the elements of a strided tensor from the `start`-th on into `out`.
pub(super) fn gather<T: Plain>(from: Strided<'_, T>, walk: &Walk<1>, start: usize, out: &mut [T]) {
    let [step] = walk.steps();
    walk.spans(start, out.len(), |Span { done, len, firsts: [first] }| {
        let to = &mut out[done..done + len];
        match step {
            1 => to.copy_from_slice(&from.data[first..first + len]),
            0 => to.fill(from.data[first]),
            _ => {
                for (to, value) in to.iter_mut().zip(from.data[first..].iter().step_by(step)) {
                    *to = *value;
                }
            }
        }
    });
}

pub(super) fn copy(run: &Run<'_>) {
    let (from, to) = (&run.step.inputs[0], &run.step.outputs[0]);
    by_size!(from.dtype, T => {
        let source = run.memory.read_strided::<T>(from);
        let walk = Walk::new(from.layout.shape(), [&from.layout]);
        run.pieces(run.memory.write::<T>(to), 1, |start, piece| gather(source, &walk, start, piece));
    });
}

/// Elements before and behind one dimension: a tensor is `outer` blocks of `size * inner`.
fn around(shape: &[usize], dim: usize) -> (usize, usize) {
    (shape[..dim].iter().product(), shape[dim + 1..].iter().product())
}

pub(super) fn cat(run: &Run<'_>, dim: usize) {
    let out = &run.step.outputs[0];
    let (outer, inner) = around(out.layout.shape(), dim);
    let whole = out.layout.shape()[dim] * inner;
    by_size!(out.dtype, T => {
        let to = Shared::new(run.memory.write::<T>(out));
        let mut before = 0;
        for place in &run.step.inputs {
            let part = place.layout.shape()[dim] * inner;
            if part == 0 {
                continue;
            }
            let from = run.memory.read_strided::<T>(place);
            let start = before;
            let walk = Walk::new(place.layout.shape(), [&place.layout]);
            run.tasks(outer, |o| {
                // SAFETY: blocks of different outer numbers do not overlap; operands follow each other.
                let block = unsafe { to.part(o * whole + start, part) };
                gather(from, &walk, o * part, block);
            });
            before += part;
        }
    });
}

pub(super) fn unslice(run: &Run<'_>, dim: usize, start: usize, step: usize) {
    let (gy, out) = (&run.step.inputs[0], &run.step.outputs[0]);
    let (_, inner) = around(out.layout.shape(), dim);
    let (size, len) = (out.layout.shape()[dim], gy.layout.shape()[dim]);
    by_size!(out.dtype, T => {
        let from = run.memory.read_strided::<T>(gy);
        let walk = Walk::new(gy.layout.shape(), [&gy.layout]);
        run.pieces(run.memory.write::<T>(out), size * inner, |first, piece| {
            let outer = first / (size * inner).max(1);
            for (o, block) in piece.chunks_exact_mut((size * inner).max(1)).enumerate() {
                let first = (outer + o) * len * inner;
                if step == 1 {
                    let (before, rest) = block.split_at_mut(start * inner);
                    let (taken, behind) = rest.split_at_mut(len * inner);
                    before.fill(T::default());
                    behind.fill(T::default());
                    gather(from, &walk, first, taken);
                } else {
                    block.fill(T::default());
                    for k in 0..len {
                        let to = &mut block[(start + k * step) * inner..][..inner];
                        gather(from, &walk, first + k * inner, to);
                    }
                }
            }
        });
    });
}
