//! Kernels known not to be had, in memory: a bounded number, each for a while.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::Negative;
use crate::{clock::Clock, id::KernelId};

/// A hundred years: what is believed for longer is so as long as the process lives.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

#[derive(Debug)]
pub(super) struct Negatives {
    known: HashMap<KernelId, Known>,
    max_entries: usize,
}

#[derive(Debug)]
struct Known {
    negative: Negative,
    /// Until when it is believed, by the clock that never goes back: a calendar that was a year ahead for a
    /// while would have it believed for a year.
    until: Instant,
}

impl Negatives {
    pub(super) fn new(max_entries: usize) -> Self {
        Self { known: HashMap::new(), max_entries }
    }

    /// What is known of a kernel, unless that is out of date; until when, as the calendar stands now.
    pub(super) fn get(&mut self, id: &KernelId, clock: &dyn Clock) -> Option<Negative> {
        let (known, now) = (self.known.get(id)?, clock.now());
        if known.until > now {
            let left_ms = i64::try_from((known.until - now).as_millis()).unwrap_or(i64::MAX);
            let until_unix_ms = clock.unix_ms().saturating_add(left_ms);
            return Some(Negative { until_unix_ms, ..known.negative.clone() });
        }
        self.known.remove(id);
        None
    }

    /// Remembers for as long as the calendar now leaves it; over the bound, first what is out of date goes, then
    /// what would be soonest.
    pub(super) fn insert(&mut self, id: KernelId, negative: Negative, clock: &dyn Clock) {
        let now = clock.now();
        let left_ms = negative.until_unix_ms.saturating_sub(clock.unix_ms()).max(0).unsigned_abs();
        let left = Duration::from_millis(left_ms).min(FOREVER);
        if self.known.len() >= self.max_entries && !self.known.contains_key(&id) {
            self.known.retain(|_, known| known.until > now);
        }
        if self.known.len() >= self.max_entries && !self.known.contains_key(&id) {
            let soonest = self.known.iter().min_by_key(|(_, known)| known.until);
            match soonest.map(|(id, _)| id.clone()) {
                Some(soonest) => self.known.remove(&soonest),
                None => return,
            };
        }
        self.known.insert(id, Known { negative, until: now + left });
    }

    pub(super) fn remove(&mut self, id: &KernelId) -> bool {
        self.known.remove(id).is_some()
    }

    pub(super) fn clear(&mut self) {
        self.known.clear();
    }

    pub(super) fn len(&self) -> usize {
        self.known.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    fn id(text: &str) -> KernelId {
        text.parse().unwrap()
    }

    fn negative(until_unix_ms: i64) -> Negative {
        Negative { code: "kernel.not_found".into(), reason: "none".into(), until_unix_ms, policy: None }
    }

    #[test]
    fn what_is_out_of_date_is_forgotten_and_the_bound_holds() {
        let (clock, mut negatives) = (ManualClock::default(), Negatives::new(2));
        let start = clock.unix_ms();
        negatives.insert(id("a"), negative(start + 10), &clock);
        negatives.insert(id("b"), negative(start + 20), &clock);
        negatives.insert(id("b"), negative(start + 30), &clock);
        clock.advance(Duration::from_millis(5));
        negatives.insert(id("c"), negative(start + 40), &clock);
        assert!(negatives.get(&id("a"), &clock).is_none());
        clock.advance(Duration::from_millis(24));
        assert_eq!(negatives.get(&id("b"), &clock).unwrap().until_unix_ms, start + 30);
        clock.advance(Duration::from_millis(1));
        assert!(negatives.get(&id("b"), &clock).is_none());
        assert_eq!(negatives.len(), 1);
        negatives.insert(id("d"), negative(i64::MAX), &clock);
        assert!(negatives.get(&id("d"), &clock).is_some());
        Negatives::new(0).insert(id("a"), negative(start + 10), &clock);
    }

    #[test]
    fn a_calendar_that_jumps_makes_no_belief_longer_or_shorter() {
        const YEAR_MS: i64 = 365 * 24 * 3_600_000;
        let (clock, mut negatives) = (ManualClock::default(), Negatives::new(2));
        let start = clock.unix_ms();
        for jump_ms in [-YEAR_MS, -3_600_000, 3_600_000, YEAR_MS] {
            clock.set_unix_ms(start);
            negatives.insert(id("a"), negative(clock.unix_ms() + 1000), &clock);
            clock.set_unix_ms(start + jump_ms);
            clock.advance(Duration::from_millis(999));
            let until_unix_ms = negatives.get(&id("a"), &clock).unwrap().until_unix_ms;
            assert_eq!(until_unix_ms - clock.unix_ms(), 1, "{jump_ms}");
            clock.advance(Duration::from_millis(1));
            assert!(negatives.get(&id("a"), &clock).is_none(), "{jump_ms}");
        }
    }
}
