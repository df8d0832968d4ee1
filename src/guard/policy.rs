//! When a breaker opens, for how long, and what closes it.

use std::time::Duration;

use crate::config;

/// The rules of a breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerPolicy {
    /// Failures in a row that open it, at least 1.
    pub failure_threshold: u32,
    /// How long it stays open the first time.
    pub open_for: Duration,
    /// The longest it stays open: a failed trial doubles the time up to this. No more than `open_for` is no
    /// doubling.
    pub max_open_for: Duration,
    /// Successes in a row that close it again, at least 1.
    pub success_threshold: u32,
    /// Trial calls at a time, at least 1.
    pub trial_calls: u32,
    /// How long all places for trials may be taken before their calls count as lost and it opens again.
    pub max_wait_in_half_open: Duration,
    /// What opens it beside failures in a row.
    pub window: WindowPolicy,
}

/// The shares of the last calls that open a breaker, as resilience4j's count-based window has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowPolicy {
    /// How many of the last calls are looked at, at least 1.
    pub size: u32,
    /// How many there must be before a share counts; more than `size` is `size`.
    pub minimum_calls: u32,
    /// The share of failures that opens it, in percent; 0 is off.
    pub failure_rate: u32,
    /// The share of slow calls that opens it, in percent; 0 is off.
    pub slow_call_rate: u32,
    /// What takes longer is a slow call, whether it succeeds or fails.
    pub slow_call: Duration,
}

impl Default for BreakerPolicy {
    /// What an empty configuration means.
    fn default() -> Self {
        Self::from(&config::Breaker::default())
    }
}

impl From<&config::Breaker> for BreakerPolicy {
    fn from(settings: &config::Breaker) -> Self {
        Self {
            failure_threshold: settings.failure_threshold.max(1),
            open_for: settings.open_for,
            max_open_for: settings.max_open_for,
            success_threshold: settings.success_threshold.max(1),
            trial_calls: settings.trial_calls.max(1),
            max_wait_in_half_open: settings.max_wait_in_half_open,
            window: WindowPolicy {
                size: settings.sliding_window_size,
                minimum_calls: settings.minimum_number_of_calls,
                failure_rate: settings.failure_rate_threshold,
                slow_call_rate: settings.slow_call_rate_threshold,
                slow_call: settings.slow_call_duration_threshold,
            },
        }
    }
}

impl BreakerPolicy {
    /// How long it stays open after this many trials that failed one after the other.
    pub(super) fn open_time(&self, failed_trials: u32) -> Duration {
        let most = self.max_open_for.max(self.open_for);
        self.open_for.saturating_mul(1u32.checked_shl(failed_trials).unwrap_or(u32::MAX)).min(most)
    }
}

impl WindowPolicy {
    /// Whether a call that took this long is slow; none is where slow calls do not count.
    pub(super) fn is_slow(&self, took: Duration) -> bool {
        self.slow_call_rate > 0 && took > self.slow_call
    }
}
