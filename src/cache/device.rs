//! L1: kernels ready to run, in device memory, shared by whoever asks.

use std::{
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;

use super::{Budget, CacheError, Condemned, EntryStats, Eviction, L1, Lease, TierStats};
use crate::{clock::Clock, id::KernelId};

/// A shared handle to the device tier; clones share the cache.
///
/// Blocking: every call takes one short lock; a hit does so for a look-up and a few stores.
#[derive(Debug)]
pub struct DeviceCache<V> {
    l1: Arc<Mutex<L1<V>>>,
    freed: Arc<Notify>,
}

impl<V> Clone for DeviceCache<V> {
    fn clone(&self) -> Self {
        Self { l1: self.l1.clone(), freed: self.freed.clone() }
    }
}

impl<V: Clone> DeviceCache<V> {
    /// An empty cache; `weigh` says what a value costs and is called under the lock, so it must be short
    /// and must not come back here.
    pub fn new(budget: Budget, weigh: fn(&V) -> u64, clock: Arc<dyn Clock>) -> Self {
        let l1 = L1::new(budget, weigh, clock);
        let freed = l1.freed();
        Self { l1: Arc::new(Mutex::new(l1)), freed }
    }

    /// The value, now the most recently used one.
    pub fn get(&self, id: &KernelId) -> Option<V> {
        self.lock().get(id)
    }

    /// The value, without counting the look-up as a use.
    pub fn peek(&self, id: &KernelId) -> Option<V> {
        self.lock().peek(id).cloned()
    }

    /// The value, held until the lease is dropped.
    pub fn lease(&self, id: &KernelId) -> Option<Lease<V>> {
        self.lock().lease(id)
    }

    /// The value, held until the lease is dropped, without counting a look-up; see [`L1::hold`].
    pub fn hold(&self, id: &KernelId) -> Option<Lease<V>> {
        self.lock().hold(id)
    }

    /// Takes a value in; see [`L1::admit`].
    ///
    /// # Errors
    /// As [`L1::admit`].
    pub fn admit(&self, id: KernelId, value: V) -> Result<Lease<V>, CacheError> {
        self.lock().admit(id, value)
    }

    /// As [`admit`](Self::admit), but where all that could make room is in use, waits up to `patience` for a lease
    /// or a pin to end. Nobody's room is taken from him, and who waits has no right before who comes later.
    ///
    /// # Errors
    /// As [`L1::admit`], at once where waiting cannot help, else the last refusal.
    pub async fn admit_wait(
        &self,
        id: KernelId,
        value: V,
        patience: Duration,
    ) -> Result<Lease<V>, CacheError> {
        let mut end = pin!(tokio::time::sleep(patience));
        loop {
            let mut freed = pin!(self.freed.notified());
            // Listening before trying: what is freed between the two is not missed.
            freed.as_mut().enable();
            match self.admit(id.clone(), value.clone()) {
                Err(CacheError::NoRoom { .. } | CacheError::InUse { .. }) if !end.is_elapsed() => {}
                result => return result,
            }
            tokio::select! {
                () = freed => {}
                // Once more after the end, for what became free with it.
                () = &mut end => {}
            }
        }
    }

    /// Weighs a value again; see [`L1::reweigh`].
    ///
    /// # Errors
    /// As [`L1::reweigh`].
    pub fn reweigh(&self, id: &KernelId) -> Result<bool, CacheError> {
        self.lock().reweigh(id)
    }

    /// Puts a kernel out; `false` where it is not here.
    ///
    /// # Errors
    /// [`CacheError::InUse`] when it is leased or pinned.
    pub fn evict(&self, id: &KernelId) -> Result<bool, CacheError> {
        self.lock().evict(id)
    }

    /// Puts all out that is neither leased nor pinned, and says how many that were.
    pub fn clear(&self) -> usize {
        self.lock().clear()
    }

    /// Keeps a kernel from eviction, or lets it go again; `false` where it is not here.
    pub fn pin(&self, id: &KernelId, pinned: bool) -> bool {
        self.lock().pin(id, pinned)
    }

    /// Sees to it that no look-up finds a kernel any more; see [`L1::condemn`].
    pub fn condemn(&self, id: &KernelId) -> Condemned {
        self.lock().condemn(id)
    }

    /// Puts all out that is not leased, pinned or not, and says how many that were.
    pub fn condemn_unleased(&self) -> usize {
        self.lock().condemn_unleased()
    }

    /// Counters and contents.
    pub fn stats(&self) -> TierStats {
        self.lock().stats()
    }

    /// Every kernel held, the most recently used last.
    pub fn entries(&self) -> Vec<EntryStats> {
        self.lock().entries()
    }

    /// The last evictions, the latest last.
    pub fn evictions(&self) -> Vec<Eviction> {
        self.lock().evictions()
    }

    fn lock(&self) -> MutexGuard<'_, L1<V>> {
        // Only the weight function and `V::clone` are foreign code under this lock, and both run before
        // anything is changed, so what a panic leaves behind is whole.
        self.l1.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
