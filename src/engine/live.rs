//! A live seed: a kernel with memory for its parameters and buffers.

use std::sync::Arc;

use super::{EngineError, Kernel};
use crate::{
    backend::{Memory, Region},
    id::Generation,
};

/// A kernel as one seed runs it: with parameters and buffers of the seed's own, which its trainer sees too.
///
/// Whoever holds one (the layer, a ticket taken before a swap) keeps kernel and memory alive.
#[derive(Debug)]
pub struct LiveSeed {
    kernel: Arc<Kernel>,
    memory: Arc<dyn Memory>,
    generation: Generation,
}

impl LiveSeed {
    /// A seed over memory of [`Kernel::memory_bytes`], which must hold its values already
    /// ([`Kernel::initialise`]).
    ///
    /// # Errors
    /// [`EngineError::MemoryTooSmall`].
    pub fn new(
        kernel: Arc<Kernel>,
        memory: Arc<dyn Memory>,
        generation: Generation,
    ) -> Result<Self, EngineError> {
        let (needed_bytes, actual_bytes) = (kernel.memory_bytes(), memory.region().len_bytes());
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

    /// The block of parameters.
    pub fn parameters(&self) -> Region<'_> {
        self.part(0, self.kernel.parameter_layout().total_bytes())
    }

    /// The block of buffers.
    pub fn buffers(&self) -> Region<'_> {
        self.part(self.kernel.buffers_offset(), self.kernel.buffer_layout().total_bytes())
    }

    fn part(&self, offset: usize, bytes: usize) -> Region<'_> {
        self.memory
            .region()
            .part(offset, bytes)
            .expect("the memory's size was checked when the seed was made")
    }
}
