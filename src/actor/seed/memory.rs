//! A seed's memory file, with what it costs.

use std::sync::Arc;

use crate::{
    actor::HeldKernel,
    backend::{Memory, Region},
    engine::Share,
    wire::SharedMemory,
};

/// A seed's memory file with its place in the session's ledger, for as long as anybody holds it.
#[derive(Clone, Debug)]
pub(super) struct KeptMemory {
    pub(super) shared: Arc<SharedMemory>,
    pub(super) _share: Arc<Share>,
}

/// A seed's memory file, with what it costs: as long as a slot or a ticket holds it, it stands in the session's ledger
/// and the cache does not evict its kernel.
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
