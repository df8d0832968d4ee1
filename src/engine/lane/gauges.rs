//! A lane's numbers, read by anyone without asking its thread.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    engine::turns::Used,
    telemetry::{Counter, Histogram, Recent},
};

/// What a lane holds and has done.
#[derive(Debug)]
pub struct LaneGauges {
    tickets: AtomicU64,
    saved_bytes: AtomicU64,
    forwards: Counter,
    backwards: Counter,
    refusals: Counter,
    service: Histogram,
    supply_waits: Arc<Counter>,
    pass_plans: Counter,
    passes: Histogram,
    computed_ns: Counter,
    waited_ns: Counter,
    recent: RecentGauges,
}

#[derive(Debug)]
struct RecentGauges {
    passes: Recent,
    computing: Recent,
    waiting: Recent,
}

/// What a lane did in the last ten seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RecentWork {
    /// Passes, each second.
    pub passes: f64,
    /// The part of the time in which a pass ran, 0 to 1.
    pub computing: f64,
    /// The part of the time in which a pass waited for its turn, 0 to 1.
    pub waiting: f64,
}

impl Default for LaneGauges {
    fn default() -> Self {
        let recent = || Recent::new(Instant::now());
        Self {
            tickets: AtomicU64::new(0),
            saved_bytes: AtomicU64::new(0),
            forwards: Counter::new(),
            backwards: Counter::new(),
            refusals: Counter::new(),
            service: Histogram::new(),
            supply_waits: Arc::default(),
            pass_plans: Counter::new(),
            passes: Histogram::new(),
            computed_ns: Counter::new(),
            waited_ns: Counter::new(),
            recent: RecentGauges { passes: recent(), computing: recent(), waiting: recent() },
        }
    }
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

    /// Plans that passes have had to make or to wait for, because nobody had made them beside.
    pub fn pass_plans(&self) -> u64 {
        self.pass_plans.get()
    }

    /// Time of passes from their turn to their end, refused ones included.
    pub fn passes(&self) -> &Histogram {
        &self.passes
    }

    /// The time of all passes together.
    pub fn computed(&self) -> Duration {
        Duration::from_nanos(self.computed_ns.get())
    }

    /// The time that passes have waited for their turn, together.
    pub fn waited(&self) -> Duration {
        Duration::from_nanos(self.waited_ns.get())
    }

    /// The last ten seconds.
    pub fn recent(&self, now: Instant) -> RecentWork {
        let RecentGauges { passes, computing, waiting } = &self.recent;
        RecentWork {
            passes: passes.per_second(now),
            computing: computing.per_second(now) / 1e9,
            waiting: waiting.per_second(now) / 1e9,
        }
    }

    /// Counts a pass that has had its turn. By the lane's thread alone.
    pub(super) fn passed(&self, used: &Used) {
        let Used { began, ended, waited } = *used;
        let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let time = ended.saturating_duration_since(began);
        self.passes.record_duration(time);
        self.computed_ns.add(ns(time));
        self.recent.passes.add(ended, 1);
        self.recent.computing.add_span(began, ended);
        if !waited.is_zero() {
            self.waited_ns.add(ns(waited));
            self.recent.waiting.add_span(began.checked_sub(waited).unwrap_or(began), began);
        }
    }

    pub(super) fn count_plans(&self, count: u64) {
        if count > 0 {
            self.pass_plans.add(count);
        }
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
