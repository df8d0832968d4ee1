//! The Euclidean norm of what lies in memory.

use half::{bf16, f16};

use crate::{
    backend::{Region, vectorised},
    tensor::DType,
};

/// How much is copied out of memory that others may write to and then summed.
const CHUNK_BYTES: usize = 4096;

/// The root of the sum of the squares of all elements, as `torch.nn.utils.get_total_norm` gives it; NaN if one of them
/// is not finite, infinity if the norm is past what a number holds. What holds no floating-point numbers counts as
/// nothing.
pub(super) fn norm<'a>(parts: impl IntoIterator<Item = (Region<'a>, DType)>) -> f32 {
    let sum = parts.into_iter().fold(Sum::default(), |sum, (part, dtype)| sum.and(of(part, dtype)));
    // Zeros, if all are finite, and otherwise NaN.
    (sum.squares.sqrt() + sum.poison) as f32
}

#[derive(Clone, Copy, Default)]
struct Sum {
    squares: f64,
    poison: f64,
}

impl Sum {
    fn and(self, other: Self) -> Self {
        Self { squares: self.squares + other.squares, poison: self.poison + other.poison }
    }
}

fn of(part: Region<'_>, dtype: DType) -> Sum {
    match dtype {
        DType::F64 => sum(part, |bytes| chunk(bytes, f64::from_le_bytes)),
        DType::F32 => sum(part, singles),
        DType::F16 => sum(part, |bytes| chunk(bytes, |b| f64::from(f16::from_le_bytes(b)))),
        DType::BF16 => sum(part, |bytes| chunk(bytes, |b| f64::from(bf16::from_le_bytes(b)))),
        _ => Sum::default(),
    }
}

fn sum(part: Region<'_>, of_chunk: impl Fn(&[u8]) -> Sum) -> Sum {
    let mut buffer = [0; CHUNK_BYTES];
    (0..part.len_bytes()).step_by(CHUNK_BYTES).fold(Sum::default(), |sum, start| {
        let bytes = &mut buffer[..CHUNK_BYTES.min(part.len_bytes() - start)];
        let is_read = part.part(start, bytes.len()).is_some_and(|chunk| chunk.read(bytes));
        debug_assert!(is_read, "the chunk lies within");
        sum.and(of_chunk(bytes))
    })
}

/// Of `f32`: a finite one has a finite square in `f64`, and so has a chunk a finite sum, exactly where all of them are finite.
fn singles(bytes: &[u8]) -> Sum {
    let squares: f64 = vectorised(
        #[inline(always)]
        || {
            let mut lanes = [0.0; 32];
            let (wide, rest) = bytes.as_chunks::<{ 32 * 4 }>();
            for elements in wide {
                for (lane, element) in lanes.iter_mut().zip(elements.as_chunks().0) {
                    *lane += square(element);
                }
            }
            for (lane, element) in lanes.iter_mut().zip(rest.as_chunks().0) {
                *lane += square(element);
            }
            lanes.iter().sum()
        },
    );
    Sum { squares, poison: squares * 0.0 }
}

#[inline(always)]
fn square(single: &[u8; 4]) -> f64 {
    let value = f64::from(f32::from_le_bytes(*single));
    value * value
}

/// In eight lanes, so that they can be added side by side. In `f64` no square of an `f32` overflows.
#[inline]
fn chunk<const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> f64) -> Sum {
    let mut lanes = [Sum::default(); 8];
    for (n, element) in bytes.as_chunks::<N>().0.iter().enumerate() {
        let value = value(*element);
        let lane = &mut lanes[n % 8];
        *lane = lane.and(Sum { squares: value * value, poison: value * 0.0 });
    }
    lanes.into_iter().fold(Sum::default(), Sum::and)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn norm_of(mut bytes: Vec<u8>, dtype: DType) -> f32 {
        norm([(Region::from_mut(&mut bytes), dtype)])
    }

    #[test]
    fn every_floating_type_is_measured() {
        // Σ n² for n = 1 … 2000, past a chunk and not a multiple of the lanes.
        let values: Vec<f64> = (1..=2000).map(|n| f64::from(n) / 16.0).collect();
        let expected = values.iter().map(|v| v * v).sum::<f64>().sqrt() as f32;
        assert_eq!(norm_of(values.iter().flat_map(|v| v.to_le_bytes()).collect(), DType::F64), expected);
        assert_eq!(
            norm_of(values.iter().flat_map(|v| (*v as f32).to_le_bytes()).collect(), DType::F32),
            expected
        );
        assert_eq!(
            norm_of(values.iter().flat_map(|v| f16::from_f64(*v).to_le_bytes()).collect(), DType::F16),
            expected
        );
        let halves: Vec<bf16> = (1..=128).map(|n| bf16::from_f64(f64::from(n))).collect();
        let expected = halves.iter().map(|v| v.to_f64().powi(2)).sum::<f64>().sqrt() as f32;
        assert_eq!(norm_of(halves.iter().flat_map(|v| v.to_le_bytes()).collect(), DType::BF16), expected);
    }

    #[test]
    fn large_numbers_do_not_overflow_and_what_is_not_finite_has_no_norm() {
        let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        assert_eq!(norm_of(bytes(&[3e30, 4e30]), DType::F32), 5e30);
        let mut many = vec![f32::MAX; 1100];
        assert_eq!(norm_of(bytes(&many), DType::F32), f32::INFINITY);
        for odd in [f32::NAN, f32::NEG_INFINITY] {
            for at in [0, 31, 32, 1023, 1024, 1099] {
                many.fill(1.0);
                many[at] = odd;
                assert!(norm_of(bytes(&many), DType::F32).is_nan(), "{odd} at {at}");
            }
        }
        assert!(norm_of(bytes(&[1.0, f32::INFINITY]), DType::F32).is_nan());
        assert!(norm_of(bytes(&[f32::NAN]), DType::F32).is_nan());
        assert_eq!(norm_of(1e200f64.to_le_bytes().to_vec(), DType::F64), f32::INFINITY);
        assert_eq!(norm_of(vec![7; 16], DType::I64), 0.0);
        assert_eq!(norm([]), 0.0);
    }
}
