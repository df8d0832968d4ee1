//! What a seed runs its jobs on.

use super::{LiveSeed, PlanSet, charge::Charge};
use crate::backend::{Backend, OwnMemory, Queue, nothing};

/// What a seed reuses from pass to pass: its queue, and memory in which nothing is kept.
#[derive(Debug)]
pub(super) struct Scratch {
    pub(super) queue: Box<dyn Queue>,
    pub(super) workspace: OwnMemory,
    pub(super) updates: OwnMemory,
    /// Where a forward leaves the sum of its output's squares.
    pub(super) flag: OwnMemory,
    /// What it weighs, in the weight of the kernel that runs on it.
    charge: Option<Charge>,
}

impl Scratch {
    pub(super) fn new(backend: &dyn Backend) -> Self {
        let queue = backend.open_queue(false);
        Self { queue, workspace: nothing(), updates: nothing(), flag: nothing(), charge: None }
    }

    /// Grows what is too small for a plan. Not part of a pass in the steady state.
    pub(super) fn fit(&mut self, backend: &dyn Backend, live: &LiveSeed, plans: &PlanSet) {
        let mut has_grown = self.charge.is_none();
        let mut grow = |memory: &mut OwnMemory, bytes: usize| {
            if memory.lack().is_some() {
                // What could not be had once is asked for again, or is not needed now.
                *memory = nothing();
            }
            if memory.len_bytes() < bytes {
                // First, so that the two are not there at the same time.
                *memory = nothing();
                *memory = backend.allocate(bytes);
                has_grown = true;
            }
        };
        grow(&mut self.workspace, plans.workspace_bytes());
        grow(&mut self.flag, FLAG_BYTES);
        let is_updated = !plans.updates.is_empty();
        grow(&mut self.updates, if is_updated { live.kernel().buffer_layout().total_bytes() } else { 0 });
        if has_grown {
            let bytes = self.workspace.len_bytes() + self.updates.len_bytes() + self.flag.len_bytes();
            self.charge.get_or_insert_with(|| live.kernel().charge(0)).set(bytes);
        }
    }

    /// Where its runs go.
    pub(super) fn queue(&mut self) -> &mut dyn Queue {
        &mut *self.queue
    }
}

/// Room for the sum of an output's squares, on a cache line of its own.
const FLAG_BYTES: usize = 64;
