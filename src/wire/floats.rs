//! Numbers in shared memory: f32 elements that the other side may read or write at any time.

use std::sync::atomic::{AtomicU32, Ordering};

use super::{Arena, Block, SharedMemory, WireError};
use crate::backend::Region;

/// f32 elements in shared memory. Single elements are read and written whole; what a copy of many sees while
/// the other side writes is a mixture of old and new elements.
#[derive(Clone, Copy, Debug)]
pub struct SharedFloats<'a> {
    elements: &'a [AtomicU32],
}

impl<'a> SharedFloats<'a> {
    fn new(region: Region<'a>) -> Result<Self, WireError> {
        let start = region.start().cast::<AtomicU32>();
        let count = region.len_bytes() / 4;
        if !start.is_aligned() || !region.len_bytes().is_multiple_of(4) {
            let reason = format!("{} bytes at {start:p} are no f32 elements", region.len_bytes());
            return Err(WireError::Memory { reason });
        }
        // SAFETY: the region is readable and writable for `'a` and aligned (just checked); that others
        // write to it is what atomics are for.
        Ok(Self { elements: unsafe { std::slice::from_raw_parts(start, count) } })
    }

    /// How many elements.
    pub fn len(&self) -> usize {
        self.elements.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.elements.is_empty()
    }

    /// One element, or `None` past the end.
    pub fn get(&self, index: usize) -> Option<f32> {
        Some(f32::from_bits(self.elements.get(index)?.load(Ordering::Relaxed)))
    }

    /// Replaces each element by what `update` makes of its index and value: an optimizer's step.
    pub fn update(&self, mut update: impl FnMut(usize, f32) -> f32) {
        for (index, element) in self.elements.iter().enumerate() {
            let value = f32::from_bits(element.load(Ordering::Relaxed));
            element.store(update(index, value).to_bits(), Ordering::Relaxed);
        }
    }

    /// Writes `values` over the first elements; values past the end are not written.
    pub fn copy_from(&self, values: &[f32]) {
        let count = values.len().min(self.elements.len());
        // SAFETY: both ranges hold `count` elements, and `values` is borrowed memory of this process, which
        // no mapping overlaps. A racing reader on the other side sees a mixture of old and new elements.
        unsafe {
            let to = self.elements.as_ptr().cast_mut().cast::<f32>();
            std::ptr::copy_nonoverlapping(values.as_ptr(), to, count);
        }
    }

    /// Reads the first elements into `values`; values past the end stay.
    pub fn copy_to(&self, values: &mut [f32]) {
        let count = values.len().min(self.elements.len());
        // SAFETY: as in `copy_from`, the other way; every pattern of bits is an f32.
        unsafe {
            let from = self.elements.as_ptr().cast::<f32>();
            std::ptr::copy_nonoverlapping(from, values.as_mut_ptr(), count);
        }
    }

    /// All elements.
    pub fn to_vec(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.elements.len()];
        self.copy_to(&mut values);
        values
    }
}

impl Arena {
    /// A block's elements.
    ///
    /// # Errors
    /// [`WireError::Block`] when it does not lie in the heap, [`WireError::Memory`] when it is no whole
    /// number of elements.
    pub fn floats(&self, block: Block) -> Result<SharedFloats<'_>, WireError> {
        SharedFloats::new(self.region(block)?)
    }
}

impl SharedMemory {
    /// The `count` elements from `offset_bytes` on.
    ///
    /// # Errors
    /// [`WireError::Memory`] when they do not lie within or are misaligned.
    pub fn floats(&self, offset_bytes: u64, count: usize) -> Result<SharedFloats<'_>, WireError> {
        let part = usize::try_from(offset_bytes)
            .ok()
            .zip(count.checked_mul(4))
            .and_then(|(offset, bytes)| self.region().part(offset, bytes));
        match part {
            Some(region) => SharedFloats::new(region),
            None => Err(WireError::Memory {
                reason: format!(
                    "{count} elements at {offset_bytes} do not lie in {} bytes",
                    self.len_bytes()
                ),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_copied_updated_and_bounded() {
        let memory = SharedMemory::create("test", 4096).unwrap();
        let floats = memory.floats(64, 3).unwrap();
        floats.copy_from(&[1.0, 2.0, 3.0, 4.0]);
        floats.update(|i, value| value * 10.0 + i as f32);
        assert_eq!(floats.to_vec(), [10.0, 21.0, 32.0]);
        assert_eq!((floats.get(2), floats.get(3)), (Some(32.0), None));
        assert_eq!(memory.floats(76, 1).unwrap().get(0), Some(0.0), "the fourth value was not written");
        for (offset, count) in [(4096, 1), (2, 1), (0, 1025), (0, usize::MAX), (u64::MAX, 1)] {
            assert!(memory.floats(offset, count).is_err(), "{offset} {count}");
        }
    }
}
