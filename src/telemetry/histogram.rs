//! Times in fixed buckets: recorded from any thread without waiting, summed up when somebody asks.

use std::{
    fmt,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use serde::{Deserialize, Serialize};

/// Each power of two is cut into `2^SUB_BITS` equal buckets, so a bucket's middle is within 1/32 of
/// every value in it.
const SUB_BITS: u32 = 4;
const SUB_BUCKETS: usize = 1 << SUB_BITS;
/// Values from `2^(MAX_EXPONENT + 1)` ns (137 s) share the last bucket.
const MAX_EXPONENT: u32 = 36;
const BUCKETS: usize = (MAX_EXPONENT - SUB_BITS + 2) as usize * SUB_BUCKETS;

/// A latency histogram of fixed size (about 4.4 kB on the heap, taken with the first value) that never locks and never
/// grows.
///
/// Units: nanoseconds. Values below 16 ns are exact, those up to 137 s are reported within 3.2 %,
/// longer ones count as 137 s in the percentiles and in full in mean and maximum.
pub struct Histogram {
    /// Ten thousand dormant seeds have a histogram each, and nothing in it.
    buckets: OnceLock<Box<[AtomicU64; BUCKETS]>>,
    sum_ns: AtomicU64,
    max_ns: AtomicU64,
}

/// What a histogram held when it was asked. All times are zero when nothing was recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Values recorded.
    pub count: u64,
    /// The arithmetic mean, in nanoseconds.
    pub mean_ns: u64,
    /// The median, in nanoseconds.
    pub p50_ns: u64,
    /// The 99th percentile, in nanoseconds.
    pub p99_ns: u64,
    /// The longest, in nanoseconds; exact.
    pub max_ns: u64,
}

impl Histogram {
    /// An empty histogram.
    pub const fn new() -> Self {
        Self { buckets: OnceLock::new(), sum_ns: AtomicU64::new(0), max_ns: AtomicU64::new(0) }
    }

    /// Takes its memory, so that no value has to.
    pub fn reserve(&self) {
        self.taken();
    }

    /// Counts one value in nanoseconds: from the second on a few relaxed atomic operations, nothing else.
    pub fn record(&self, ns: u64) {
        self.taken()[bucket_of(ns)].fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
        self.max_ns.fetch_max(ns, Ordering::Relaxed);
    }

    /// Counts one duration; 584 years and more count as that.
    pub fn record_duration(&self, time: Duration) {
        self.record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    /// How many values were recorded.
    pub fn count(&self) -> u64 {
        self.loaded().sum()
    }

    /// The arithmetic mean in nanoseconds, 0 when empty.
    pub fn mean(&self) -> u64 {
        self.sum_ns.load(Ordering::Relaxed).checked_div(self.count()).unwrap_or(0)
    }

    /// The median in nanoseconds, 0 when empty.
    pub fn p50(&self) -> u64 {
        self.quantile(0.5)
    }

    /// The 99th percentile in nanoseconds, 0 when empty.
    pub fn p99(&self) -> u64 {
        self.quantile(0.99)
    }

    /// The smallest recorded value that at least `q` (0 to 1) of all values do not exceed, to the
    /// middle of its bucket and never above the maximum; 0 when empty.
    pub fn quantile(&self, q: f64) -> u64 {
        // One pass of loads, so that the rank and the counts below it are of one moment.
        let counts: Vec<u64> = self.loaded().collect();
        let total: u64 = counts.iter().sum();
        if total == 0 {
            return 0;
        }
        let rank = ((q.clamp(0.0, 1.0) * total as f64).ceil() as u64).clamp(1, total);
        let mut seen = 0;
        let bucket = counts.iter().position(|count| {
            seen += count;
            seen >= rank
        });
        let middle = middle_of(bucket.unwrap_or(BUCKETS - 1));
        middle.min(self.max_ns.load(Ordering::Relaxed))
    }

    /// Count, mean, percentiles and maximum in one reading.
    ///
    /// Values recorded while it reads may be in some of the numbers and not in others.
    pub fn summary(&self) -> Summary {
        Summary {
            count: self.count(),
            mean_ns: self.mean(),
            p50_ns: self.p50(),
            p99_ns: self.p99(),
            max_ns: self.max_ns.load(Ordering::Relaxed),
        }
    }

    fn taken(&self) -> &[AtomicU64; BUCKETS] {
        self.buckets.get_or_init(|| Box::new([const { AtomicU64::new(0) }; BUCKETS]))
    }

    /// How many values are in each bucket; of an empty histogram there may be none.
    fn loaded(&self) -> impl Iterator<Item = u64> {
        self.buckets
            .get()
            .into_iter()
            .flat_map(|buckets| buckets.iter())
            .map(|count| count.load(Ordering::Relaxed))
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.summary().fmt(f)
    }
}

fn bucket_of(ns: u64) -> usize {
    if ns < SUB_BUCKETS as u64 {
        return ns as usize;
    }
    let exponent = ns.ilog2();
    if exponent > MAX_EXPONENT {
        return BUCKETS - 1;
    }
    let sub = (ns >> (exponent - SUB_BITS)) as usize & (SUB_BUCKETS - 1);
    (exponent - SUB_BITS + 1) as usize * SUB_BUCKETS + sub
}

fn middle_of(bucket: usize) -> u64 {
    if bucket < SUB_BUCKETS {
        return bucket as u64;
    }
    let shift = (bucket / SUB_BUCKETS - 1) as u32;
    let low = ((SUB_BUCKETS + bucket % SUB_BUCKETS) as u64) << shift;
    low + ((1 << shift) - 1) / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_falls_into_a_bucket_that_reports_it_within_a_thirtieth() {
        let mut value = 1_u64;
        while value < 1 << (MAX_EXPONENT + 1) {
            for ns in [value - 1, value, value + value / 3] {
                let ns = ns.min((1 << (MAX_EXPONENT + 1)) - 1);
                let told = middle_of(bucket_of(ns));
                assert!(told.abs_diff(ns) * 31 <= ns, "{ns} is told as {told}");
            }
            value += 1 + value / 100;
        }
    }

    #[test]
    fn buckets_are_in_order_and_none_is_skipped() {
        let mut last = 0;
        for ns in 0..100_000 {
            let bucket = bucket_of(ns);
            assert!(bucket == last || bucket == last + 1, "{ns} jumps from {last} to {bucket}");
            last = bucket;
        }
        assert_eq!(bucket_of((1 << (MAX_EXPONENT + 1)) - 1), BUCKETS - 1);
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn percentiles_of_one_to_a_thousand_microseconds() {
        let histogram = Histogram::new();
        (1..=1000_u64).for_each(|us| histogram.record(us * 1000));
        let near = |told: u64, truth: u64| assert!(told.abs_diff(truth) * 31 <= truth, "{told} for {truth}");
        near(histogram.p50(), 500_000);
        near(histogram.p99(), 990_000);
        near(histogram.quantile(0.0), 1000);
        assert_eq!(histogram.mean(), 500_500);
        assert_eq!(histogram.summary().max_ns, 1_000_000);
        near(histogram.quantile(1.0), 1_000_000);
    }

    #[test]
    fn an_empty_histogram_is_all_zero_and_one_value_is_itself() {
        let histogram = Histogram::default();
        assert_eq!(histogram.summary(), Summary::default());
        histogram.record_duration(Duration::from_nanos(7));
        let seven = Summary { count: 1, mean_ns: 7, p50_ns: 7, p99_ns: 7, max_ns: 7 };
        assert_eq!(histogram.summary(), seven);
    }

    #[test]
    fn threads_lose_no_value() {
        let histogram = Histogram::new();
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                let histogram = &histogram;
                scope.spawn(move || (0..1000).for_each(|i| histogram.record(thread * 1000 + i)));
            }
        });
        assert_eq!(histogram.count(), 4000);
        assert_eq!(histogram.mean(), 1999);
    }
}
