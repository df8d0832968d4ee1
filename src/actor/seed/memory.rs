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
    pub(super) shared: Arc<SharedMemory>,
    pub(super) _share: Share,
    pub(super) _lease: HeldKernel,
}

impl Memory for SeedMemory {
    fn region(&self) -> Region<'_> {
        self.shared.region()
    }
}
