//! Tickets: what a forward pass leaves for its backward.

use std::sync::Arc;

use smallvec::SmallVec;

use super::{
    EngineError, Holdings, LiveSeed, PlanSet, QuotaLimits, Role, SessionLedger,
    blend::{BlendPlan, Mix},
};
use crate::{
    backend::OwnMemory,
    id::{SeedIndex, TicketId},
    tensor::{DType, Shape},
    wire::{Block, Wants},
};

/// What one session holds in tickets, entered in its ledger. One for each session; numbers its tickets too.
#[derive(Debug)]
pub struct Quota {
    ledger: Arc<SessionLedger>,
    tickets: usize,
    saved_bytes: u64,
    /// Entered for a ticket that a pass is to leave.
    reserved: Holdings,
    taken: u64,
}

impl Quota {
    /// A quota of which nothing is used, in a ledger of its own. 0 is no limit.
    pub fn new(max_tickets: usize, max_saved_bytes: u64) -> Self {
        let session = Holdings { tickets: max_tickets as u64, bytes: max_saved_bytes, ..Holdings::NONE };
        Self::of(SessionLedger::alone(QuotaLimits { session, user: Holdings::NONE }))
    }

    /// Tickets of the session whose ledger this is.
    pub fn of(ledger: Arc<SessionLedger>) -> Self {
        Self { ledger, tickets: 0, saved_bytes: 0, reserved: Holdings::NONE, taken: 0 }
    }

    /// Tickets outstanding.
    pub fn tickets(&self) -> usize {
        self.tickets
    }

    /// Bytes they hold.
    pub fn saved_bytes(&self) -> u64 {
        self.saved_bytes
    }

    /// Reserves one more ticket of so many bytes: other sessions of the user may be about to take theirs. What a pass
    /// reserves in vain goes back with [`settle`](Self::settle).
    pub(super) fn check(&mut self, bytes: u64) -> Result<(), EngineError> {
        let missing = Holdings {
            tickets: 1 - self.reserved.tickets,
            bytes: bytes.saturating_sub(self.reserved.bytes),
            ..Holdings::NONE
        };
        self.ledger.enter(&missing)?;
        self.reserved.tickets += missing.tickets;
        self.reserved.bytes += missing.bytes;
        Ok(())
    }

    /// Takes the ticket that was reserved; with more bytes than that where it holds more, for it is there already.
    pub(super) fn take(&mut self, bytes: u64) -> TicketId {
        let reserved = std::mem::take(&mut self.reserved);
        let held = Holdings { tickets: 1, bytes, ..Holdings::NONE };
        let beyond = |held: u64, reserved: u64| held.saturating_sub(reserved);
        self.ledger.enter_anyway(&Holdings {
            tickets: beyond(held.tickets, reserved.tickets),
            bytes: beyond(held.bytes, reserved.bytes),
            ..Holdings::NONE
        });
        self.ledger.strike(&Holdings { bytes: beyond(reserved.bytes, held.bytes), ..Holdings::NONE });
        self.tickets += 1;
        self.saved_bytes += bytes;
        self.taken += 1;
        TicketId(self.taken)
    }

    /// Numbers the next ticket: `after` and one more. Numbers only rise.
    pub(super) fn number_after(&mut self, after: u64) {
        self.taken = self.taken.max(after);
    }

    /// Gives back what the last pass has reserved and not used.
    pub(super) fn settle(&mut self) {
        self.ledger.strike(&std::mem::take(&mut self.reserved));
    }

    pub(super) fn give_back(&mut self, bytes: u64) {
        self.ledger.strike(&Holdings { tickets: 1, bytes, ..Holdings::NONE });
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

impl Drop for Quota {
    fn drop(&mut self) {
        self.settle();
        let (tickets, bytes) = (self.tickets as u64, self.saved_bytes);
        self.ledger.strike(&Holdings { tickets, bytes, ..Holdings::NONE });
    }
}

/// One slot's part of a ticket.
#[derive(Debug)]
pub(super) struct TicketSeed {
    pub(super) seed: SeedIndex,
    pub(super) live: Arc<LiveSeed>,
    pub(super) plans: Arc<PlanSet>,
    pub(super) role: Role,
    pub(super) alpha: f32,
    /// What it gave; the blend's gradient reads it. Of no bytes where it does not go into the blend, where it is y, or
    /// where the forward is run again for it.
    pub(super) output: OwnMemory,
    /// What its own gradient reads. Of no bytes where the forward is run again for it.
    pub(super) saved: OwnMemory,
    /// Its buffers as the forward found them, where that has updated them and is run again.
    pub(super) buffers: OwnMemory,
    /// Whether its forward, run again, has failed: it gives zeros.
    pub(super) is_lost: bool,
}

impl TicketSeed {
    /// Bytes that it holds.
    pub(super) fn held_bytes(&self) -> usize {
        self.output.len_bytes() + self.saved.len_bytes() + self.buffers.len_bytes()
    }

    /// Whether it has a gradient of x to give.
    pub(super) fn gives_input(&self) -> bool {
        !self.is_lost && self.plans.backward.as_ref().is_some_and(|backward| backward.gives_input)
    }
}

/// Those that go into the blend by a factor, in seed order.
pub(super) fn blended(seeds: &[TicketSeed]) -> impl Iterator<Item = &TicketSeed> {
    seeds.iter().filter(|seed| seed.role == Role::Blended)
}

/// What a forward pass leaves for its backward. The kernels that ran stay alive with it, so that a swap
/// between the two passes changes nothing.
#[derive(Debug)]
pub(super) struct Ticket {
    /// Seeds and, last, the host.
    pub(super) seeds: SmallVec<[TicketSeed; 4]>,
    pub(super) mix: Mix,
    /// None where the one seed that was blended has written y itself.
    pub(super) blend: Option<Arc<BlendPlan>>,
    pub(super) blend_saved: OwnMemory,
    pub(super) input: Block,
    pub(super) input_shape: Shape,
    pub(super) output_shape: Shape,
    pub(super) dtype: DType,
    pub(super) wants: Wants,
    pub(super) rng_seed: u64,
    /// The step in whose samples the norms of gradients are to be noted.
    pub(super) sampled: Option<u64>,
    /// What the quota was charged.
    pub(super) bytes: u64,
}

impl Ticket {
    /// Bytes of all its seeds' blocks of parameters.
    pub(super) fn parameter_bytes(&self) -> usize {
        self.seeds.iter().map(|seed| seed.live.kernel().parameter_layout().total_bytes()).sum()
    }
}

/// Bit s is set if slot s is among them.
pub(super) fn mask(seeds: &[TicketSeed]) -> u64 {
    seeds.iter().fold(0, |mask, seed| mask | 1u64.checked_shl(seed.seed.0.into()).unwrap_or(0))
}
