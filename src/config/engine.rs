//! `[engine]`: how seeds run and when they are given up.

use std::time::Duration;

use super::section::section;

section! {
    /// The rules of a pass.
    Engine in "engine" {
        /// Failures in a row after which a seed's kernel is unloaded.
        error_threshold: u32 = 3, "failures", Restart;
        /// The longest a seed may take for one pass before it counts as failed.
        time_limit: Duration = Duration::from_secs(5), "time", Restart;
        /// Whether a seed whose output is not finite counts as failed.
        non_finite_guard: bool = true, "true or false", Restart;
        /// Forward passes of one layer that may await their backward.
        max_tickets_per_layer: usize = 1024, "tickets", Restart;
        /// How often a seed tries to come back after its kernel was unloaded; 0 leaves it dormant at once.
        recovery_attempts: u32 = 3, "attempts", Restart;
        /// How long it waits before the first attempt; twice as long before each further one, up to half of it left to
        /// chance.
        recovery_backoff: Duration = Duration::from_secs(1), "time", Restart;
        /// The longest it waits.
        recovery_backoff_max: Duration = Duration::from_secs(60), "time", Restart;
        /// For how long a seed refuses a kernel that was pruned from it, where the prune does not say.
        embargo: Duration = Duration::ZERO, "time", Restart;
        /// How many training passes of each seed are kept as a series, 16 bytes each; 0 keeps none.
        series_length: usize = 512, "passes", Restart;
        /// Every how many training passes one is kept.
        series_every: u32 = 1, "passes", Restart;
        /// Passes that may run at a time; further ones wait, and users take turns. 0 is one for each of
        /// `device.threads`.
        concurrent_passes: usize = 0, "passes", Restart;
        /// How long a session may keep its place while others wait, and how much time it may save up while it is idle.
        turn_quantum: Duration = Duration::from_millis(2), "time", Restart;
    }
}
