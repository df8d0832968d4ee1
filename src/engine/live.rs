//! A live seed: a kernel with memory for its parameters and buffers.

use std::sync::Arc;

use super::{EngineError, Kernel};
use crate::{
    backend::{Queue, Region, RunError, Shared},
    id::Generation,
};

/// A kernel as one seed runs it: with parameters and buffers of the seed's own, which its trainer sees too.
///
/// Whoever holds one (the layer, a ticket taken before a swap) keeps kernel and memory alive.
#[derive(Debug)]
pub struct LiveSeed {
    kernel: Arc<Kernel>,
    memory: Shared,
    generation: Generation,
}

impl LiveSeed {
    /// A seed over memory of [`Kernel::memory_bytes`], which must hold its values already
    /// ([`Kernel::initialise`]).
    ///
    /// # Errors
    /// [`EngineError::MemoryTooSmall`].
    pub fn new(kernel: Arc<Kernel>, memory: Shared, generation: Generation) -> Result<Self, EngineError> {
        let (needed_bytes, actual_bytes) = (kernel.memory_bytes(), memory.theirs().len_bytes());
        if actual_bytes < needed_bytes {
            let kernel = kernel.id().clone();
            return Err(EngineError::MemoryTooSmall { kernel, needed_bytes, actual_bytes });
        }
        Ok(Self { kernel, memory, generation })
    }

    /// The kernel.
    pub fn kernel(&self) -> &Arc<Kernel> {
        &self.kernel
    }

    /// Which of its seed's kernels this is.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// What a run of it that failed is told as.
    pub(super) fn failed(&self, source: RunError) -> EngineError {
        EngineError::of_kernel(self.kernel.id())(source)
    }

    /// The block of parameters, as its trainer has it.
    pub fn parameters(&self) -> Region<'_> {
        part(self.memory.theirs(), self.parameters_at())
    }

    /// The block of buffers, as its trainer has it.
    pub fn buffers(&self) -> Region<'_> {
        part(self.memory.theirs(), self.buffers_at())
    }

    /// The block of parameters, as the device has it.
    pub(super) fn parameters_there(&self) -> Region<'_> {
        part(self.memory.device(), self.parameters_at())
    }

    /// The block of buffers, as the device has it.
    pub(super) fn buffers_there(&self) -> Region<'_> {
        part(self.memory.device(), self.buffers_at())
    }

    /// Has the device see the parameters that the trainer sees now.
    pub(super) fn bring_parameters(&self, queue: &mut dyn Queue) -> Result<(), RunError> {
        let (offset, bytes) = self.parameters_at();
        self.memory.bring(queue, offset, bytes)
    }

    /// Has the device see the buffers that the trainer sees now.
    pub(super) fn bring_buffers(&self, queue: &mut dyn Queue) -> Result<(), RunError> {
        let (offset, bytes) = self.buffers_at();
        self.memory.bring(queue, offset, bytes)
    }

    /// Has the trainer see the buffers as the device has left them.
    pub(super) fn send_buffers(&self, queue: &mut dyn Queue) -> Result<(), RunError> {
        let (offset, bytes) = self.buffers_at();
        self.memory.send(queue, offset, bytes)
    }

    fn parameters_at(&self) -> (usize, usize) {
        (0, self.kernel.parameter_layout().total_bytes())
    }

    fn buffers_at(&self) -> (usize, usize) {
        (self.kernel.buffers_offset(), self.kernel.buffer_layout().total_bytes())
    }
}

fn part(memory: Region<'_>, (offset, bytes): (usize, usize)) -> Region<'_> {
    memory.part(offset, bytes).expect("the memory's size was checked when the seed was made")
}
