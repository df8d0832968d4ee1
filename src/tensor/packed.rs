//! Several tensors in one block: how parameters, buffers, gradients and saved activations lie.

use super::{DType, Shape, ShapeError};

/// Every tensor in a block starts on a multiple of this many bytes: a cache line and a 512-bit vector.
pub const ALIGNMENT_BYTES: usize = 64;

/// One tensor's place in a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The sizes.
    pub shape: Shape,
    /// The element type.
    pub dtype: DType,
    /// Bytes from the start of the block, a multiple of [`ALIGNMENT_BYTES`].
    pub offset_bytes: usize,
    /// Bytes of the contiguous elements, without padding.
    pub len_bytes: usize,
}

/// The places of contiguous tensors laid one after the other in a block.
///
/// Two sides that know the same list of shapes and types arrive at the same places.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct PackedLayout {
    slots: Vec<Slot>,
    total_bytes: usize,
}

impl PackedLayout {
    /// Lays tensors out in the order given.
    ///
    /// # Errors
    /// [`ShapeError::TooLarge`] when the block would not fit the address space.
    pub fn new<'a>(tensors: impl IntoIterator<Item = (&'a Shape, DType)>) -> Result<Self, ShapeError> {
        let mut layout = Self::default();
        for (shape, dtype) in tensors {
            let too_large = || ShapeError::TooLarge { shape: shape.clone() };
            let len_bytes = shape.checked_elements()? * dtype.size_bytes();
            let end = layout.total_bytes.checked_add(len_bytes).ok_or_else(too_large)?;
            let padded = end.checked_next_multiple_of(ALIGNMENT_BYTES).ok_or_else(too_large)?;
            if padded > isize::MAX as usize {
                return Err(too_large());
            }
            layout.slots.push(Slot {
                shape: shape.clone(),
                dtype,
                offset_bytes: layout.total_bytes,
                len_bytes,
            });
            layout.total_bytes = padded;
        }
        Ok(layout)
    }

    /// The tensors' places, in order.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Bytes of the whole block, a multiple of [`ALIGNMENT_BYTES`].
    pub fn total_bytes(&self) -> usize {
        self.total_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_start_on_cache_lines() {
        let (a, b, c) = (Shape::from([3]), Shape::scalar(), Shape::from([0, 7]));
        let packed = PackedLayout::new([(&a, DType::F32), (&b, DType::I64), (&c, DType::F32)]).unwrap();
        let offsets: Vec<_> = packed.slots().iter().map(|s| (s.offset_bytes, s.len_bytes)).collect();
        assert_eq!(offsets, [(0, 12), (64, 8), (128, 0)]);
        assert_eq!(packed.total_bytes(), 128);
    }

    #[test]
    fn a_block_past_the_address_space_is_refused() {
        let huge = Shape::from([isize::MAX as usize / 16, 1]);
        assert!(PackedLayout::new([(&huge, DType::F64), (&huge, DType::F64)]).is_err());
    }
}
