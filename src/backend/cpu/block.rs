//! The innermost part of a product: a block of the result that stays in registers.

/// Rows of a block.
pub(super) const ROWS: usize = 6;
/// Columns of a block: with as many rows, twelve of AVX2's sixteen registers in `f32`.
pub(super) const COLUMNS: usize = 16;

/// A block of a result.
pub(super) type Block<T> = [[T; COLUMNS]; ROWS];

/// Σ a(k)ᵀ·b(k) over all k: `a` holds [`ROWS`] numbers for each k, `b` [`COLUMNS`]. Sums are in the order of k.
///
/// # Panics
/// When one holds fewer than the other.
#[inline(always)]
pub(super) fn block_f32(a: &[f32], b: &[f32]) -> Block<f32> {
    #[cfg(target_arch = "x86_64")]
    if has_registers() {
        let (a, b) = (a.as_chunks::<ROWS>().0, b.as_chunks::<COLUMNS>().0);
        assert_eq!(a.len(), b.len(), "as many rows of each");
        // SAFETY: the processor has AVX2 and FMA.
        return unsafe { block_avx2(a, b) };
    }
    block(a, b)
}

/// Whether a block is computed by instructions that were chosen by hand. Else a product by blocks is slower than others.
pub(super) fn has_registers() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// The same for any type, as the compiler has it.
#[inline(always)]
pub(super) fn block<T: super::real::Real>(a: &[T], b: &[T]) -> Block<T> {
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
    sums
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn block_avx2(a: &[[f32; ROWS]], b: &[[f32; COLUMNS]]) -> Block<f32> {
    use std::arch::x86_64::{
        __m256, _mm256_broadcast_ss, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_setzero_ps, _mm256_storeu_ps,
    };

    const HALF: usize = COLUMNS / 2;
    let mut sums: [[__m256; 2]; ROWS] = [[_mm256_setzero_ps(); 2]; ROWS];
    for (a, b) in a.iter().zip(b) {
        let halves = b.as_chunks::<HALF>().0;
        // SAFETY: each half has eight numbers.
        let (left, right) =
            unsafe { (_mm256_loadu_ps(halves[0].as_ptr()), _mm256_loadu_ps(halves[1].as_ptr())) };
        for (sums, a) in sums.iter_mut().zip(a) {
            let a = _mm256_broadcast_ss(a);
            sums[0] = _mm256_fmadd_ps(a, left, sums[0]);
            sums[1] = _mm256_fmadd_ps(a, right, sums[1]);
        }
    }
    let mut block = [[0.0; COLUMNS]; ROWS];
    for (to, sums) in block.iter_mut().zip(sums) {
        let halves = to.as_chunks_mut::<HALF>().0;
        for (to, sum) in halves.iter_mut().zip(sums) {
            // SAFETY: there is room for eight numbers.
            unsafe { _mm256_storeu_ps(to.as_mut_ptr(), sum) };
        }
    }
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_give_the_same_block() {
        for k in [0, 1, 7, 64] {
            let a: Vec<f32> = (0..k * ROWS).map(|n| (n % 7) as f32 - 3.0).collect();
            let b: Vec<f32> = (0..k * COLUMNS).map(|n| (n % 5) as f32 - 2.0).collect();
            assert_eq!(block_f32(&a, &b), block(&a, &b), "whole numbers are exact");
        }
    }
}
