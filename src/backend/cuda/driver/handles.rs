//! What is handed to a driver and what comes back: handles, launches, errors.

use std::os::fd::OwnedFd;

use super::Routine;

/// An address on the device.
pub type Address = u64;

/// Memory of the device that other processes can map too.
#[derive(Debug)]
pub struct SharedBlock {
    /// Where it lies in this process.
    pub address: Address,
    /// How much it is, a multiple of [`Properties::shared_grain_bytes`].
    pub bytes: usize,
    /// What another process maps it by. It lasts as long as anybody has it open or mapped.
    pub file: OwnedFd,
}

/// A queue of work that runs in the order it was handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stream(pub u64);

/// A mark in a stream, for others to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Event(pub u64);

/// A loaded image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Module(pub u64);

/// A kernel of a module; it lives as long as the module is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Function(pub u64);

/// Captured work, ready to be run again as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Replay(pub u64);

/// Whose work goes first where the device has a choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// As the device has it by default.
    Normal,
    /// Before all that is normal.
    High,
}

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Properties {
    /// As PyTorch would write it: `cuda:0`.
    pub name: String,
    /// The maker's name for it.
    pub model: String,
    /// Compute capability, major and minor.
    pub capability: (u32, u32),
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of memory in all.
    pub memory_bytes: u64,
    /// The latest CUDA that the driver knows, major and minor.
    pub cuda: (u32, u32),
    /// What tells it from all others, in hexadecimal.
    pub uuid: String,
    /// What the size of memory that processes share is a multiple of; `None` where they cannot share any.
    pub shared_grain_bytes: Option<usize>,
}

/// How a kernel uses memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It reads what was there before.
    Read,
    /// It writes, and reads nothing that it has not written itself.
    Write,
}

/// Memory that a launch uses: the address that stands at `at` in its arguments, and so many bytes from there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touch {
    /// Bytes from the start of the arguments.
    pub at: u32,
    /// Reads or writes.
    pub access: Access,
    /// How many bytes, from the first that is used to the last.
    pub len_bytes: u64,
}

/// What a launch runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// A kernel of ours.
    Kernel {
        /// Which.
        function: Function,
        /// Blocks, along one dimension.
        grid: u32,
        /// Threads of each, along one dimension.
        block: u32,
    },
    /// Planned work of a library's.
    Routine(Routine),
}

/// One launch.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// Of what.
    pub code: Code,
    /// The bytes of its one argument: the record that the kernel takes, or [`RoutineArguments`](super::RoutineArguments).
    pub arguments: &'a [u8],
    /// The memory that it uses. A device does not need it; whoever checks the order of launches does.
    pub touches: &'a [Touch],
}

/// Why the driver did not do what it was asked to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DriverError {
    /// There is no driver on this machine, or not one that can be used.
    #[error("no CUDA driver: {reason}")]
    Missing {
        /// What was looked for, or what is wrong.
        reason: String,
    },
    /// The driver shows no such device.
    #[error("there is no device {ordinal}: the driver shows {count}, and counts them from 0")]
    NoDevice {
        /// Which was asked for.
        ordinal: u32,
        /// How many there are.
        count: u32,
    },
    /// There is not as much memory left.
    #[error("the device has no {needed_bytes} bytes left")]
    OutOfMemory {
        /// What was asked for.
        needed_bytes: usize,
    },
    /// A call failed.
    #[error("{call} failed: {reason}")]
    Failed {
        /// The driver's function.
        call: &'static str,
        /// The driver's own words.
        reason: String,
    },
}
