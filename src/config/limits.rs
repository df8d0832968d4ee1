//! `[limits]`: what one session may hold.

use super::{section::section, units::ByteSize};

section! {
    /// Quotas; going past one is the session's error and nobody else's.
    Limits in "limits" {
        /// Sessions at a time.
        max_sessions: usize = 64, "sessions", Restart;
        /// Layers one session may open.
        max_layers_per_session: usize = 1024, "layers", Restart;
        /// Seeds one layer may have, at most 64.
        max_seeds_per_layer: usize = 64, "seeds", Restart;
        /// Memory one session may hold in the daemon, beside its arena: plans, saved activations.
        max_bytes_per_session: ByteSize = ByteSize::gib(4), "bytes", Restart;
    }
}
