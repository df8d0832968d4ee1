//! Contiguous tensors in host memory: weights as read from an artifact, constants, test data.

use std::{ops::Range, sync::Arc};

use half::{bf16, f16};

use super::{DType, Shape, ShapeError};

/// A contiguous, immutable tensor in host memory; a clone shares the bytes, and many may share one block.
///
/// The bytes need not lie where the element type may lie.
#[derive(Clone)]
pub struct HostTensor {
    shape: Shape,
    dtype: DType,
    block: Arc<[u8]>,
    range: Range<usize>,
}

/// Why a tensor cannot be made or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TensorError {
    /// The bytes are not as many as shape and type say.
    #[error("a {dtype} tensor of shape {shape} has {expected} bytes, not {actual}")]
    Length {
        /// The shape that was claimed.
        shape: Shape,
        /// The type that was claimed.
        dtype: DType,
        /// Bytes that shape and type need.
        expected: usize,
        /// Bytes that were given.
        actual: usize,
    },
    /// The elements are of another type than asked for.
    #[error("the tensor holds {actual} elements, not {expected}")]
    DType {
        /// The type asked for.
        expected: DType,
        /// The tensor's own type.
        actual: DType,
    },
    /// The shape itself is impossible.
    #[error(transparent)]
    Shape(#[from] ShapeError),
}

/// A Rust type that stands for a [`DType`].
pub trait Element: Copy + Send + Sync + 'static {
    /// The type it stands for.
    const DTYPE: DType;

    /// Appends the little-endian bytes.
    fn put(self, bytes: &mut Vec<u8>);

    /// Reads little-endian bytes, exactly as many as the type has.
    fn get(bytes: &[u8]) -> Self;
}

macro_rules! elements {
    ($($rust:ty => $dtype:ident),*) => {$(
        impl Element for $rust {
            const DTYPE: DType = DType::$dtype;

            fn put(self, bytes: &mut Vec<u8>) {
                bytes.extend_from_slice(&self.to_le_bytes());
            }

            fn get(bytes: &[u8]) -> Self {
                Self::from_le_bytes(bytes.try_into().expect("callers cut exact chunks"))
            }
        }
    )*};
}

elements!(f32 => F32, f64 => F64, bf16 => BF16, f16 => F16, i64 => I64, i32 => I32, u8 => U8);

impl HostTensor {
    /// A tensor of raw little-endian bytes.
    ///
    /// # Errors
    /// [`TensorError::Length`] when the bytes are not exactly as many as shape and type need.
    pub fn new(shape: Shape, dtype: DType, bytes: impl Into<Arc<[u8]>>) -> Result<Self, TensorError> {
        let block = bytes.into();
        let range = 0..block.len();
        Self::within(shape, dtype, block, range)
    }

    /// A tensor of a part of a block, which stays in memory as long as the tensor does.
    ///
    /// # Errors
    /// [`TensorError::Length`] when the part is not exactly as long as shape and type need, or does not lie
    /// within the block.
    pub fn within(
        shape: Shape,
        dtype: DType,
        block: Arc<[u8]>,
        range: Range<usize>,
    ) -> Result<Self, TensorError> {
        let expected = shape.checked_elements()? * dtype.size_bytes();
        let actual = block.get(range.clone()).map_or(0, <[u8]>::len);
        if range.len() != expected || actual != expected {
            return Err(TensorError::Length { shape, dtype, expected, actual });
        }
        Ok(Self { shape, dtype, block, range })
    }

    /// A tensor of typed values.
    ///
    /// # Errors
    /// [`TensorError::Length`] when the values are not exactly as many as the shape needs.
    pub fn from_values<T: Element>(shape: Shape, values: &[T]) -> Result<Self, TensorError> {
        let mut bytes = Vec::with_capacity(size_of_val(values));
        values.iter().for_each(|value| value.put(&mut bytes));
        Self::new(shape, T::DTYPE, bytes)
    }

    /// The values, copied out.
    ///
    /// # Errors
    /// [`TensorError::DType`] when the tensor holds another type.
    pub fn to_values<T: Element>(&self) -> Result<Vec<T>, TensorError> {
        if T::DTYPE != self.dtype {
            return Err(TensorError::DType { expected: T::DTYPE, actual: self.dtype });
        }
        Ok(self.bytes().chunks_exact(T::DTYPE.size_bytes()).map(T::get).collect())
    }

    /// Every value as `f64`, whatever the type; 64-bit integers round.
    pub fn to_f64(&self) -> Vec<f64> {
        let chunks = self.bytes().chunks_exact(self.dtype.size_bytes());
        match self.dtype {
            DType::F32 => chunks.map(|b| f32::get(b).into()).collect(),
            DType::F64 => chunks.map(f64::get).collect(),
            DType::BF16 => chunks.map(|b| bf16::get(b).to_f64()).collect(),
            DType::F16 => chunks.map(|b| f16::get(b).to_f64()).collect(),
            DType::I64 => chunks.map(|b| i64::get(b) as f64).collect(),
            DType::I32 => chunks.map(|b| i32::get(b).into()).collect(),
            DType::U8 => chunks.map(|b| b[0].into()).collect(),
            DType::Bool => chunks.map(|b| f64::from(u8::from(b[0] != 0))).collect(),
        }
    }

    /// Whether it is a part of this block, and so takes no memory of its own beside it.
    pub fn is_part_of(&self, block: &Arc<[u8]>) -> bool {
        Arc::ptr_eq(&self.block, block)
    }

    /// The sizes.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The raw little-endian bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.block[self.range.clone()]
    }
}

impl PartialEq for HostTensor {
    fn eq(&self, other: &Self) -> bool {
        self.dtype == other.dtype && self.shape == other.shape && self.bytes() == other.bytes()
    }
}

impl std::fmt::Debug for HostTensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HostTensor({} {})", self.dtype, self.shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_go_in_and_out() {
        let tensor = HostTensor::from_values([2, 2].into(), &[1.0f32, -2.0, 0.5, f32::INFINITY]).unwrap();
        assert_eq!(tensor.to_values::<f32>().unwrap(), [1.0, -2.0, 0.5, f32::INFINITY]);
        assert_eq!(tensor.to_f64()[1], -2.0);
        assert!(matches!(tensor.to_values::<i64>(), Err(TensorError::DType { .. })));
    }

    #[test]
    fn a_part_of_a_block_is_a_tensor_of_its_own() {
        let block: Arc<[u8]> = (0..12).collect::<Vec<u8>>().into();
        let part = |range: Range<usize>| HostTensor::within([4].into(), DType::U8, block.clone(), range);
        assert_eq!(part(3..7).unwrap().bytes(), [3, 4, 5, 6]);
        assert_eq!(part(3..7).unwrap(), HostTensor::new([4].into(), DType::U8, vec![3, 4, 5, 6]).unwrap());
        assert_ne!(part(3..7).unwrap(), part(4..8).unwrap());
        assert!(part(3..7).unwrap().is_part_of(&block));
        assert!(!HostTensor::new([4].into(), DType::U8, vec![0; 4]).unwrap().is_part_of(&block));
        for wrong in [9..13, 3..6, 20..24, usize::MAX - 3..usize::MAX] {
            assert!(part(wrong).is_err());
        }
    }

    #[test]
    fn bytes_must_match_the_shape() {
        let error = HostTensor::new([2, 3].into(), DType::F32, vec![0; 20]).unwrap_err();
        assert_eq!(error.to_string(), "a float32 tensor of shape [2, 3] has 24 bytes, not 20");
    }
}
