//! `[device]`: what kernels run on.

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
