//! Matrix products, through the `gemm` crate, cut into slices for the pool.

use super::{
    executable::Run,
    memory::{Plain, Shared, Strided},
    real::Real,
    simd::vectorised,
};
use crate::backend::plan::Addmm;

/// A matrix in memory: elements from one row, and from one column, to the next.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a, T> {
    pub(super) data: &'a [T],
    pub(super) row_stride: usize,
    pub(super) column_stride: usize,
}

impl<'a, T> Matrix<'a, T> {
    /// A matrix whose rows follow each other.
    pub(super) fn rows(data: &'a [T], columns: usize) -> Self {
        Self { data, row_stride: columns, column_stride: 1 }
    }

    /// The transposed of a matrix whose rows follow each other.
    pub(super) fn columns(data: &'a [T], columns: usize) -> Self {
        Self { data, row_stride: 1, column_stride: columns }
    }

    /// The same from a row on.
    #[inline(always)]
    pub(super) fn rows_from(self, row: usize) -> Self {
        Self { data: self.data.get(row * self.row_stride..).unwrap_or_default(), ..self }
    }

    /// The transposed.
    pub(super) fn turned(self) -> Self {
        Self { row_stride: self.column_stride, column_stride: self.row_stride, ..self }
    }

    fn holds(&self, rows: usize, columns: usize) -> bool {
        let last = rows.saturating_sub(1) * self.row_stride + columns.saturating_sub(1) * self.column_stride;
        rows == 0 || columns == 0 || last < self.data.len()
    }
}

/// c = a·b, or c += a·b with `add`, on the calling thread. `c` has `n` columns, its rows lie `c_stride`
/// apart.
pub(super) fn product<T: Real>(
    [m, k, n]: [usize; 3],
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    c: &mut [T],
    c_stride: usize,
    add: bool,
) {
    if m == 0 || n == 0 {
        return;
    }
    assert!((m - 1) * c_stride + n <= c.len(), "the result holds what is written");
    // SAFETY: the assertion has held every element written against the slice, which is borrowed mutably and
    // so overlaps neither operand.
    unsafe { product_at([m, k, n], a, b, T::ONE, c.as_mut_ptr(), c_stride, add) };
}

/// c = factor·a·b with contiguous rows of `c`, on the calling thread.
pub(super) fn scaled_product<T: Real>(
    [m, k, n]: [usize; 3],
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    factor: T,
    c: &mut [T],
) {
    assert!(m * n <= c.len(), "the result holds what is written");
    // SAFETY: as in `product`.
    unsafe { product_at([m, k, n], a, b, factor, c.as_mut_ptr(), n, false) };
}

/// As [`product`] with a factor, into memory that other threads may write to between this product's columns.
///
/// # Safety
/// `c` must be valid for writes of `m` rows of `n` elements, `c_stride` apart, which nobody else touches
/// meanwhile and which overlap neither operand.
unsafe fn product_at<T: Real>(
    [m, k, n]: [usize; 3],
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    factor: T,
    c: *mut T,
    c_stride: usize,
    add: bool,
) {
    assert!(a.holds(m, k) && b.holds(k, n), "operands hold what is read");
    if k == 0 && !add {
        for row in 0..m {
            // SAFETY: the caller promises these rows.
            unsafe { std::slice::from_raw_parts_mut(c.add(row * c_stride), n) }.fill(T::ZERO);
        }
        return;
    }
    // SAFETY: the assertion has held every element that is read against the operands' lengths; what is
    // written is the caller's promise.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c,
            1,
            c_stride as isize,
            add,
            a.data.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            T::ONE,
            factor,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// Multiply-adds that are worth a task of their own.
pub(super) const TASK_WORK: usize = 1 << 20;

/// c = a·b with contiguous rows of `c`, on the step's threads. `finish` is called with each part of a row of `c` once its
/// slice is there, and with its first column.
///
/// Slices go along rows or along columns, whichever are more; they depend on the sizes alone, so equal
/// inputs give equal bits on any number of threads.
fn product_on<T: Real>(
    run: &Run<'_>,
    [m, k, n]: [usize; 3],
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    c: &mut [T],
    finish: impl Fn(&mut [T], usize) + Sync,
) {
    let slices = (m.saturating_mul(n).saturating_mul(k) / TASK_WORK).clamp(1, 8);
    let by_rows = m >= n;
    let slice = if by_rows { m } else { n }.div_ceil(slices).next_multiple_of(16);
    if slices == 1 || (by_rows && m <= slice) || (!by_rows && n <= slice) {
        product([m, k, n], a, b, c, n, false);
        return c.chunks_exact_mut(n.max(1)).for_each(|row| finish(row, 0));
    }
    if by_rows {
        let shared = Shared::new(c);
        run.tasks(m.div_ceil(slice), |task| {
            let first = task * slice;
            let rows = slice.min(m - first);
            let part = Matrix { data: a.data.get(first * a.row_stride..).unwrap_or_default(), ..a };
            // SAFETY: tasks write different rows, and `c` is borrowed until all are done.
            let c = unsafe { shared.part(first * n, rows * n) };
            product([rows, k, n], part, b, c, n, false);
            c.chunks_exact_mut(n).for_each(|row| finish(row, 0));
        });
        return;
    }
    // Columns of one row-major matrix interleave, so their slices are handed out as raw rows.
    let shared = Shared::new(c);
    run.tasks(n.div_ceil(slice), |task| {
        let first = task * slice;
        let columns = slice.min(n - first);
        let part = Matrix { data: b.data.get(first * b.column_stride..).unwrap_or_default(), ..b };
        // SAFETY: no other task touches these columns, and `c` is borrowed until all are done.
        unsafe { product_at([m, k, columns], a, part, T::ONE, shared.pointer(first), n, false) };
        for row in 0..m {
            // SAFETY: as above.
            finish(unsafe { shared.part(row * n + first, columns) }, first);
        }
    });
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
    let shape = c.layout.shape();
    let batch = shape.rank() - 2;
    let (m, n) = (shape[batch], shape[batch + 1]);
    let k = a.layout.shape()[batch + usize::from(!transpose_a)];
    let out = run.memory.write::<T>(c);
    let batches: usize = shape[..batch].iter().product();
    let (a, b) = (run.memory.read_strided::<T>(a), run.memory.read_strided::<T>(b));
    if batches == 1 {
        let (a, b) = (matrix(a, 0, transpose_a), matrix(b, 0, transpose_b));
        return product_on(run, [m, k, n], a, b, out, finish);
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
