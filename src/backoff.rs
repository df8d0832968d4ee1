//! How long to wait before trying again: exponential, bounded, jittered.
//!
//! Pure arithmetic; whoever waits brings the clock. Retries, respawned actors and seeds in error recovery
//! share it.

use std::time::Duration;

/// A growing delay: `first`, then `factor` times as long with every attempt, never above `max`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backoff {
    /// The delay after the first failure.
    pub first: Duration,
    /// The longest delay.
    pub max: Duration,
    /// By how much the delay grows from one attempt to the next; below 1 counts as 1.
    pub factor: f64,
    /// The part of a delay that chance may take away, in [0, 1]: 0 is punctual, 1 is anything from 0.
    ///
    /// Jitter only shortens, so `max` holds with it.
    pub jitter: f64,
}

impl Default for Backoff {
    /// 100 ms, doubling up to 10 s, half of it left to chance.
    fn default() -> Self {
        Self { first: Duration::from_millis(100), max: Duration::from_secs(10), factor: 2.0, jitter: 0.5 }
    }
}

impl Backoff {
    /// The delay after `failures` failures in a row; none after none.
    pub fn delay(&self, failures: u32, jitter: &mut Jitter) -> Duration {
        let Some(exponent) = failures.checked_sub(1) else {
            return Duration::ZERO;
        };
        let factor = if self.factor.is_finite() { self.factor.max(1.0) } else { 1.0 };
        let grown = self.first.as_secs_f64() * factor.powi(exponent.min(1024) as i32);
        // `min` also takes the infinity that a long row of failures grows to.
        let seconds = grown.min(self.max.as_secs_f64());
        let share = self.jitter.clamp(0.0, 1.0) * jitter.unit();
        Duration::try_from_secs_f64(seconds * (1.0 - share)).unwrap_or(self.max).min(self.max)
    }
}

/// A source of chance for jitter (SplitMix64): small, seedable, not for secrets.
#[derive(Clone, Debug)]
pub struct Jitter(u64);

impl Jitter {
    /// The same seed gives the same delays.
    pub fn seeded(seed: u64) -> Self {
        Self(seed)
    }

    /// A seed that differs between processes and calls, from the standard library's random hash keys.
    pub fn from_process() -> Self {
        use std::hash::{BuildHasher, RandomState};
        Self(RandomState::new().hash_one(std::process::id()))
    }

    /// A number in [0, 1).
    pub fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn without_jitter_delays_double_up_to_the_limit() {
        let backoff = Backoff { jitter: 0.0, ..Backoff::default() };
        let mut jitter = Jitter::seeded(1);
        let delays: Vec<_> = (0..=9).map(|n| backoff.delay(n, &mut jitter).as_millis()).collect();
        assert_eq!(delays, [0, 100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        assert_eq!(backoff.delay(u32::MAX, &mut jitter), backoff.max);
    }

    proptest! {
        #[test]
        fn jitter_only_shortens(seed: u64, failures in 1u32..2000, share in 0.0f64..=1.0) {
            let jittered = Backoff { jitter: share, ..Backoff::default() };
            let punctual = Backoff { jitter: 0.0, ..Backoff::default() };
            let mut jitter = Jitter::seeded(seed);
            let full = punctual.delay(failures, &mut jitter);
            let delay = jittered.delay(failures, &mut jitter);
            prop_assert!(delay <= full);
            prop_assert!(delay.as_secs_f64() >= full.as_secs_f64() * (1.0 - share) - 1e-9);
        }
    }

    #[test]
    fn two_streams_of_chance_differ() {
        let (mut a, mut b) = (Jitter::seeded(1), Jitter::seeded(2));
        assert!((0..8).any(|_| a.unit() != b.unit()));
    }
}
