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
    }
}
