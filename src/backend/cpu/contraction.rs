//! Products of tensors: one after the other or many at once, with a bias.

use super::{
    executable::Run,
    memory::{Plain, Shared, Strided},
    product::{Matrix, Strips, TASK_WORK, product, product_on},
    real::Real,
    simd::vectorised,
};
use crate::{backend::plan::Addmm, tensor::Shape};

/// Scratch elements of a product of tensors.
pub(super) fn scratch<T: Real>(a: &Shape, transpose_a: bool, y: &Shape, threads: usize) -> usize {
    let (sizes, batches) = sizes(a, transpose_a, y);
    Strips::new::<T>(sizes).filter(|_| batches == 1).map_or(0, |strips| strips.scratch(threads))
}

/// Those of each product, and how many there are.
fn sizes(a: &Shape, transpose_a: bool, y: &Shape) -> ([usize; 3], usize) {
    let batch = y.rank() - 2;
    let k = a[batch + usize::from(!transpose_a)];
    ([y[batch], k, y[batch + 1]], y[..batch].iter().product())
}

pub(super) fn matmul<T: Real + Plain>(run: &Run<'_>, transpose_a: bool, transpose_b: bool) {
    products::<T>(run, transpose_a, transpose_b, |_, _| {});
}

/// A product whose third operand, an element for each column, is added as soon as a row is there.
pub(super) fn addmm<T: Real + Plain>(run: &Run<'_>, addmm: Addmm) {
    let Addmm { transpose_a, transpose_b, relu } = addmm;
    let bias = run.memory.read::<T>(&run.step.inputs[2]);
    products::<T>(run, transpose_a, transpose_b, |row, first| {
        let bias = &bias[first..first + row.len()];
        vectorised(
            #[inline(always)]
            || {
                for (y, &bias) in row.iter_mut().zip(bias) {
                    let sum = *y + bias;
                    // What is not a number stays that, as in ReLU by itself.
                    *y = if relu && sum < T::ZERO { T::ZERO } else { sum };
                }
            },
        );
    });
}

fn products<T: Real + Plain>(
    run: &Run<'_>,
    transpose_a: bool,
    transpose_b: bool,
    finish: impl Fn(&mut [T], usize) + Sync,
) {
    let (a, b, c) = (&run.step.inputs[0], &run.step.inputs[1], &run.step.outputs[0]);
    let ([m, k, n], batches) = sizes(a.layout.shape(), transpose_a, c.layout.shape());
    let out = run.memory.write::<T>(c);
    let (a, b) = (run.memory.read_strided::<T>(a), run.memory.read_strided::<T>(b));
    if batches == 1 {
        let (a, b) = (matrix(a, 0, transpose_a), matrix(b, 0, transpose_b));
        let scratch = run.memory.scratch::<T>(run.step.scratch);
        return product_on(run, [m, k, n], a, b, out, scratch, finish);
    }
    let shared = Shared::new(out);
    let together = (TASK_WORK / (m * n * k).max(1)).max(1);
    run.tasks(batches.div_ceil(together), |task| {
        for number in task * together..((task + 1) * together).min(batches) {
            let (a, b) = (matrix(a, number, transpose_a), matrix(b, number, transpose_b));
            // SAFETY: tasks write different matrices, and the result is borrowed until all are done.
            let c = unsafe { shared.part(number * m * n, m * n) };
            product([m, k, n], a, b, c, n, false);
            c.chunks_exact_mut(n.max(1)).for_each(|row| finish(row, 0));
        }
    });
}

/// The n-th matrix of a batch.
pub(super) fn matrix<'a, T>(from: Strided<'a, T>, mut number: usize, transposed: bool) -> Matrix<'a, T> {
    let (shape, strides) = (from.layout.shape(), from.layout.strides());
    let batch = shape.rank() - 2;
    let mut first = 0;
    for d in (0..batch).rev() {
        first += number % shape[d] * strides[d];
        number /= shape[d];
    }
    let (mut row_stride, mut column_stride) = (strides[batch], strides[batch + 1]);
    if transposed {
        (row_stride, column_stride) = (column_stride, row_stride);
    }
    Matrix { data: from.data.get(first..).unwrap_or_default(), row_stride, column_stride }
}
