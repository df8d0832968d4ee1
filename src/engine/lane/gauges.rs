//! A lane's numbers, read by anyone without asking its thread.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use crate::telemetry::{Counter, Histogram};

/// What a lane holds and has done.
#[derive(Debug, Default)]
pub struct LaneGauges {
    tickets: AtomicU64,
    saved_bytes: AtomicU64,
    forwards: Counter,
    backwards: Counter,
    refusals: Counter,
    service: Histogram,
    supply_waits: Arc<Counter>,
}

impl LaneGauges {
    /// Tickets taken and not yet spent.
    pub fn tickets(&self) -> u64 {
        self.tickets.load(Ordering::Relaxed)
    }

    /// Bytes that those tickets hold.
    pub fn saved_bytes(&self) -> u64 {
        self.saved_bytes.load(Ordering::Relaxed)
    }

    /// Forward passes that were answered with a result.
    pub fn forwards(&self) -> u64 {
        self.forwards.get()
    }

    /// Backward passes that were answered with a result.
    pub fn backwards(&self) -> u64 {
        self.backwards.get()
    }

    /// Submissions that were refused.
    pub fn refusals(&self) -> u64 {
        self.refusals.get()
    }

    /// Time from taking a submission to publishing its completion.
    pub fn service(&self) -> &Histogram {
        &self.service
    }

    /// How often the lane's threads came to the supply of kernels, where they might have waited.
    pub fn supply_waits(&self) -> &Arc<Counter> {
        &self.supply_waits
    }

    pub(super) fn hold(&self, tickets: u64, saved_bytes: u64) {
        self.tickets.store(tickets, Ordering::Relaxed);
        self.saved_bytes.store(saved_bytes, Ordering::Relaxed);
    }

    pub(super) fn count_forward(&self) {
        self.forwards.increment();
    }

    pub(super) fn count_backward(&self) {
        self.backwards.increment();
    }

    pub(super) fn count_refusal(&self) {
        self.refusals.increment();
    }
}
