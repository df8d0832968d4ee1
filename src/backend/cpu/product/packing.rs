//! Operands of a product, laid out in the order in which blocks read them.

use super::{
    super::{real::Real, simd::vectorised},
    Matrix,
};

/// Lays out the rows of a matrix in panels of `W`: by panel, then by column, `W` numbers. What the last panel has no rows for is
/// zeros.
///
/// # Panics
/// When the matrix holds fewer, or there is room for fewer.
pub(in super::super) fn pack<T: Real, const W: usize>(
    from: Matrix<'_, T>,
    [rows, columns]: [usize; 2],
    to: &mut [T],
) {
    assert!(from.holds(rows, columns), "the operand holds what is read");
    let to = &mut to[..rows.next_multiple_of(W) * columns];
    for (panel, to) in to.chunks_exact_mut((W * columns).max(1)).enumerate() {
        let (from, count) = (from.rows_from(panel * W), W.min(rows - panel * W));
        let (to, _) = to.as_chunks_mut::<W>();
        if from.row_stride == 1 && count == W {
            vectorised(
                #[inline(always)]
                || {
                    for (column, to) in to.iter_mut().enumerate() {
                        // Of a size that is known: no call for each column.
                        *to = *from.data[column * from.column_stride..].first_chunk().expect("it holds them");
                    }
                },
            );
        } else if from.row_stride == 1 {
            for (column, to) in to.iter_mut().enumerate() {
                let (numbers, rest) = to.split_at_mut(count);
                numbers.copy_from_slice(&from.data[column * from.column_stride..][..count]);
                rest.fill(T::ZERO);
            }
        } else if from.column_stride == 1 && count == W {
            T::interleave(from.data, from.row_stride, to);
        } else {
            for (column, to) in to.iter_mut().enumerate() {
                let (numbers, rest) = to.split_at_mut(count);
                for (row, to) in numbers.iter_mut().enumerate() {
                    *to = from.data[row * from.row_stride + column * from.column_stride];
                }
                rest.fill(T::ZERO);
            }
        }
    }
}

/// Interleaves `W` rows of contiguous numbers, `stride` apart.
///
/// # Panics
/// When there are fewer.
pub(in super::super) fn interleave<T: Copy, const W: usize>(from: &[T], stride: usize, to: &mut [[T; W]]) {
    let count = to.len();
    for row in 0..W {
        for (to, &from) in to.iter_mut().zip(&from[row * stride..][..count]) {
            to[row] = from;
        }
    }
}

/// The same by instructions that were chosen by hand, where the processor has them.
///
/// # Panics
/// As [`interleave`].
pub(in super::super) fn interleave_f32<const W: usize>(from: &[f32], stride: usize, to: &mut [[f32; W]]) {
    #[cfg(target_arch = "x86_64")]
    if W.is_multiple_of(SQUARE) && super::block::has_registers() {
        assert!(to.is_empty() || (W - 1) * stride + to.len() <= from.len(), "there are as many");
        let whole = to.len() / SQUARE * SQUARE;
        let (squares, rest) = to.split_at_mut(whole);
        for (n, to) in squares.chunks_exact_mut(SQUARE).enumerate() {
            for lanes in (0..W).step_by(SQUARE) {
                // SAFETY: the processor has AVX, and the assertion has held what is read against the slice.
                unsafe { transpose(from.as_ptr().add(lanes * stride + n * SQUARE), stride, to, lanes) };
            }
        }
        if !rest.is_empty() {
            interleave(&from[whole..], stride, rest);
        }
        return;
    }
    interleave(from, stride, to);
}

/// Rows and columns that are transposed at once.
#[cfg(target_arch = "x86_64")]
const SQUARE: usize = 8;

/// Transposes a square into eight rows of `to`, from the given element of each on.
///
/// # Safety
/// `from` must be valid for reads of eight rows of eight numbers, `stride` apart.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx")]
unsafe fn transpose<const W: usize>(from: *const f32, stride: usize, to: &mut [[f32; W]], lanes: usize) {
    use std::arch::x86_64::{
        _mm256_castpd_ps, _mm256_castps_pd, _mm256_loadu_ps, _mm256_permute2f128_ps, _mm256_storeu_ps,
        _mm256_unpackhi_pd, _mm256_unpackhi_ps, _mm256_unpacklo_pd, _mm256_unpacklo_ps,
    };

    // SAFETY: as the caller promises.
    let rows: [_; SQUARE] = std::array::from_fn(|n| unsafe { _mm256_loadu_ps(from.add(n * stride)) });
    let mut pairs = rows;
    for n in 0..SQUARE / 2 {
        pairs[2 * n] = _mm256_unpacklo_ps(rows[2 * n], rows[2 * n + 1]);
        pairs[2 * n + 1] = _mm256_unpackhi_ps(rows[2 * n], rows[2 * n + 1]);
    }
    let mut fours = rows;
    for half in [0, 4] {
        for n in 0..2 {
            let (upper, lower) = (_mm256_castps_pd(pairs[half + n]), _mm256_castps_pd(pairs[half + n + 2]));
            fours[half + 2 * n] = _mm256_castpd_ps(_mm256_unpacklo_pd(upper, lower));
            fours[half + 2 * n + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(upper, lower));
        }
    }
    for n in 0..SQUARE / 2 {
        let columns = [
            _mm256_permute2f128_ps::<0x20>(fours[n], fours[n + 4]),
            _mm256_permute2f128_ps::<0x31>(fours[n], fours[n + 4]),
        ];
        for (half, column) in columns.into_iter().enumerate() {
            let to = &mut to[half * (SQUARE / 2) + n][lanes..][..SQUARE];
            // SAFETY: the slice has eight numbers.
            unsafe { _mm256_storeu_ps(to.as_mut_ptr(), column) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::block::{COLUMNS, ROWS},
        *,
    };

    fn packs<const W: usize>(rows: usize, columns: usize) {
        let numbers: Vec<f32> = (0..rows * columns + 7).map(|n| n as f32).collect();
        for from in [
            Matrix::rows(&numbers, columns),
            Matrix::rows(&numbers, rows).turned(),
            Matrix { data: &numbers, row_stride: 2, column_stride: 0 },
        ] {
            if !from.holds(rows, columns) {
                continue;
            }
            let mut to = vec![f32::NAN; rows.next_multiple_of(W) * columns + 3];
            pack::<f32, W>(from, [rows, columns], &mut to);
            let at = |row: usize, column: usize| to[(row / W * columns + column) * W + row % W];
            for row in 0..rows.next_multiple_of(W) {
                for column in 0..columns {
                    let wanted = match row < rows {
                        true => numbers[row * from.row_stride + column * from.column_stride],
                        false => 0.0,
                    };
                    assert_eq!(at(row, column), wanted, "{rows}×{columns}, {row}, {column}");
                }
            }
            assert!(to[rows.next_multiple_of(W) * columns..].iter().all(|n| n.is_nan()), "and no further");
        }
    }

    #[test]
    fn every_order_is_packed() {
        for rows in [0, 1, 7, 8, 31, 32, 33, 70] {
            for columns in [0, 1, 7, 8, 9, 40] {
                packs::<ROWS>(rows, columns);
                packs::<COLUMNS>(rows, columns);
            }
        }
    }
}
