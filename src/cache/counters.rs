//! What a tier of bytes counts of itself.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{Answer, TierError, TierStats};

/// A tier's counters since the daemon started.
#[derive(Debug, Default)]
pub(super) struct Counters {
    hits: AtomicU64,
    misses: AtomicU64,
    negative_hits: AtomicU64,
    admissions: AtomicU64,
    evictions: AtomicU64,
    corrupt: AtomicU64,
    failures: AtomicU64,
    passed_over: AtomicU64,
}

impl Counters {
    /// Counts what a look-up said.
    pub(super) fn answered(&self, answer: &Answer) {
        let counter = match answer {
            Answer::Hit(_) => &self.hits,
            Answer::Negative(_) => &self.negative_hits,
            Answer::Miss => &self.misses,
            Answer::Corrupt => &self.corrupt,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a kernel taken in, or one passed over for its size.
    pub(super) fn put(&self, taken: bool) {
        let counter = if taken { &self.admissions } else { &self.passed_over };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts kernels put out.
    pub(super) fn evicted(&self, count: u64) {
        self.evictions.fetch_add(count, Ordering::Relaxed);
    }

    /// Counts a request that failed, and passes its error on.
    pub(super) fn failed(&self, error: TierError) -> TierError {
        self.failures.fetch_add(1, Ordering::Relaxed);
        error
    }

    /// The counters, with nothing said of the contents.
    pub(super) fn read(&self, tier: &str) -> TierStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        TierStats {
            tier: tier.to_owned(),
            hits: read(&self.hits),
            misses: read(&self.misses),
            negative_hits: read(&self.negative_hits),
            admissions: read(&self.admissions),
            evictions: read(&self.evictions),
            corrupt: read(&self.corrupt),
            failures: read(&self.failures),
            passed_over: read(&self.passed_over),
            ..TierStats::default()
        }
    }
}
