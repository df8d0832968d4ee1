//! How seeds come by kernels.

use std::sync::Arc;

use super::{GetKernel, KernelCache, KernelLease};
use crate::{
    actor::{ActorError, base::Handle},
    cache::DeviceCache,
    engine::Kernel,
    id::KernelId,
};

/// What is in memory is given at once, without asking anybody; the rest the cache's actor is asked for.
#[derive(Clone, Debug)]
pub struct Kernels {
    device: DeviceCache<Arc<Kernel>>,
    cache: Handle<KernelCache>,
}

impl Kernels {
    /// The device tier, and the actor that fills it.
    pub fn new(device: DeviceCache<Arc<Kernel>>, cache: Handle<KernelCache>) -> Self {
        Self { device, cache }
    }

    /// The kernel, in use until the lease is dropped.
    ///
    /// # Errors
    /// Why it could not be loaded.
    pub async fn get(&self, id: &KernelId) -> Result<KernelLease, ActorError> {
        match self.device.lease(id) {
            Some(lease) => Ok(lease),
            None => self.cache.ask(GetKernel(id.clone())).await?,
        }
    }

    /// The actor, for all else.
    pub fn cache(&self) -> &Handle<KernelCache> {
        &self.cache
    }
}
