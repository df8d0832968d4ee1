//! Matrix products.
//!
//! Large ones go block by block over operands that were packed for it, of which tasks share what they share
//! ([`strips`]); small ones, and types and processors without blocks, through the `gemm` crate. How a product is cut depends on
//! its sizes alone, so equal inputs give equal bits on any number of threads.

pub(super) mod block;
mod left;
mod packing;
mod strips;

use super::real::Real;

pub(super) use left::Left;
pub(super) use packing::{interleave, interleave_f32};
pub(super) use strips::{Strips, accumulate, accumulate_part, product_on};

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

    /// The same from a row on.
    #[inline(always)]
    pub(super) fn rows_from(self, row: usize) -> Self {
        Self { data: self.data.get(row * self.row_stride..).unwrap_or_default(), ..self }
    }

    /// The same from a column on.
    pub(super) fn columns_from(self, column: usize) -> Self {
        self.turned().rows_from(column).turned()
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

/// Where a result goes: a matrix with contiguous rows, of which other threads may write to other parts.
#[derive(Clone, Copy)]
pub(super) struct Target<T> {
    pub(super) start: *mut T,
    pub(super) stride: usize,
}

impl<T> Target<T> {
    /// The same from a row and a column on.
    ///
    /// # Safety
    /// They must lie within the matrix.
    unsafe fn from(self, row: usize, column: usize) -> Self {
        // SAFETY: as the caller promises.
        Self { start: unsafe { self.start.add(row * self.stride + column) }, ..self }
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
    let c = Target { start: c.as_mut_ptr(), stride: c_stride };
    // SAFETY: the assertion has held every element written against the slice, which is borrowed mutably and
    // so overlaps neither operand.
    unsafe { product_at([m, k, n], a, b, T::ONE, c, add) };
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
    unsafe { product_at([m, k, n], a, b, factor, Target { start: c.as_mut_ptr(), stride: n }, false) };
}

/// As [`product`] with a factor, into memory that other threads may write to between this product's columns.
///
/// # Safety
/// `c` must be valid for writes of `m` rows of `n` elements which nobody else touches meanwhile and which overlap neither operand.
unsafe fn product_at<T: Real>(
    [m, k, n]: [usize; 3],
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    factor: T,
    c: Target<T>,
    add: bool,
) {
    assert!(a.holds(m, k) && b.holds(k, n), "operands hold what is read");
    if k == 0 && !add {
        for row in 0..m {
            // SAFETY: the caller promises these rows.
            unsafe { std::slice::from_raw_parts_mut(c.start.add(row * c.stride), n) }.fill(T::ZERO);
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
            c.start,
            1,
            c.stride as isize,
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
