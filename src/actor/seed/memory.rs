//! A seed's memory file and what a session's seeds may take together.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use crate::{
    actor::{ActorError, HeldKernel},
    backend::{Memory, Region},
    wire::SharedMemory,
};

/// How many bytes the memory files of a session's seeds may take together.
#[derive(Debug)]
pub struct MemoryBudget {
    limit_bytes: u64,
    used_bytes: AtomicU64,
}

impl MemoryBudget {
    /// A budget of which nothing is taken.
    pub fn new(limit_bytes: u64) -> Self {
        Self { limit_bytes, used_bytes: AtomicU64::new(0) }
    }

    /// How many bytes are taken.
    #[cfg(test)]
    pub(super) fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn take(self: &Arc<Self>, bytes: u64) -> Result<Share, ActorError> {
        let share = Share { budget: self.clone(), bytes };
        let before = self.used_bytes.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) > self.limit_bytes {
            let limit = self.limit_bytes;
            return Err(ActorError::Quota { what: "bytes of parameters and buffers", limit });
        }
        Ok(share)
    }
}

/// A seed's memory file with the bytes that it takes from the budget, for as long as anybody holds it.
#[derive(Clone, Debug)]
pub(super) struct KeptMemory {
    pub(super) shared: Arc<SharedMemory>,
    pub(super) _share: Arc<Share>,
}

/// Bytes taken from a budget, given back when dropped.
#[derive(Debug)]
pub(super) struct Share {
    budget: Arc<MemoryBudget>,
    bytes: u64,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.used_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A seed's memory file, with what it costs: as long as a slot or a ticket holds it, its bytes stay charged
/// to the session and the cache does not evict its kernel.
#[derive(Debug)]
pub(super) struct SeedMemory {
    pub(super) kept: KeptMemory,
    pub(super) _lease: HeldKernel,
}

impl Memory for SeedMemory {
    fn region(&self) -> Region<'_> {
        self.kept.shared.region()
    }
}
