//! Memory of the device: counted, zeroed, and left to be given back when nothing uses it any more.

use std::{
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::{
    device::Device,
    driver::{Address, DriverError, SharedBlock},
    reclaim::Leaving,
};
use crate::backend::{DeviceFile, Memory, Region, RunError};

/// What the driver aligns memory to, and takes for the smallest block.
const GRAIN_BYTES: usize = 256;

/// How much memory of the device may be taken in all.
#[derive(Debug)]
pub(super) struct Budget {
    limit_bytes: usize,
    held_bytes: AtomicUsize,
}

impl Budget {
    pub(super) fn new(limit_bytes: usize) -> Self {
        Self { limit_bytes, held_bytes: AtomicUsize::new(0) }
    }

    pub(super) fn limit_bytes(&self) -> usize {
        self.limit_bytes
    }

    pub(super) fn held_bytes(&self) -> usize {
        self.held_bytes.load(Ordering::Relaxed)
    }

    fn free_bytes(&self) -> usize {
        self.limit_bytes.saturating_sub(self.held_bytes())
    }

    /// Counts bytes as taken; `false`, and nothing is counted, where there are not as many left.
    fn take(&self, bytes: usize) -> bool {
        let taken = |held: usize| held.checked_add(bytes).filter(|&held| held <= self.limit_bytes);
        self.held_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken).is_ok()
    }

    pub(super) fn give_back(&self, bytes: usize) {
        self.held_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// A block of the device's memory.
#[derive(Debug)]
pub(super) struct CudaMemory {
    address: Address,
    len_bytes: usize,
    /// By what other processes map it, where they can.
    file: Option<OwnedFd>,
    device: Arc<Device>,
}

impl CudaMemory {
    /// A block with undefined content, for whoever writes all of it before others may read it. `len_bytes` is at least
    /// 1.
    pub(super) fn undefined(device: &Arc<Device>, len_bytes: usize) -> Result<Self, RunError> {
        let address = Self::within_budget(device, len_bytes, || device.driver().allocate(len_bytes))?;
        Ok(Self { address, len_bytes, file: None, device: Arc::clone(device) })
    }

    /// Counts what is allocated. Blocking where there is no room but for what was dropped: that counts until it is given back,
    /// which those who have enough without it do not wait for.
    fn within_budget<T>(
        device: &Device,
        len_bytes: usize,
        allocate: impl Fn() -> Result<T, DriverError>,
    ) -> Result<T, RunError> {
        match Self::at_once(device, len_bytes, &allocate) {
            Err(RunError::OutOfMemory { .. }) => {
                device.settle()?;
                Self::at_once(device, len_bytes, &allocate)
            }
            allocated => allocated,
        }
    }

    fn at_once<T>(
        device: &Device,
        len_bytes: usize,
        allocate: impl Fn() -> Result<T, DriverError>,
    ) -> Result<T, RunError> {
        let lacking = |free_bytes| RunError::OutOfMemory {
            device: device.name().to_owned(),
            needed_bytes: len_bytes,
            free_bytes,
        };
        if !device.budget().take(counted(len_bytes)) {
            return Err(lacking(device.budget().free_bytes()));
        }
        allocate().map_err(|error| {
            device.budget().give_back(counted(len_bytes));
            match error {
                // Others use the device too, and may have left less than we may take.
                DriverError::OutOfMemory { .. } => {
                    let free_bytes = device.driver().free_bytes().unwrap_or(0);
                    lacking(free_bytes.min(device.budget().free_bytes()))
                }
                error => device.run_error(error),
            }
        })
    }

    /// A block of zeros: what another session has left there is seen by nobody. Blocking until they are written, as any
    /// queue may be handed work with it next.
    pub(super) fn zeroed(device: &Arc<Device>, len_bytes: usize) -> Result<Self, RunError> {
        let memory = Self::undefined(device, len_bytes)?;
        memory.zero()?;
        Ok(memory)
    }

    fn zero(&self) -> Result<(), RunError> {
        self.device.do_now(|driver, stream| {
            // SAFETY: as many bytes are allocated, and are given back only once nothing is under way.
            unsafe { driver.fill(self.address, 0, self.len_bytes, stream) }
        })
    }

    /// A block that holds a copy of bytes. Blocking until they are there.
    pub(super) fn of(device: &Arc<Device>, bytes: &[u8]) -> Result<Self, RunError> {
        let memory = Self::undefined(device, bytes.len())?;
        device.do_now(|driver, stream| {
            // SAFETY: as in `zeroed`.
            unsafe { driver.copy_in(memory.address, bytes, stream) }
        })?;
        Ok(memory)
    }

    pub(super) fn address(&self) -> Address {
        self.address
    }

    pub(super) fn len_bytes(&self) -> usize {
        self.len_bytes
    }
}

impl Memory for CudaMemory {
    fn region(&self) -> Region<'_> {
        // SAFETY: as many bytes are allocated there as long as this is borrowed.
        unsafe { Region::on_device(self.address, self.len_bytes) }
    }
}

impl Drop for CudaMemory {
    fn drop(&mut self) {
        let (address, len_bytes) = (self.address, self.len_bytes);
        self.device.leave(Leaving::Block { address, len_bytes, file: self.file.take() });
    }
}

/// What the driver takes for a block.
pub(super) fn counted(len_bytes: usize) -> usize {
    len_bytes.checked_next_multiple_of(GRAIN_BYTES).unwrap_or(usize::MAX)
}

/// The device's copy of memory that a trainer maps too.
#[derive(Debug)]
pub(super) struct SharedCopy {
    ours: CudaMemory,
    /// Whether the driver has locked the trainer's, so that copies need not wait.
    is_registered: bool,
    /// Mapped for as long as it is registered.
    theirs: Arc<dyn Memory>,
}

impl SharedCopy {
    /// A zeroed copy of host memory, which has at least one byte.
    pub(super) fn new(device: &Arc<Device>, theirs: Arc<dyn Memory>) -> Result<Self, RunError> {
        let (start, len_bytes) = (theirs.region().start(), theirs.region().len_bytes());
        let ours = CudaMemory::zeroed(device, len_bytes)?;
        // SAFETY: it stays mapped as long as this holds it, and whoever unregisters it when this is gone.
        let register = || unsafe { device.driver().register(start, len_bytes) };
        let registered = register().or_else(|_| {
            // It may be that of a copy that was dropped, which is not let go yet.
            device.settle()?;
            register().map_err(|error| device.run_error(error))
        });
        if let Err(error) = &registered {
            tracing::debug!(%error, len_bytes, "host memory cannot be locked: copies from and to it will wait");
        }
        Ok(Self { ours, is_registered: registered.is_ok(), theirs })
    }
}

impl Memory for SharedCopy {
    fn region(&self) -> Region<'_> {
        self.ours.region()
    }
}

impl Drop for SharedCopy {
    fn drop(&mut self) {
        if self.is_registered {
            self.ours.device.leave(Leaving::Locked(Arc::clone(&self.theirs)));
        }
    }
}

/// A block that other processes can map too.
#[derive(Debug)]
pub(super) struct CudaFile(CudaMemory);

impl CudaFile {
    /// A block of zeros, as large as asked for or larger. `len_bytes` is at least 1. Blocking until they are written.
    pub(super) fn zeroed(device: &Arc<Device>, len_bytes: usize) -> Result<Self, RunError> {
        let whole = device.shared_bytes(len_bytes);
        let SharedBlock { address, bytes, file } =
            CudaMemory::within_budget(device, whole, || device.driver().share(whole))?;
        let memory = CudaMemory { address, len_bytes: bytes, file: Some(file), device: Arc::clone(device) };
        memory.zero()?;
        Ok(Self(memory))
    }
}

impl Memory for CudaFile {
    fn region(&self) -> Region<'_> {
        self.0.region()
    }
}

impl DeviceFile for CudaFile {
    fn file(&self) -> BorrowedFd<'_> {
        self.0.file.as_ref().expect("it was made with one").as_fd()
    }
}
