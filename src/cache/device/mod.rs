//! L1: kernels ready to run, in device memory, shared by whoever asks.

mod index;
mod lease;
mod table;

#[cfg(test)]
mod tests;

use std::{
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use index::Index;
use lease::Freed;
pub use lease::Lease;
use table::Table;
pub use table::{Budget, Condemned};

use super::{CacheError, EntryStats, Eviction, Evictor, LeavingStats, TierStats};
use crate::{
    clock::Clock,
    id::KernelId,
    telemetry::{Counter, step_path},
};

/// A shared handle to the device tier; clones share the cache.
///
/// A hit does not take the tier's lock and writes nothing but what is counted of the kernel itself, so threads that ask
/// for different kernels do not meet. All else takes one short lock.
#[derive(Debug)]
pub struct DeviceCache<V>(Arc<Shared<V>>);

impl<V> Clone for DeviceCache<V> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

#[derive(Debug)]
struct Shared<V> {
    /// What is in the table, for look-ups.
    index: Arc<Index<V>>,
    table: Mutex<Table<V>>,
    misses: Counter,
    freed: Arc<Freed>,
}

impl<V: Clone> DeviceCache<V> {
    /// An empty cache; `weigh` says what a value costs and is called under the lock, so it must be short
    /// and must not come back here.
    pub fn new(budget: Budget, weigh: fn(&V) -> u64, clock: Arc<dyn Clock>) -> Self {
        let table = Table::new(budget, weigh, clock);
        let (index, freed) = (table.index(), table.freed());
        Self(Arc::new(Shared { index, table: Mutex::new(table), misses: Counter::new(), freed }))
    }

    /// The value, held until the lease is dropped; then it is the most recently used one of those not in use.
    pub fn lease(&self, id: &KernelId) -> Option<Lease<V>> {
        let lease = self.0.index.get(id).and_then(|held| {
            // What is closed is about to leave, or to be replaced, or to stay after all: the lock tells.
            held.hit().or_else(|| self.lock().held(id)?.hit())
        });
        if lease.is_none() {
            self.0.misses.increment();
        }
        lease
    }

    /// The value, held until the lease is dropped, without counting a look-up: for whoever has counted one already,
    /// or does not look it up for its own use.
    pub fn hold(&self, id: &KernelId) -> Option<Lease<V>> {
        self.lock().held(id)?.hold()
    }

    /// The value, without counting the look-up as a use.
    pub fn peek(&self, id: &KernelId) -> Option<V> {
        self.lock().held(id).map(|held| held.value.clone())
    }

    /// Takes a value in, held by the lease returned, and puts out what must go for it.
    ///
    /// # Errors
    /// [`CacheError::TooLarge`], or [`CacheError::NoRoom`] when too much is held, or [`CacheError::InUse`]
    /// when another version under this name is. Nothing has then changed.
    pub fn admit(&self, id: KernelId, value: V) -> Result<Lease<V>, CacheError> {
        self.lock().admit(id, value)
    }

    /// As [`admit`](Self::admit), but where all that could make room is in use, waits up to `patience` for a lease
    /// or a pin to end. Nobody's room is taken from him, and who waits has no right before who comes later. What has
    /// come in under the name meanwhile and is in use or pinned is given instead.
    ///
    /// # Errors
    /// As [`admit`](Self::admit), at once where waiting cannot help, else the last refusal.
    pub async fn admit_wait(
        &self,
        id: KernelId,
        value: V,
        patience: Duration,
    ) -> Result<Lease<V>, CacheError> {
        let mut end = pin!(tokio::time::sleep(patience));
        let listener = self.0.freed.listen();
        loop {
            // Made before trying: what is freed between the two is not missed.
            let freed = listener.freed();
            match self.admit(id.clone(), value.clone()) {
                Err(CacheError::InUse { .. }) if let Some(lease) = self.hold(&id) => return Ok(lease),
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

    /// Puts out what must go for a value that has grown; `false` where it is not here.
    ///
    /// # Errors
    /// [`CacheError::TooLarge`] or [`CacheError::NoRoom`]: it does not fit beside what is held. It counts with its
    /// new weight all the same, what nobody uses is gone, and nothing comes in before there is room for it.
    pub fn reweigh(&self, id: &KernelId) -> Result<bool, CacheError> {
        self.lock().reweigh(id)
    }

    /// Puts a kernel out, and says what it weighed; nothing where it is not here.
    ///
    /// # Errors
    /// [`CacheError::InUse`] when it is leased or pinned.
    pub fn evict(&self, id: &KernelId, by: &Evictor) -> Result<Option<u64>, CacheError> {
        self.lock().evict(id, by)
    }

    /// As [`evict`](Self::evict), but while it is leased, and for as long as `waits` says so whenever something has been
    /// let go, waits for that to end.
    ///
    /// # Errors
    /// As [`evict`](Self::evict).
    pub async fn evict_wait(
        &self,
        id: &KernelId,
        by: &Evictor,
        mut waits: impl FnMut() -> bool,
    ) -> Result<Option<u64>, CacheError> {
        let listener = self.0.freed.listen();
        loop {
            // Made before trying, as in `admit_wait`.
            let freed = listener.freed();
            match self.evict(id, by) {
                Err(CacheError::InUse { pinned: false, .. }) if waits() => freed.await,
                result => return result,
            }
        }
    }

    /// Puts all out that is neither leased nor pinned, and says what that was and weighed.
    pub fn clear(&self, by: &Evictor) -> Vec<(KernelId, u64)> {
        self.lock().clear(by)
    }

    /// Keeps a kernel from eviction, or lets it go again; `false` where it is not here.
    pub fn pin(&self, id: &KernelId, pinned: bool) -> bool {
        self.lock().pin(id, pinned)
    }

    /// Sees to it that no look-up finds a kernel any more: it is put out, pinned or not; one in use leaves when
    /// its last lease ends, and counts until then.
    pub fn condemn(&self, id: &KernelId, by: &Evictor) -> Condemned {
        self.lock().condemn(id, by)
    }

    /// Condemns everything, and says how many kernels that were.
    pub fn condemn_all(&self, by: &Evictor) -> usize {
        self.lock().condemn_all(by)
    }

    /// How often each kernel was found since this was last asked, those included that have left since.
    pub fn take_hits(&self) -> Vec<(KernelId, u64)> {
        self.lock().take_hits()
    }

    /// Counters and contents.
    pub fn stats(&self) -> TierStats {
        TierStats { misses: self.0.misses.get(), ..self.lock().stats() }
    }

    /// Every kernel held, the most recently used last.
    pub fn entries(&self) -> Vec<EntryStats> {
        self.lock().entries()
    }

    /// What was condemned and is still in use, the latest last.
    pub fn leaving(&self) -> Vec<LeavingStats> {
        self.lock().leaving()
    }

    /// The last evictions, the latest last.
    pub fn evictions(&self) -> Vec<Eviction> {
        self.lock().evictions()
    }

    fn lock(&self) -> MutexGuard<'_, Table<V>> {
        step_path::may_wait();
        // Only the weight function and `V::clone` are foreign code under this lock, and both run before
        // anything is changed, so what a panic leaves behind is whole.
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
