//! `[limits]`: what sessions and users may hold.

use super::{
    section::section,
    units::{ByteSize, UserShare},
};

section! {
    /// Quotas; going past one is the session's error and nobody else's. Those of a user hold for all sessions of one
    /// user id together.
    Limits in "limits" {
        /// Sessions at a time.
        max_sessions: usize = 64, "sessions", Restart;
        /// Sessions that one user may have; 0 is no limit.
        max_sessions_per_uid: u64 = 32, "sessions", Restart;
        /// Layers one session may open.
        max_layers_per_session: usize = 1024, "layers", Restart;
        /// Layers that one user may have open; 0 is no limit.
        max_layers_per_uid: u64 = 8192, "layers", Restart;
        /// Seeds one layer may have, at most 64.
        max_seeds_per_layer: usize = 64, "seeds", Restart;
        /// Seeds with a kernel that one session may have: each is a file descriptor and mostly a thread. A swap takes
        /// two of them until the old kernel is gone; 0 is no limit.
        max_seeds_per_session: u64 = 1024, "seeds", Restart;
        /// Seeds with a kernel that one user may have; 0 is no limit.
        max_seeds_per_uid: u64 = 8192, "seeds", Restart;
        /// Forward passes of one user that may await their backward; 0 is no limit.
        max_tickets_per_uid: u64 = 65_536, "tickets", Restart;
        /// Memory one session may hold in the daemon, beside its arena in the host's memory: parameters and buffers of its
        /// seeds, what its tickets save, and what arena and seeds take of a GPU.
        max_bytes_per_session: ByteSize = ByteSize::gib(4), "bytes", Restart;
        /// The same for one user; "0B" is no limit.
        max_bytes_per_uid: ByteSize = ByteSize::gib(16), "bytes", Restart;
        /// Users whose passes get more time than those of others where passes wait, each "user id:weight"; everybody
        /// else weighs 1.
        shares: Vec<UserShare> = Vec::new(), "list of user id:weight", Restart;
    }
}
