//! The innermost part of a product: a block of the result that stays in registers.

use super::super::simd::Vectors;

/// Rows of a block.
pub(in super::super) const ROWS: usize = 8;
/// Columns of a block: with as many rows, half of AVX-512's registers in `f32`.
pub(in super::super) const COLUMNS: usize = 32;

/// Numbers of a block.
pub(in super::super) const BLOCK: usize = ROWS * COLUMNS;

/// Σ a(k)ᵀ·b(k) over all k: `a` holds [`ROWS`] numbers for each k, `b` [`COLUMNS`]. Sums are in the order of k; `add` adds them
/// to what is there. Rows of the block lie `stride` apart.
///
/// # Safety
/// `to` must be valid for reads and writes of the block, which nobody else touches meanwhile.
///
/// # Panics
/// When one operand holds fewer than the other.
#[inline(always)]
pub(in super::super) unsafe fn block_f32(a: &[f32], b: &[f32], to: *mut f32, stride: usize, add: bool) {
    #[cfg(target_arch = "x86_64")]
    {
        let (a, b) = (a.as_chunks::<ROWS>().0, b.as_chunks::<COLUMNS>().0);
        assert_eq!(a.len(), b.len(), "as many rows of each");
        if Vectors::used() == Vectors::Avx512 {
            // SAFETY: the processor has AVX-512, and the rest is the caller's promise.
            return unsafe { block_avx512(a, b, to, stride, add) };
        }
        if has_registers() {
            // SAFETY: the processor has AVX2 and FMA, and the rest is the caller's promise.
            return unsafe { block_avx2(a, b, to, stride, add) };
        }
    }
    // SAFETY: as the caller promises.
    unsafe { block(a, b, to, stride, add) }
}

/// Whether a block is computed by instructions that were chosen by hand. Else a product by blocks is slower than others.
pub(in super::super) fn has_registers() -> bool {
    Vectors::used() > Vectors::Baseline
}

/// The same for any type, as the compiler has it.
///
/// # Safety
/// As for [`block_f32`].
///
/// # Panics
/// As there.
pub(in super::super) unsafe fn block<T: super::super::real::Real>(
    a: &[T],
    b: &[T],
    to: *mut T,
    stride: usize,
    add: bool,
) {
    let (a, b) = (a.as_chunks::<ROWS>().0, b.as_chunks::<COLUMNS>().0);
    assert_eq!(a.len(), b.len(), "as many rows of each");
    let mut sums = [[T::ZERO; COLUMNS]; ROWS];
    for (a, b) in a.iter().zip(b) {
        for (sums, &a) in sums.iter_mut().zip(a) {
            for (sum, &b) in sums.iter_mut().zip(b) {
                *sum += a * b;
            }
        }
    }
    for (n, sums) in sums.iter().enumerate() {
        // SAFETY: a row of the block, which the caller promises to be valid and nobody else's.
        let row = unsafe { std::slice::from_raw_parts_mut(to.add(n * stride), COLUMNS) };
        for (to, &sum) in row.iter_mut().zip(sums) {
            *to = if add { *to + sum } else { sum };
        }
    }
}

/// # Safety
/// As for [`block_f32`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn block_avx512(a: &[[f32; ROWS]], b: &[[f32; COLUMNS]], to: *mut f32, stride: usize, add: bool) {
    use std::arch::x86_64::{
        _mm512_add_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
    };

    const WIDTH: usize = COLUMNS / 2;
    let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
    for (a, b) in a.iter().zip(b) {
        let halves = b.as_chunks::<WIDTH>().0;
        // SAFETY: each half has sixteen numbers.
        let b = unsafe { [_mm512_loadu_ps(halves[0].as_ptr()), _mm512_loadu_ps(halves[1].as_ptr())] };
        for (sums, &a) in sums.iter_mut().zip(a) {
            let a = _mm512_set1_ps(a);
            sums[0] = _mm512_fmadd_ps(a, b[0], sums[0]);
            sums[1] = _mm512_fmadd_ps(a, b[1], sums[1]);
        }
    }
    for (row, sums) in sums.into_iter().enumerate() {
        for (half, sum) in sums.into_iter().enumerate() {
            // SAFETY: within the block, as the caller promises.
            unsafe {
                let to = to.add(row * stride + half * WIDTH);
                _mm512_storeu_ps(to, if add { _mm512_add_ps(_mm512_loadu_ps(to), sum) } else { sum });
            }
        }
    }
}

/// # Safety
/// As for [`block_f32`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn block_avx2(a: &[[f32; ROWS]], b: &[[f32; COLUMNS]], to: *mut f32, stride: usize, add: bool) {
    // Of sixteen registers three rows of four vectors take twelve, and leave one for each row's number and one for columns.
    // SAFETY: as the caller promises.
    unsafe {
        rows_avx2::<0, 3>(a, b, to, stride, add);
        rows_avx2::<3, 3>(a, b, to, stride, add);
        rows_avx2::<6, 2>(a, b, to, stride, add);
    }
}

/// `COUNT` rows of a block from the `FIRST` on.
///
/// # Safety
/// As for [`block_f32`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn rows_avx2<const FIRST: usize, const COUNT: usize>(
    a: &[[f32; ROWS]],
    b: &[[f32; COLUMNS]],
    to: *mut f32,
    stride: usize,
    add: bool,
) {
    use std::arch::x86_64::{
        _mm256_add_ps, _mm256_broadcast_ss, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_setzero_ps,
        _mm256_storeu_ps,
    };

    const WIDTH: usize = 8;
    let mut sums = [[_mm256_setzero_ps(); COLUMNS / WIDTH]; COUNT];
    for (a, b) in a.iter().zip(b) {
        let mut rows = [_mm256_setzero_ps(); COUNT];
        for (row, a) in rows.iter_mut().zip(&a[FIRST..]) {
            *row = _mm256_broadcast_ss(a);
        }
        for (n, b) in b.as_chunks::<WIDTH>().0.iter().enumerate() {
            // SAFETY: the part has eight numbers.
            let b = unsafe { _mm256_loadu_ps(b.as_ptr()) };
            for (sums, &row) in sums.iter_mut().zip(&rows) {
                sums[n] = _mm256_fmadd_ps(row, b, sums[n]);
            }
        }
    }
    for (row, sums) in sums.into_iter().enumerate() {
        for (n, sum) in sums.into_iter().enumerate() {
            // SAFETY: within the block, as the caller promises.
            unsafe {
                let to = to.add((FIRST + row) * stride + n * WIDTH);
                _mm256_storeu_ps(to, if add { _mm256_add_ps(_mm256_loadu_ps(to), sum) } else { sum });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a way to compute a block leaves in memory with rows that lie further apart.
    fn written(
        a: &[f32],
        b: &[f32],
        add: bool,
        way: impl FnOnce(&[f32], &[f32], *mut f32, usize, bool),
    ) -> Vec<f32> {
        let mut to = vec![3.0; ROWS * (COLUMNS + 5)];
        way(a, b, to.as_mut_ptr(), COLUMNS + 5, add);
        to
    }

    #[test]
    fn every_way_gives_the_same_block() {
        for k in [0, 1, 7, 64] {
            let a: Vec<f32> = (0..k * ROWS).map(|n| (n % 7) as f32 - 3.0).collect();
            let b: Vec<f32> = (0..k * COLUMNS).map(|n| (n % 5) as f32 - 2.0).collect();
            for add in [false, true] {
                // SAFETY: `written` has room for a block.
                let plain =
                    written(&a, &b, add, |a, b, to, stride, add| unsafe { block(a, b, to, stride, add) });
                // SAFETY: as above.
                let best =
                    written(&a, &b, add, |a, b, to, stride, add| unsafe { block_f32(a, b, to, stride, add) });
                assert_eq!(plain, best, "whole numbers are exact");
                #[cfg(target_arch = "x86_64")]
                if has_registers() {
                    let narrow = written(&a, &b, add, |a, b, to, stride, add| {
                        let (a, b) = (a.as_chunks().0, b.as_chunks().0);
                        // SAFETY: as above, and the processor has AVX2 and FMA.
                        unsafe { block_avx2(a, b, to, stride, add) }
                    });
                    assert_eq!(plain, narrow);
                }
            }
        }
    }
}
