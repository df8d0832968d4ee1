//! Memory that comes and goes with every pass, kept for the next one.

use std::{collections::HashMap, sync::Arc};

use crate::{
    backend::{Backend, OwnMemory, nothing},
    tensor::ALIGNMENT_BYTES,
};

/// The most bytes that lie idle in one layer's pool, and in those of all layers of a session together. Each new batch
/// size leaves blocks behind, and there is no end to sizes.
pub(super) const MAX_FREE_BYTES: usize = 1 << 30;

/// Blocks by size. In a steady state every pass finds what the one before gave back, and none is allocated.
///
/// Of several the one that lies lowest is lent, in whatever order they came back: so equal passes have their memory at
/// equal places, which devices rely on that replay them.
#[derive(Debug)]
pub(super) struct MemoryPool {
    backend: Arc<dyn Backend>,
    /// The lowest last.
    free: HashMap<usize, Vec<OwnMemory>>,
    free_bytes: usize,
    /// Bytes lent and not given back.
    lent_bytes: usize,
}

impl MemoryPool {
    /// No blocks yet, of a device's memory.
    pub(super) fn new(backend: Arc<dyn Backend>) -> Self {
        Self { backend, free: HashMap::new(), free_bytes: 0, lent_bytes: 0 }
    }

    /// A block of at least so many bytes, with undefined content. One that the device has no room for says so, and whoever
    /// runs on it fails with that.
    pub(super) fn take(&mut self, len_bytes: usize) -> OwnMemory {
        let size = len_bytes.next_multiple_of(ALIGNMENT_BYTES);
        if size == 0 {
            return nothing();
        }
        let idle = self.free.get_mut(&size).and_then(Vec::pop);
        self.free_bytes -= idle.as_ref().map_or(0, |_| size);
        let memory = idle.unwrap_or_else(|| self.allocate(size));
        self.lent_bytes += memory.len_bytes();
        memory
    }

    fn allocate(&mut self, size: usize) -> OwnMemory {
        let memory = self.backend.allocate(size);
        if memory.lack().is_none() || self.free.is_empty() {
            return memory;
        }
        // Other sizes that lie idle may be all that is in the way.
        self.trim();
        self.backend.allocate(size)
    }

    /// Takes a block back. Sizes that are asked for no more make room once too much lies idle.
    pub(super) fn give(&mut self, memory: OwnMemory) {
        // Blocks of no bytes cost nothing to make, and more of them come back than were lent.
        if memory.len_bytes() == 0 {
            return;
        }
        self.lose(memory.len_bytes());
        if self.free_bytes.saturating_add(memory.len_bytes()) > MAX_FREE_BYTES {
            self.trim();
        }
        if memory.len_bytes() > MAX_FREE_BYTES {
            return;
        }
        self.free_bytes += memory.len_bytes();
        let idle = self.free.entry(memory.len_bytes()).or_default();
        let start = memory.region().start();
        let place = idle.partition_point(|other| other.region().start() > start);
        idle.insert(place, memory);
    }

    /// Notes that so many lent bytes will not come back.
    pub(super) fn lose(&mut self, bytes: usize) {
        self.lent_bytes = self.lent_bytes.saturating_sub(bytes);
    }

    /// Frees what nobody uses: when a kernel comes or goes, other sizes will be asked for.
    pub(super) fn trim(&mut self) {
        self.free.clear();
        self.free_bytes = 0;
    }

    /// Bytes that lie idle.
    pub(super) fn idle_bytes(&self) -> usize {
        self.free_bytes
    }

    /// Bytes lent and not given back.
    pub(super) fn lent_bytes(&self) -> usize {
        self.lent_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::CpuBackend;

    fn pool() -> MemoryPool {
        MemoryPool::new(Arc::new(CpuBackend::new(1)))
    }

    #[test]
    fn blocks_are_lent_in_one_order_however_they_come_back() {
        let mut pool = pool();
        let mut lent: Vec<_> = (0..5).map(|_| pool.take(100)).collect();
        let mut places = None;
        for first in [0, 3, 1] {
            lent.rotate_left(first);
            lent.drain(..).for_each(|memory| pool.give(memory));
            lent.extend((0..5).map(|_| pool.take(100)));
            let now: Vec<_> = lent.iter().map(|memory| memory.region().start()).collect();
            assert!(now.is_sorted());
            assert_eq!(*places.get_or_insert_with(|| now.clone()), now);
        }
    }

    #[test]
    fn a_block_given_back_is_lent_again() {
        let mut pool = pool();
        let first = pool.take(100);
        let address = first.region().start();
        assert_eq!(pool.lent_bytes(), 128);
        pool.give(first);
        assert_eq!(pool.lent_bytes(), 0);
        assert_eq!(pool.take(128).region().start(), address);
        assert_ne!(pool.take(128).region().start(), address);
    }

    #[test]
    fn blocks_of_no_bytes_are_not_kept() {
        let mut pool = pool();
        (0..3).for_each(|_| pool.give(nothing()));
        assert_eq!(pool.take(0).len_bytes(), 0);
        assert!(pool.free.is_empty());
    }
}
