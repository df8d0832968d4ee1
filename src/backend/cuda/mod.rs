//! The CUDA backend: a plan's steps as launches of our own kernels, and as work of cuBLASLt and cuDNN where they are found.
//!
//! The kernels are CUDA C++, compiled by NVRTC for the device at hand when it is opened. They take halves as they are,
//! compute in single precision and round each result once, as PyTorch does. What they compute does not depend on
//! which of their threads is first.
//!
//! The daemon opens a device where `device.kind` says so, or finds one; see docs/architecture.md.

mod arguments;
mod cache;
mod compile;
mod device;
mod driver;
mod executable;
mod heart;
mod kernels;
mod libraries;
mod lower;
mod memory;
mod nvrtc;
mod open;
mod pass;
mod queue;
mod reclaim;
mod replay;
mod source;
mod streams;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Backend, BuildError, CompileOptions, DeviceFile, Executable, Lacking, Memory, OwnMemory, Queue, RunError,
    Shared, nothing, plan::plan,
};
use crate::graph::Graph;

pub use cache::ImageCache;
pub use compile::{CompileError, compile};
pub use driver::{
    Access, Address, Code, ConvolutionSpec, Direction, Driver, DriverError, Event, Function, Launch,
    MOST_ALIGNMENT_BYTES, Matrices, Module, PlannedRoutine, Priority, ProductSpec, Properties, RealDriver,
    Replay, Routine, RoutineArguments, RoutineSpec, Routines, SharedBlock, Stream, Touch, count, open,
};
pub use libraries::{Found, Roots, find};
pub use nvrtc::Nvrtc;
pub use open::{LibraryState, OpenError, OpenOptions, Opened, Unavailable, open_device, places};

use device::Device;
use executable::CudaExecutable;
use kernels::Kernels;
use lower::Planned;
use memory::{Budget, CudaFile, CudaMemory, SharedCopy};
use queue::CudaQueue;

/// How a device is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CudaOptions {
    /// The most bytes of the device's memory that constants of plans, blocks and copies of shared memory may take
    /// together. What the driver and its libraries take for themselves is not counted.
    pub memory_bytes: usize,
    /// Whether runs are captured and replayed as one.
    pub graphs: bool,
    /// Whether libraries may round factors in `float32` to TF32.
    pub tf32: bool,
}

/// A CUDA device as a backend.
#[derive(Debug)]
pub struct CudaBackend {
    device: Arc<Device>,
    tf32: bool,
}

impl CudaBackend {
    /// A backend on a device, with the images that [`compile()`] gave for its capability.
    ///
    /// # Errors
    /// [`DriverError`] when the driver refuses an image or a stream.
    pub fn new(
        driver: Arc<dyn Driver>,
        images: &[Vec<u8>],
        options: CudaOptions,
    ) -> Result<Self, DriverError> {
        let kernels = Kernels::load(driver, images)?;
        let device = Device::new(kernels, Budget::new(options.memory_bytes), options.graphs)?;
        Ok(Self { device: Arc::new(device), tf32: options.tf32 })
    }

    /// Bytes of the device's memory that are taken.
    pub fn held_bytes(&self) -> usize {
        self.device.budget().held_bytes()
    }

    /// Bytes of the device's memory that may be taken in all.
    pub fn budget_bytes(&self) -> usize {
        self.device.budget().limit_bytes()
    }

    /// Bytes of the device's memory that nobody has, in this process or another.
    ///
    /// # Errors
    /// [`DriverError::Failed`] when work on the device has failed before.
    pub fn free_bytes(&self) -> Result<usize, DriverError> {
        self.device.driver().free_bytes()
    }

    fn build(&self, graph: &Graph, options: &CompileOptions<'_>) -> Result<CudaExecutable, BuildError> {
        lower::check(graph, self.name())?;
        let target = lower::Cuda::new(Planned::new(Arc::clone(&self.device), self.tf32));
        let plan = plan(graph, &target, options)?;
        let needed_bytes = plan.needs.workspace_bytes.saturating_add(plan.needs.saved.total_bytes());
        if needed_bytes > options.limit_bytes {
            return Err(BuildError::TooMuchMemory { needed_bytes, limit_bytes: options.limit_bytes });
        }
        let routines = target.into_routines();
        let program = lower::lower(&plan, self.device.kernels(), &routines)?;
        CudaExecutable::new(plan, program, routines, &self.device)
    }
}

impl Backend for CudaBackend {
    fn name(&self) -> &str {
        self.device.name()
    }

    fn compile(
        &self,
        graph: &Graph,
        options: &CompileOptions<'_>,
    ) -> Result<Arc<dyn Executable>, BuildError> {
        Ok(Arc::new(self.build(graph, options)?))
    }

    fn allocate(&self, len_bytes: usize) -> OwnMemory {
        if len_bytes == 0 {
            return nothing();
        }
        match CudaMemory::zeroed(&self.device, len_bytes) {
            Ok(memory) => Box::new(memory),
            Err(error) => Box::new(Lacking(error)),
        }
    }

    fn open_queue(&self, goes_first: bool) -> Box<dyn Queue> {
        Box::new(CudaQueue::open(&self.device, goes_first))
    }

    fn share(&self, memory: Arc<dyn Memory>) -> Result<Shared, RunError> {
        let region = memory.region();
        if region.len_bytes() == 0 || !region.is_host() {
            return Ok(Shared::same(memory));
        }
        let mapping = memory.mapping().unwrap_or_else(|| Arc::clone(&memory));
        let ours = SharedCopy::new(&self.device, mapping)?;
        Ok(Shared::copied(memory, Box::new(ours)))
    }

    fn mirror_bytes(&self, len_bytes: usize) -> usize {
        memory::counted(len_bytes)
    }

    fn uuid(&self) -> Option<&str> {
        let properties = self.device.driver().properties();
        properties.shared_grain_bytes.map(|_| properties.uuid.as_str())
    }

    fn file_bytes(&self, len_bytes: usize) -> usize {
        self.device.shared_bytes(len_bytes)
    }

    fn allocate_file(&self, len_bytes: usize) -> Result<Arc<dyn DeviceFile>, RunError> {
        Ok(Arc::new(CudaFile::zeroed(&self.device, len_bytes.max(1))?))
    }

    fn is_asynchronous(&self) -> bool {
        true
    }

    fn lost(&self) -> Option<String> {
        let failed = self.device.driver().lost().map(|error| error.to_string());
        let reason = failed.or_else(|| self.device.stopped().map(str::to_owned))?;
        Some(format!("{}: {reason}", self.device.name()))
    }

    fn beat(&self, now: Instant, limit: Duration) {
        self.device.beat(now, limit);
    }
}
