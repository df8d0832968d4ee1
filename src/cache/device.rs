//! L1: kernels ready to run, in device memory, shared by whoever asks.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Budget, CacheError, EntryStats, Eviction, L1, Lease, TierStats};
use crate::{clock::Clock, id::KernelId};

/// A shared handle to the device tier; clones share the cache.
///
/// Blocking: every call takes one short lock; a hit does so for a look-up and a few stores.
#[derive(Debug)]
pub struct DeviceCache<V>(Arc<Mutex<L1<V>>>);

impl<V> Clone for DeviceCache<V> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<V: Clone> DeviceCache<V> {
    /// An empty cache; `weigh` says what a value costs and is called under the lock, so it must be short
    /// and must not come back here.
    pub fn new(budget: Budget, weigh: fn(&V) -> u64, clock: Arc<dyn Clock>) -> Self {
        Self(Arc::new(Mutex::new(L1::new(budget, weigh, clock))))
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
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
