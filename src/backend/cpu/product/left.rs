//! A matrix that many others are multiplied by, as a weight is.

use super::{
    super::{executable::Run, real::Real},
    Matrix, Strips, Target, product_at,
};

/// The left operand of many products: packed once, where products go by blocks.
#[derive(Clone, Copy)]
pub(in super::super) struct Left<'a, T> {
    sizes: [usize; 2],
    plain: Matrix<'a, T>,
    packed: &'a [T],
}

impl<'a, T: Real> Left<'a, T> {
    /// Scratch elements of a matrix of `m` × `k` that others with at most `n` columns are multiplied by.
    pub(in super::super) fn scratch(sizes: [usize; 3]) -> usize {
        Strips::of_columns::<T>(sizes).map_or(0, |strips| strips.shared())
    }

    /// Scratch elements of a product with one of them.
    pub(in super::super) fn part(sizes: [usize; 3]) -> usize {
        Strips::of_columns::<T>(sizes).map_or(0, |strips| strips.part())
    }

    /// Packs a matrix, on the step's threads.
    pub(in super::super) fn pack(run: &Run<'_>, sizes: [usize; 3], plain: Matrix<'_, T>, to: &mut [T]) {
        if let Some(strips) = Strips::of_columns::<T>(sizes) {
            strips.pack_shared(run, plain, to);
        }
    }

    /// A matrix that was packed for the same sizes.
    pub(in super::super) fn new([m, k, _]: [usize; 3], plain: Matrix<'a, T>, packed: &'a [T]) -> Self {
        Self { sizes: [m, k], plain, packed }
    }

    /// c = this·b with `n` columns, on the calling thread.
    ///
    /// # Safety
    /// `c` must be valid for reads and writes of as many rows as this has, of `n` elements, which nobody else touches
    /// meanwhile and which overlap no operand.
    pub(in super::super) unsafe fn times(&self, b: Matrix<'_, T>, n: usize, c: Target<T>, part: &mut [T]) {
        let [m, k] = self.sizes;
        match Strips::of_columns::<T>([m, k, n]).filter(|_| !self.packed.is_empty()) {
            Some(strips) => {
                for strip in 0..strips.count() {
                    // SAFETY: as the caller promises.
                    unsafe { strips.multiply(strip, self.packed, b, part, c) };
                }
            }
            // SAFETY: as the caller promises.
            None => unsafe { product_at([m, k, n], self.plain, b, T::ONE, c, false) },
        }
    }
}
