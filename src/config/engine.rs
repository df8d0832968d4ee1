//! `[engine]`: how seeds run and when they are given up.

use std::{path::PathBuf, time::Duration};

use super::{section::section, units::ByteSize};

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
        /// How many training passes of each seed are kept as a series, 24 bytes each; 0 keeps none.
        series_length: usize = 512, "passes", Restart;
        /// Every how many training passes one is kept.
        series_every: u32 = 1, "passes", Restart;
        /// In every how many of them the norm of the gradients is measured, which reads the gradients of all parameters
        /// once more; 0 measures none.
        gradient_norm_every: u32 = 8, "passes", Restart;
        /// Passes that may run at a time; further ones wait, and users take turns. As many again run beside, of users
        /// none of whose passes has a place. 0 is one for each of `device.threads`.
        concurrent_passes: usize = 0, "passes", Restart;
        /// How long a session may keep its place while others wait, and how much time it may save up while it is idle.
        turn_quantum: Duration = Duration::from_millis(2), "time", Restart;
        /// The folder that passes of seeds are recorded in when they fail, for `kasmina replay`; empty records nothing. A
        /// record holds the pass's input, the kernel and its weights: whoever may read it sees what was trained on.
        record_failures: PathBuf = PathBuf::new(), "path", Restart;
        /// The most bytes of all files in that folder, those of the failing user counted twice, so that no user takes it
        /// all; then no more are written, and none is ever deleted.
        record_failures_max_bytes: ByteSize = ByteSize::gib(1), "bytes", Restart;
    }
}
