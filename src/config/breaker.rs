//! `[origin.breaker]` and `[cache.breaker]`: when a dependency that keeps failing is not asked for a while.

use std::time::Duration;

use super::section::section;

section! {
    /// A circuit breaker's settings; the same keys wherever one stands, and each dependency has a breaker of its
    /// own. The windows' keys are called as resilience4j calls them.
    Breaker {
        /// Failures in a row that open it.
        failure_threshold: u32 = 5, "failures", Restart;
        /// How long it stays open.
        open_for: Duration = Duration::from_secs(60), "time", Restart;
        /// The longest it stays open: each trial that fails doubles open_for up to this. No more than open_for
        /// is no doubling.
        max_open_for: Duration = Duration::from_secs(60), "time", Restart;
        /// Successes in a row that close it again.
        success_threshold: u32 = 3, "successes", Restart;
        /// Calls let through at a time while it is being tried.
        trial_calls: u32 = 1, "calls", Restart;
        /// How long all trial calls may be under way without an answer before it opens again.
        max_wait_in_half_open: Duration = Duration::from_secs(60), "time", Restart;
        /// The share of failures among the last calls that opens it too; 0 is off.
        failure_rate_threshold: u32 = 0, "percent", Restart;
        /// The share of slow calls among the last calls that opens it too; 0 is off.
        slow_call_rate_threshold: u32 = 0, "percent", Restart;
        /// What takes longer is a slow call.
        slow_call_duration_threshold: Duration = Duration::from_secs(60), "time", Restart;
        /// How many of the last calls are looked at for both shares.
        sliding_window_size: u32 = 100, "calls", Restart;
        /// How many calls there must be before either share counts; more than the window is the window.
        minimum_number_of_calls: u32 = 20, "calls", Restart;
    }
}
