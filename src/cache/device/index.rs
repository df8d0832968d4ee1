//! Where look-ups find kernels without the tier's lock.

use std::{
    hash::BuildHasher as _,
    sync::{Arc, PoisonError, RwLock},
};

use hashbrown::{DefaultHashBuilder, HashTable};

use super::lease::Resident;
use crate::id::KernelId;

/// A power of two, far above the number of threads that graft at the same time.
const SHARDS: usize = 32;

/// Residents by name, in shards with a lock each: readers of one shard do not exclude each other, and those of two
/// touch no common line of memory.
#[derive(Debug)]
pub(super) struct Index<V> {
    hashes: DefaultHashBuilder,
    shards: [Shard<V>; SHARDS],
}

/// Alone on its line of memory, and on the next, which the processor fetches with it.
#[derive(Debug)]
#[repr(align(128))]
struct Shard<V>(RwLock<Residents<V>>);

type Residents<V> = HashTable<(KernelId, Arc<Resident<V>>)>;

impl<V> Default for Index<V> {
    fn default() -> Self {
        let shards = std::array::from_fn(|_| Shard(RwLock::default()));
        Self { hashes: DefaultHashBuilder::default(), shards }
    }
}

impl<V> Index<V> {
    /// What stands under a name.
    pub(super) fn get(&self, id: &KernelId) -> Option<Arc<Resident<V>>> {
        let hash = self.hashes.hash_one(id);
        // None of the changes below can panic half done.
        let shard = self.shard(hash).read().unwrap_or_else(PoisonError::into_inner);
        shard.find(hash, |(key, _)| key == id).map(|(_, held)| held.clone())
    }

    /// Puts a resident under a name that has none.
    pub(super) fn insert(&self, id: KernelId, held: Arc<Resident<V>>) {
        let hash = self.hashes.hash_one(&id);
        let mut shard = self.shard(hash).write().unwrap_or_else(PoisonError::into_inner);
        shard.insert_unique(hash, (id, held), |(key, _)| self.hashes.hash_one(key));
    }

    /// Takes away what stands under a name.
    pub(super) fn remove(&self, id: &KernelId) {
        let hash = self.hashes.hash_one(id);
        let mut shard = self.shard(hash).write().unwrap_or_else(PoisonError::into_inner);
        if let Ok(entry) = shard.find_entry(hash, |(key, _)| key == id) {
            entry.remove();
        }
    }

    fn shard(&self, hash: u64) -> &RwLock<Residents<V>> {
        // From the middle: a table takes the lowest and the highest bits.
        &self.shards[(hash >> 32) as usize % SHARDS].0
    }
}
