//! `[device]`: what kernels run on.

use std::{num::NonZero, thread};

use super::{section::section, setting::words};

/// Which backend runs the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// The best device that is present; the CPU, until there is another backend.
    Auto,
    /// The processor.
    Cpu,
}

words!(DeviceKind { Auto = "auto", Cpu = "cpu" });

section! {
    /// The device and its threads.
    Device in "device" {
        /// Which backend runs the kernels.
        kind: DeviceKind = DeviceKind::Cpu, "auto or cpu", Restart;
        /// Threads a pass may use; 0 is one for each processor the daemon may run on.
        threads: usize = 0, "threads", Restart;
    }
}

impl Device {
    /// The threads a pass may use, at least 1: those asked for, else the processors that affinity and
    /// control group leave to this process.
    pub fn thread_count(&self) -> usize {
        match self.threads {
            0 => thread::available_parallelism().map_or(1, NonZero::get),
            threads => threads,
        }
    }
}
