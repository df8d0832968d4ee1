//! The device trait and what passes through it.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{DeviceFile, HostMemory, HostQueue, Memory, OwnMemory, Queue, Region, Shared};
use crate::{graph::Graph, tensor::PackedLayout};

/// A device that compiles and runs graphs.
pub trait Backend: Send + Sync + fmt::Debug {
    /// The device's name, as PyTorch would write it: `cpu`, `cuda:0`.
    fn name(&self) -> &str;

    /// Turns a graph into something that runs here, every buffer placed.
    ///
    /// # Errors
    /// [`BuildError`] when the graph asks for what this device has not, or for more memory than the options
    /// allow.
    fn compile(&self, graph: &Graph, options: &CompileOptions<'_>)
    -> Result<Arc<dyn Executable>, BuildError>;

    /// Zeroed memory that runs here may use. What could not be had says so ([`Memory::lack`]).
    fn allocate(&self, len_bytes: usize) -> OwnMemory {
        Box::new(HostMemory::new(len_bytes))
    }

    /// A queue for runs here. `goes_first` puts its work before that of others, where the device has a choice.
    fn open_queue(&self, goes_first: bool) -> Box<dyn Queue> {
        let _ = goes_first;
        Box::new(HostQueue::default())
    }

    /// Host memory that a trainer maps too, made known to the device.
    ///
    /// # Errors
    /// [`RunError::OutOfMemory`], [`RunError::Device`].
    fn share(&self, memory: Arc<dyn Memory>) -> Result<Shared, RunError> {
        Ok(Shared::same(memory))
    }

    /// Bytes of the device's memory that [`share`](Self::share) takes for as many of the host's.
    fn mirror_bytes(&self, len_bytes: usize) -> usize {
        let _ = len_bytes;
        0
    }

    /// What tells the device from all others, where other processes can map its memory; `None` where they cannot.
    fn uuid(&self) -> Option<&str> {
        None
    }

    /// How large [`allocate_file`](Self::allocate_file) makes what is asked for.
    fn file_bytes(&self, len_bytes: usize) -> usize {
        len_bytes
    }

    /// Zeroed memory of the device that other processes can map; at least as large as asked for.
    ///
    /// # Errors
    /// [`RunError::OutOfMemory`], [`RunError::Device`], also where the device has no such memory.
    fn allocate_file(&self, len_bytes: usize) -> Result<Arc<dyn DeviceFile>, RunError> {
        let reason = format!("no other process can map {len_bytes} bytes of its memory");
        Err(RunError::Device { device: self.name().to_owned(), reason })
    }

    /// Whether a run goes on after it was handed over. Where it does, one thread can keep many queues busy.
    fn is_asynchronous(&self) -> bool {
        false
    }

    /// Asks the device for a sign of life, and takes it for [`lost`](Self::lost) where there has been none for `limit`. To be
    /// called now and then while there is work. Blocking where the driver does not answer; a further call then is not.
    fn beat(&self, now: Instant, limit: Duration) {
        let _ = (now, limit);
    }

    /// Why nothing runs here any more before the process has begun anew; `None` as long as the device works.
    fn lost(&self) -> Option<String> {
        None
    }
}

/// What a graph alone does not tell.
#[derive(Clone, Copy, Debug)]
pub struct CompileOptions<'a> {
    /// Where the kernel's whole list of parameters lies in its block; gradients lie the same way.
    pub parameters: &'a PackedLayout,
    /// Where the kernel's whole list of buffers lies in its block; updates lie the same way.
    pub buffers: &'a PackedLayout,
    /// The most bytes that workspace and saved values may take together.
    pub limit_bytes: usize,
    /// When to give up planning. Looked at between operations.
    pub deadline: Option<Instant>,
}

/// What an executable needs to be given for each run.
///
/// Inputs, outputs and their gradients are one contiguous tensor a region. The other kinds are blocks:
/// several tensors in one region, at the offsets their [`PackedLayout`] states.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryNeeds {
    /// Scratch memory, undefined before and after; nothing is kept in it between runs.
    pub workspace_bytes: usize,
    /// What a forward graph leaves for its backward graph: slot n is `Saved(n)`.
    pub saved: PackedLayout,
}

/// The memory of one run. Blocks that the graph does not use may be [`Region::EMPTY`].
#[derive(Clone, Copy, Debug)]
pub struct Bindings<'a> {
    /// By `Source::Input`.
    pub inputs: &'a [Region<'a>],
    /// By `Sink::Output`.
    pub outputs: &'a [Region<'a>],
    /// By `Source::GradOutput`.
    pub grad_outputs: &'a [Region<'a>],
    /// By `Sink::GradInput`.
    pub grad_inputs: &'a [Region<'a>],
    /// Block of `Source::Parameter`, laid out as the kernel's whole list of parameters.
    pub parameters: Region<'a>,
    /// Block of `Sink::GradParameter`, laid out as `parameters`.
    pub grad_parameters: Region<'a>,
    /// Block of `Source::Buffer`, laid out as the kernel's whole list of buffers.
    pub buffers: Region<'a>,
    /// Block of `Sink::BufferUpdate`, laid out as `buffers`; must not overlap it.
    pub buffer_updates: Region<'a>,
    /// Block of `Sink::Saved` and `Source::Saved`.
    pub saved: Region<'a>,
    /// At least [`MemoryNeeds::workspace_bytes`] bytes, aligned to 64.
    pub workspace: Region<'a>,
}

impl Bindings<'static> {
    /// Memory for nothing.
    pub const EMPTY: Self = Self {
        inputs: &[],
        outputs: &[],
        grad_outputs: &[],
        grad_inputs: &[],
        parameters: Region::EMPTY,
        grad_parameters: Region::EMPTY,
        buffers: Region::EMPTY,
        buffer_updates: Region::EMPTY,
        saved: Region::EMPTY,
        workspace: Region::EMPTY,
    };
}

/// What else a run depends on.
#[derive(Clone, Copy, Debug)]
pub struct RunContext {
    /// Decides every dropout mask of this pass; its backward must be given the same.
    pub seed: u64,
    /// When to give up. Looked at between operations.
    pub deadline: Option<Instant>,
    /// How many threads may work on this run, the caller's own included; at least 1.
    pub threads: usize,
}

/// A graph placed on a device.
pub trait Executable: Send + Sync + fmt::Debug {
    /// What to provide for each run.
    fn needs(&self) -> &MemoryNeeds;

    /// Bytes of memory of its own, which it keeps as long as it lives: steps, layouts, constants.
    fn held_bytes(&self) -> usize;

    /// Hands one run of the graph to a queue of its device. Every byte of every sink is written, or an error is returned
    /// by this or by whoever waits for the queue.
    ///
    /// Blocking: on the CPU until done, on the caller's thread and at most `context.threads - 1` others.
    ///
    /// # Errors
    /// [`RunError`] when a region is absent, too small or misaligned, or when the deadline passed; sinks
    /// then hold undefined numbers, sources are untouched.
    fn run(
        &self,
        queue: &mut dyn Queue,
        bindings: &Bindings<'_>,
        context: &RunContext,
    ) -> Result<(), RunError>;
}

/// Why a graph cannot be placed on a device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// The device has no implementation of an operation for these types.
    #[error("{device} cannot run {op}: {reason}")]
    Unsupported {
        /// The device.
        device: String,
        /// The operation with its attributes.
        op: String,
        /// What is missing.
        reason: String,
    },
    /// The device's own software failed.
    #[error("{device} cannot take the plan: {reason}")]
    Device {
        /// The device.
        device: String,
        /// What failed, in its own words.
        reason: String,
    },
    /// The deadline passed before the plan was made.
    #[error("the time limit passed when {done} of {total} operations were planned: use a smaller kernel")]
    Time {
        /// Operations that were planned.
        done: usize,
        /// Operations of the graph.
        total: usize,
    },
    /// The plan needs more memory than the caller allows.
    #[error(
        "the plan needs {needed_bytes} bytes for workspace and saved values, {limit_bytes} are allowed: use a smaller batch or raise the limit"
    )]
    TooMuchMemory {
        /// What it needs.
        needed_bytes: usize,
        /// What was allowed.
        limit_bytes: usize,
    },
}

/// Why a run failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    /// A region is missing or does not hold what the plan reads or writes there.
    #[error("region {name} has {actual_bytes} bytes, the plan needs {needed_bytes}")]
    RegionTooSmall {
        /// Which binding.
        name: String,
        /// What the plan needs.
        needed_bytes: usize,
        /// What was given.
        actual_bytes: usize,
    },
    /// A region does not start where its element type may lie.
    #[error("region {name} is not aligned to {needed_bytes} bytes")]
    Misaligned {
        /// Which binding.
        name: String,
        /// The alignment needed.
        needed_bytes: usize,
    },
    /// A region lies where the device cannot reach it.
    #[error("region {name} does not lie in the memory of {device}: copy it there first")]
    WrongDevice {
        /// Which binding.
        name: String,
        /// The device of the run.
        device: String,
    },
    /// The device has no memory left.
    #[error(
        "{device} has {free_bytes} bytes left for kernels and sessions, {needed_bytes} are needed: raise device.memory, \
         use a smaller batch, or close layers"
    )]
    OutOfMemory {
        /// The device.
        device: String,
        /// What was asked for.
        needed_bytes: usize,
        /// What was left.
        free_bytes: usize,
    },
    /// The device's own software failed.
    #[error("{device} failed: {reason}")]
    Device {
        /// The device.
        device: String,
        /// What failed, in its own words.
        reason: String,
    },
    /// The deadline passed before the last operation.
    #[error("the time limit passed after {done} of {total} operations")]
    Timeout {
        /// Operations that were finished.
        done: usize,
        /// Operations of the plan.
        total: usize,
    },
}
