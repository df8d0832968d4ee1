//! How much of something there was in the last seconds.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// The seconds that are looked back on.
const SECONDS: u64 = 10;
const SLOTS: usize = 16;

/// Amounts by the second, of the last ten seconds. Written by one thread, read by any; takes no lock.
#[derive(Debug)]
pub struct Recent {
    start: Instant,
    /// A second, counted from 1, above its amount in 32 bits; 0 where there was none.
    slots: [AtomicU64; SLOTS],
}

impl Recent {
    /// Nothing yet.
    pub fn new(start: Instant) -> Self {
        Self { start, slots: [const { AtomicU64::new(0) }; SLOTS] }
    }

    /// Adds an amount to the second of `at`.
    pub fn add(&self, at: Instant, amount: u32) {
        self.put(self.since_start(at).as_secs(), amount.into());
    }

    /// Adds the nanoseconds from one moment to another, each to its own second.
    pub fn add_span(&self, from: Instant, to: Instant) {
        let (from, to) = (self.since_start(from), self.since_start(to));
        let last = to.as_secs();
        // What is older is not looked at any more.
        for second in from.as_secs().max(last.saturating_sub(SECONDS))..=last {
            let begin = from.max(Duration::from_secs(second));
            let end = to.min(Duration::from_secs(second + 1));
            self.put(second, u64::try_from(end.saturating_sub(begin).as_nanos()).unwrap_or(u64::MAX));
        }
    }

    /// The amount for each second, on the average of the last ten or of those there were.
    pub fn per_second(&self, now: Instant) -> f64 {
        let now = self.since_start(now);
        let first = now.as_secs().saturating_sub(SECONDS - 1);
        let amounts = self.slots.iter().map(|slot| slot.load(Ordering::Relaxed));
        let counted = amounts.filter(|slot| ((first + 1)..=(now.as_secs() + 1)).contains(&(slot >> 32)));
        let sum: u64 = counted.map(|slot| slot & u64::from(u32::MAX)).sum();
        let seconds = now.saturating_sub(Duration::from_secs(first)).as_secs_f64();
        if seconds > 0.0 { sum as f64 / seconds } else { 0.0 }
    }

    fn put(&self, second: u64, amount: u64) {
        let slot = &self.slots[second as usize % SLOTS];
        let (known, stamp) = (slot.load(Ordering::Relaxed), second + 1);
        let before = if known >> 32 == stamp { known & u64::from(u32::MAX) } else { 0 };
        slot.store(stamp << 32 | (before + amount).min(u32::MAX.into()), Ordering::Relaxed);
    }

    fn since_start(&self, at: Instant) -> Duration {
        at.saturating_duration_since(self.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ten_seconds_count_and_older_ones_do_not() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let recent = Recent::new(start);
        assert_eq!(recent.per_second(start), 0.0);
        recent.add(at(100), 3);
        recent.add(at(900), 2);
        assert_eq!(recent.per_second(at(2_000)), 2.5, "of the two seconds that there were");
        recent.add(at(9_500), 5);
        assert_eq!(
            recent.per_second(at(9_999) + Duration::from_millis(1)),
            5.0 / 9.0,
            "the first second is over"
        );
        recent.add(at(26_000), 1);
        assert_eq!(recent.per_second(at(27_000)), 1.0 / 9.0);
        assert_eq!(recent.per_second(at(99_000)), 0.0);
    }

    #[test]
    fn a_span_is_divided_among_its_seconds() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let recent = Recent::new(start);
        recent.add_span(at(500), at(3_000));
        assert_eq!(recent.per_second(at(5_000)), 5e8);
        recent.add_span(at(5_000), at(60_000));
        let share = recent.per_second(at(60_000));
        assert!((share - 1e9).abs() < 1e3, "{share}: all of the time, however long it lasts");
    }
}
