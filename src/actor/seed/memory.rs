//! A seed's memory file, with what it costs.

use std::{os::fd::BorrowedFd, sync::Arc};

use crate::{
    actor::{ActorError, HeldKernel},
    backend::{Backend, DeviceFile, HostMemory, Memory, OwnMemory, Region, RunError},
    engine::{EngineError, Kernel, Share},
    wire::SharedMemory,
};

/// A file of memory that a seed's trainer maps: the host's, or a GPU's.
#[derive(Debug)]
pub enum SeedFile {
    /// The host's.
    Host(SharedMemory),
    /// The GPU's that the trainer's tensors lie on.
    Device(Arc<dyn DeviceFile>),
}

impl SeedFile {
    /// How many bytes one for a kernel takes, with what the device keeps beside it.
    pub(super) fn bytes_for(kernel: &Kernel, backend: &dyn Backend, on_device: bool) -> u64 {
        let bytes = kernel.memory_bytes();
        let taken = if on_device { backend.file_bytes(bytes) } else { bytes + backend.mirror_bytes(bytes) };
        taken as u64
    }

    /// One with a kernel's own weights.
    ///
    /// # Errors
    /// What the system or the device refuses.
    pub(super) fn of(kernel: &Kernel, backend: &dyn Backend, on_device: bool) -> Result<Self, ActorError> {
        let lost = || ActorError::Lost { what: "writing the kernel's weights" };
        if !on_device {
            let memory = SharedMemory::create("kasmina-seed", kernel.memory_bytes())?;
            return if kernel.initialise(memory.region()) { Ok(Self::Host(memory)) } else { Err(lost()) };
        }
        let weights = HostMemory::new(kernel.memory_bytes());
        if !kernel.initialise(weights.region()) {
            return Err(lost());
        }
        let write = || -> Result<Self, RunError> {
            let file = backend.allocate_file(weights.len_bytes())?;
            let mut queue = backend.open_queue(false);
            queue.copy(weights.region(), file.region())?;
            queue.finish(None)?;
            Ok(Self::Device(file))
        };
        Ok(write().map_err(EngineError::of_kernel(kernel.id()))?)
    }

    /// The file, to be sent to the trainer.
    pub fn file(&self) -> BorrowedFd<'_> {
        match self {
            Self::Host(memory) => memory.file(),
            Self::Device(memory) => memory.file(),
        }
    }

    /// How many bytes it has of the GPU's memory, where it is that.
    pub(super) fn device_bytes(&self) -> Option<u64> {
        match self {
            Self::Host(_) => None,
            Self::Device(memory) => Some(memory.len_bytes() as u64),
        }
    }

    /// What it holds now, where this process can read it.
    ///
    /// # Errors
    /// What the device refuses.
    pub(super) fn read(&self, backend: &dyn Backend) -> Result<OwnMemory, RunError> {
        let copy = HostMemory::new(self.region().len_bytes());
        let mut queue = backend.open_queue(false);
        queue.copy(self.region(), copy.region())?;
        queue.finish(None)?;
        Ok(Box::new(copy))
    }
}

impl Memory for SeedFile {
    fn region(&self) -> Region<'_> {
        match self {
            Self::Host(memory) => memory.region(),
            Self::Device(memory) => memory.region(),
        }
    }
}

/// A seed's memory file with its place in the session's ledger, for as long as anybody holds it.
#[derive(Clone, Debug)]
pub(super) struct KeptMemory {
    pub(super) shared: Arc<SeedFile>,
    pub(super) _share: Arc<Share>,
}

/// A seed's memory file, with what it costs: as long as a slot or a ticket holds it, it stands in the session's ledger
/// and the cache does not evict its kernel.
#[derive(Debug)]
pub(super) struct SeedMemory {
    pub(super) kept: KeptMemory,
    pub(super) _lease: HeldKernel,
}

impl Memory for SeedMemory {
    fn region(&self) -> Region<'_> {
        self.kept.shared.region()
    }

    fn mapping(&self) -> Option<Arc<dyn Memory>> {
        Some(Arc::clone(&self.kept.shared) as _)
    }
}
