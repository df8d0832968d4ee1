//! `[data_plane]`: the memory that trainers and the daemon share, and how the daemon waits on it.

use std::thread;

use super::{section::section, units::ByteSize};

section! {
    /// Shared memory and waiting.
    DataPlane in "data_plane" {
        /// The shared memory of one session. Pages never touched take no memory on the CPU; where kernels run on a GPU all of
        /// it is page-locked, and as much of the GPU's memory is taken.
        arena_bytes: ByteSize = ByteSize::gib(1), "bytes", Restart;
        /// How long a session's thread looks for the next request before it sleeps, as long as requests do come within that
        /// time; its trainer likewise for an answer. 0 sleeps at once, and so does a daemon that may run on one processor
        /// only.
        spin_us: u64 = 200, "microseconds", Restart;
    }
}

impl DataPlane {
    /// How long to look on this machine, in microseconds: not at all where what is waited for needs the same processor.
    pub fn spin_us(&self) -> u32 {
        let is_alone = thread::available_parallelism().is_ok_and(|processors| processors.get() == 1);
        if is_alone { 0 } else { u32::try_from(self.spin_us).unwrap_or(u32::MAX) }
    }
}
