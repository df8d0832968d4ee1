//! The heap of an arena: which bytes are taken. The client alone decides, because it knows how long a tensor
//! lives; the daemon only checks that blocks lie within.

use std::collections::BTreeMap;

use crate::{
    tensor::ALIGNMENT_BYTES,
    wire::{ArenaLayout, Block, WireError},
};

/// Free blocks by offset; neighbours are merged, so two free blocks never touch.
#[derive(Debug)]
pub(super) struct Heap {
    free: BTreeMap<u64, u64>,
    free_bytes: u64,
    heap_bytes: u64,
}

impl Heap {
    pub(super) fn new(layout: &ArenaLayout) -> Self {
        let free = BTreeMap::from([(layout.heap_offset, layout.heap_bytes)]);
        Self { free, free_bytes: layout.heap_bytes, heap_bytes: layout.heap_bytes }
    }

    /// The first free block that is large enough; its `bytes` are those asked for.
    pub(super) fn allocate(&mut self, bytes: u64) -> Result<Block, WireError> {
        let full = WireError::ArenaFull { bytes, free_bytes: self.free_bytes, heap_bytes: self.heap_bytes };
        let Some(taken) = taken_bytes(bytes) else { return Err(full) };
        let Some((&offset, &found)) = self.free.iter().find(|(_, found)| **found >= taken) else {
            return Err(full);
        };
        self.free.remove(&offset);
        if found > taken {
            self.free.insert(offset + taken, found - taken);
        }
        self.free_bytes -= taken;
        Ok(Block { offset, bytes })
    }

    /// Gives back what `allocate` gave.
    pub(super) fn release(&mut self, block: Block) {
        let Some(mut bytes) = taken_bytes(block.bytes) else { return };
        let mut offset = block.offset;
        self.free_bytes += bytes;
        if let Some((&before, &before_bytes)) = self.free.range(..offset).next_back()
            && before + before_bytes == offset
        {
            self.free.remove(&before);
            (offset, bytes) = (before, bytes + before_bytes);
        }
        if let Some(after_bytes) = self.free.remove(&(offset + bytes)) {
            bytes += after_bytes;
        }
        self.free.insert(offset, bytes);
    }

    #[cfg(test)]
    fn is_whole(&self) -> bool {
        self.free.len() == 1 && self.free_bytes == self.heap_bytes
    }
}

fn taken_bytes(bytes: u64) -> Option<u64> {
    bytes.max(1).checked_next_multiple_of(ALIGNMENT_BYTES as u64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn heap() -> Heap {
        Heap::new(&ArenaLayout::new(1 << 17).unwrap())
    }

    #[test]
    fn a_full_heap_says_how_full_it_is() {
        let mut heap = heap();
        let all = heap.heap_bytes;
        let block = heap.allocate(all).unwrap();
        let error = heap.allocate(1).unwrap_err();
        assert!(matches!(error, WireError::ArenaFull { bytes: 1, free_bytes: 0, .. }), "{error}");
        heap.release(block);
        assert!(heap.is_whole());
        assert!(heap.allocate(u64::MAX).is_err());
    }

    proptest! {
        #[test]
        fn blocks_never_overlap_and_all_come_back(steps in prop::collection::vec((0u64..5_000, any::<u8>()), 1..200)) {
            let mut heap = heap();
            let mut held: Vec<Block> = Vec::new();
            for (bytes, choice) in steps {
                if choice % 3 == 0 && !held.is_empty() {
                    heap.release(held.swap_remove(usize::from(choice) % held.len()));
                } else if let Ok(block) = heap.allocate(bytes) {
                    prop_assert_eq!(block.offset % 64, 0);
                    for other in &held {
                        prop_assert!(block.offset + block.bytes.max(1) <= other.offset
                            || other.offset + other.bytes.max(1) <= block.offset);
                    }
                    held.push(block);
                }
            }
            held.drain(..).for_each(|block| heap.release(block));
            prop_assert!(heap.is_whole());
        }
    }
}
