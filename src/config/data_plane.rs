//! `[data_plane]`: the memory that trainers and the daemon share, and how the daemon waits on it.

use super::{section::section, units::ByteSize};

section! {
    /// Shared memory and waiting.
    DataPlane in "data_plane" {
        /// The shared memory of one session. Pages never touched take no memory on the CPU; where kernels run on a GPU all of
        /// it is page-locked, and as much of the GPU's memory is taken.
        arena_bytes: ByteSize = ByteSize::gib(1), "bytes", Restart;
        /// How long a session's thread looks for the next request before it sleeps; 0 sleeps at once.
        /// More makes round trips shorter and keeps a processor busy.
        spin_us: u64 = 0, "microseconds", Restart;
    }
}
