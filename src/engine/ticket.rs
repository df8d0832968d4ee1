//! Tickets: what a forward pass leaves for its backward.

use std::sync::Arc;

use smallvec::SmallVec;

use super::{
    EngineError, LiveSeed, PlanSet,
    blend::{BlendPlan, Factors},
};
use crate::{
    backend::HostMemory,
    id::{SeedIndex, TicketId},
    tensor::{DType, Shape},
    wire::{Block, Wants},
};

/// How much one session may hold in tickets. One for each session; numbers its tickets too.
#[derive(Clone, Debug)]
pub struct Quota {
    max_tickets: usize,
    max_saved_bytes: u64,
    tickets: usize,
    saved_bytes: u64,
    taken: u64,
}

impl Quota {
    /// A quota of which nothing is used.
    pub fn new(max_tickets: usize, max_saved_bytes: u64) -> Self {
        Self { max_tickets, max_saved_bytes, tickets: 0, saved_bytes: 0, taken: 0 }
    }

    /// Tickets outstanding.
    pub fn tickets(&self) -> usize {
        self.tickets
    }

    /// Bytes they hold.
    pub fn saved_bytes(&self) -> u64 {
        self.saved_bytes
    }

    /// Whether one more ticket of so many bytes may be taken.
    pub(super) fn check(&self, bytes: u64) -> Result<(), EngineError> {
        if self.tickets >= self.max_tickets {
            return Err(EngineError::Quota { what: "tickets", limit: self.max_tickets as u64 });
        }
        if self.saved_bytes.saturating_add(bytes) > self.max_saved_bytes {
            return Err(EngineError::Quota { what: "saved bytes", limit: self.max_saved_bytes });
        }
        Ok(())
    }

    pub(super) fn take(&mut self, bytes: u64) -> TicketId {
        self.tickets += 1;
        self.saved_bytes += bytes;
        self.taken += 1;
        TicketId(self.taken)
    }

    pub(super) fn give_back(&mut self, bytes: u64) {
        self.tickets = self.tickets.saturating_sub(1);
        self.saved_bytes = self.saved_bytes.saturating_sub(bytes);
    }

    /// Why a layer does not have a ticket.
    pub(super) fn missing(&self, ticket: TicketId) -> EngineError {
        if (1..=self.taken).contains(&ticket.0) {
            EngineError::TicketSpent { ticket }
        } else {
            EngineError::TicketUnknown { ticket }
        }
    }
}

/// One seed's part of a ticket.
#[derive(Debug)]
pub(super) struct TicketSeed {
    pub(super) seed: SeedIndex,
    pub(super) live: Arc<LiveSeed>,
    pub(super) plans: Arc<PlanSet>,
    pub(super) alpha: f32,
    /// What the seed gave; the blend's gradient reads it.
    pub(super) output: HostMemory,
    /// What its own gradient reads.
    pub(super) saved: HostMemory,
}

/// What a forward pass leaves for its backward. The kernels that ran stay alive with it, so that a swap
/// between the two passes changes nothing.
#[derive(Debug)]
pub(super) struct Ticket {
    pub(super) seeds: SmallVec<[TicketSeed; 4]>,
    pub(super) factors: Factors,
    pub(super) blend: Arc<BlendPlan>,
    pub(super) blend_saved: HostMemory,
    pub(super) input: Block,
    pub(super) input_shape: Shape,
    pub(super) output_shape: Shape,
    pub(super) dtype: DType,
    pub(super) wants: Wants,
    pub(super) rng_seed: u64,
    /// What the quota was charged.
    pub(super) bytes: u64,
}

impl Ticket {
    pub(super) fn live_mask(&self) -> u64 {
        self.seeds.iter().fold(0, |mask, seed| mask | 1u64.checked_shl(seed.seed.0.into()).unwrap_or(0))
    }

    /// Bytes of all its seeds' blocks of parameters.
    pub(super) fn parameter_bytes(&self) -> usize {
        self.seeds.iter().map(|seed| seed.live.kernel().parameter_layout().total_bytes()).sum()
    }
}
