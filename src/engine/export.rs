//! A kernel's artifact with what one seed has made of its weights.

use std::{collections::BTreeMap, sync::Arc};

use super::Kernel;
use crate::{
    artifact::{Module, RewriteError},
    backend::Region,
    tensor::HostTensor,
};

impl Kernel {
    /// Bytes of its artifact, where it has one. An exported one has as many, unless weights are packed in it.
    pub fn artifact_bytes(&self) -> Option<usize> {
        self.module().map(|module| module.archive().len())
    }

    /// Bytes that are in use for a moment while an artifact is exported: the weights, and what writing it takes.
    pub fn export_bytes(&self) -> usize {
        let weights = self.parameter_layout().total_bytes() + self.buffer_layout().total_bytes();
        weights.saturating_add(self.module().map_or(0, Module::rewrite_bytes))
    }

    /// The artifact with the parameters and buffers that stand in a seed's memory; `None` for a kernel without an
    /// artifact, and where the memory is too small.
    ///
    /// A trainer that writes there meanwhile has some of what it writes in the artifact and some not.
    ///
    /// Blocking: while the artifact is read, written, and read again.
    ///
    /// # Errors
    /// [`RewriteError`] where it does not take these values.
    pub fn export(&self, memory: Region<'_>) -> Option<Result<Arc<[u8]>, RewriteError>> {
        let module = self.module()?;
        let values = self.weights_in(memory).map(|(weight, part)| {
            let (value, part) = (&weight.tensor, part?);
            let mut bytes = vec![0; value.bytes().len()];
            let is_read = part.read(&mut bytes);
            let tensor = is_read.then(|| HostTensor::new(value.shape().clone(), value.dtype(), bytes))?;
            Some((weight.name.clone(), tensor.ok()?))
        });
        Some(module.rewritten(&values.collect::<Option<BTreeMap<_, _>>>()?))
    }
}
