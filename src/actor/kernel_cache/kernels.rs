//! How seeds come by kernels.

use std::sync::Arc;

use super::{GetKernel, HeldKernel, Holder, Holders, KernelCache};
use crate::{
    actor::{ActorError, base::Handle},
    cache::{DeviceCache, Evictor},
    engine::Kernel,
    id::{KernelId, SessionId},
};

/// What is in memory is given at once, without asking anybody; the rest the cache's actor is asked for.
#[derive(Clone, Debug)]
pub struct Kernels {
    device: DeviceCache<Arc<Kernel>>,
    holders: Arc<Holders>,
    cache: Handle<KernelCache>,
}

impl Kernels {
    /// The device tier, who holds what of it, and the actor that fills it.
    pub fn new(device: DeviceCache<Arc<Kernel>>, holders: Arc<Holders>, cache: Handle<KernelCache>) -> Self {
        Self { device, holders, cache }
    }

    /// The kernel, in use by this holder until it is dropped.
    ///
    /// # Errors
    /// Why it could not be loaded.
    pub async fn get(&self, id: &KernelId, holder: Holder) -> Result<HeldKernel, ActorError> {
        let lease = match self.device.lease(id) {
            Some(lease) => lease,
            None => self.cache.ask(GetKernel(id.clone())).await??,
        };
        Ok(self.holders.enter(lease, holder))
    }

    /// Whether the kernel is in memory. Counts no look-up.
    pub fn has(&self, id: &KernelId) -> bool {
        self.device.peek(id).is_some()
    }

    /// Has a session's offered kernel leave memory, unless somebody uses it.
    pub fn withdraw(&self, id: &KernelId, session: SessionId) {
        // One in use goes as every other does, when it is the least recently used.
        let _ = self.device.evict(id, &Evictor::Session { session });
    }

    /// The same when the session is over, whose lane and loads may not have let go of it yet.
    pub async fn withdraw_late(&self, id: &KernelId, session: SessionId) {
        // Another session that uses it has offered it too, and sees to it.
        let is_ours = || self.holders.of(id).iter().all(|(_, holder)| holder.session == session);
        let _ = self.device.evict_wait(id, &Evictor::Session { session }, is_ours).await;
    }

    /// The actor, for all else.
    pub fn cache(&self) -> &Handle<KernelCache> {
        &self.cache
    }
}
