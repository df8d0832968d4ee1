//! Where the supply layers read the time: injected, so that tests decide it.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rustix::time::{ClockId, clock_gettime};

/// By how much the calendars of nodes may differ, in milliseconds: what one notes as later than that is not
/// believed by another.
pub const NODES_DIFFER_MS: i64 = 5 * 60 * 1000;

/// A clock with two faces: one that never goes back, and the calendar.
pub trait Clock: Send + Sync + fmt::Debug {
    /// The time for measuring; never goes back.
    fn now(&self) -> Instant;

    /// Milliseconds since some moment, cheaper than [`now`](Self::now) and some milliseconds coarse; never goes
    /// back. For what is noted on every hit.
    fn coarse_ms(&self) -> u64;

    /// Milliseconds since 1970, for what outlives the process; may jump.
    fn unix_ms(&self) -> i64;
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn coarse_ms(&self) -> u64 {
        let time = clock_gettime(ClockId::MonotonicCoarse);
        let (seconds, nanoseconds) = (time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs());
        seconds * 1000 + nanoseconds / 1_000_000
    }

    fn unix_ms(&self) -> i64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
    }
}

/// A clock that stands still until it is told to go on; clones share the hand.
#[derive(Clone, Debug)]
pub struct ManualClock {
    start: Instant,
    start_unix_ms: i64,
    passed_ms: Arc<AtomicU64>,
    jumped_ms: Arc<AtomicI64>,
}

impl Default for ManualClock {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            start_unix_ms: 1_800_000_000_000,
            passed_ms: Arc::default(),
            jumped_ms: Arc::default(),
        }
    }
}

impl ManualClock {
    /// Moves both faces on, by whole milliseconds.
    pub fn advance(&self, by: Duration) {
        let by_ms = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        self.passed_ms.fetch_add(by_ms, Ordering::SeqCst);
    }

    /// Sets the calendar alone, as somebody does who corrects a machine's clock.
    pub fn set_unix_ms(&self, unix_ms: i64) {
        let jump = unix_ms.saturating_sub(self.unix_ms());
        self.jumped_ms.fetch_add(jump, Ordering::SeqCst);
    }

    fn passed_ms(&self) -> u64 {
        self.passed_ms.load(Ordering::SeqCst)
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Instant {
        self.start + Duration::from_millis(self.passed_ms())
    }

    fn coarse_ms(&self) -> u64 {
        self.passed_ms()
    }

    fn unix_ms(&self) -> i64 {
        let unmoved = self.start_unix_ms.saturating_add_unsigned(self.passed_ms());
        unmoved.saturating_add(self.jumped_ms.load(Ordering::SeqCst))
    }
}

/// Whole milliseconds of a duration, for statistics.
pub(crate) fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
