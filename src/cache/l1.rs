//! The device tier's decisions: what stays, what goes, and why.

use std::{
    collections::{HashMap, VecDeque},
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Instant,
};

use super::{CacheError, EntryStats, Eviction, EvictionReason, TierStats, order::Order};
use crate::{
    clock::{Clock, whole_ms},
    config,
    id::KernelId,
};

/// How many evictions are remembered.
const REMEMBERED_EVICTIONS: usize = 256;

/// The limits of the device tier; both hold at all times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// The most kernels.
    pub max_entries: usize,
    /// The most bytes, by the weight function.
    pub max_bytes: u64,
}

impl From<&config::Cache> for Budget {
    fn from(settings: &config::Cache) -> Self {
        Self { max_entries: settings.max_entries, max_bytes: settings.max_bytes.0 }
    }
}

#[derive(Debug)]
struct Entry<V> {
    id: KernelId,
    value: V,
    bytes: u64,
    holders: Arc<AtomicU32>,
    pinned: bool,
    hits: u64,
    admitted: Instant,
    used: Instant,
}

impl<V> Entry<V> {
    fn holders(&self) -> u32 {
        // Acquire pairs with the release in `Lease::drop`: who sees the last lease gone also sees what was
        // done under it.
        self.holders.load(Ordering::Acquire)
    }

    fn is_held(&self) -> bool {
        self.pinned || self.holders() > 0
    }
}

/// A value in use. While a lease is out, the entry is not evicted.
#[derive(Debug)]
pub struct Lease<V> {
    value: V,
    holders: Arc<AtomicU32>,
}

impl<V> Deref for Lease<V> {
    type Target = V;

    fn deref(&self) -> &V {
        &self.value
    }
}

impl<V> Drop for Lease<V> {
    fn drop(&mut self) {
        self.holders.fetch_sub(1, Ordering::Release);
    }
}

/// Kernels by name, bounded by count and weight, least recently used out first.
///
/// Not shared by itself; [`DeviceCache`](super::DeviceCache) is the handle for that. Leases are given out
/// through `&mut self`, so no holder can appear while room is being made.
#[derive(Debug)]
pub struct L1<V> {
    budget: Budget,
    weigh: fn(&V) -> u64,
    clock: Arc<dyn Clock>,
    slots: Vec<Option<Entry<V>>>,
    free: Vec<u32>,
    index: HashMap<KernelId, u32>,
    order: Order,
    bytes: u64,
    counters: TierStats,
    evictions: VecDeque<Eviction>,
}

impl<V: Clone> L1<V> {
    /// An empty cache; `weigh` says what a value costs.
    pub fn new(budget: Budget, weigh: fn(&V) -> u64, clock: Arc<dyn Clock>) -> Self {
        Self {
            budget,
            weigh,
            clock,
            slots: Vec::new(),
            free: Vec::new(),
            index: HashMap::new(),
            order: Order::default(),
            bytes: 0,
            counters: TierStats::default(),
            evictions: VecDeque::with_capacity(REMEMBERED_EVICTIONS),
        }
    }

    /// The value, now the most recently used one.
    pub fn get(&mut self, id: &KernelId) -> Option<V> {
        self.hit(id).map(|entry| entry.value.clone())
    }

    /// The value, held until the lease is dropped.
    pub fn lease(&mut self, id: &KernelId) -> Option<Lease<V>> {
        self.hit(id).map(lease_of)
    }

    /// The value, held until the lease is dropped, without counting a look-up: for whoever has just put it
    /// there.
    pub fn hold(&mut self, id: &KernelId) -> Option<Lease<V>> {
        self.slot_of(id).map(|slot| lease_of(self.entry(slot)))
    }

    /// The value, without counting it as used.
    pub fn peek(&self, id: &KernelId) -> Option<&V> {
        self.slot_of(id).map(|slot| &self.entry(slot).value)
    }

    fn hit(&mut self, id: &KernelId) -> Option<&Entry<V>> {
        let Some(slot) = self.slot_of(id) else {
            self.counters.misses += 1;
            return None;
        };
        self.counters.hits += 1;
        self.order.touch(slot);
        let now = self.clock.now();
        let entry = self.entry_mut(slot);
        entry.hits += 1;
        entry.used = now;
        Some(entry)
    }

    /// Takes a value in, held by the lease returned, and puts out what must go for it.
    ///
    /// # Errors
    /// [`CacheError::TooLarge`], or [`CacheError::NoRoom`] when too much is held, or [`CacheError::InUse`]
    /// when another version under this name is. Nothing has then changed.
    pub fn admit(&mut self, id: KernelId, value: V) -> Result<Lease<V>, CacheError> {
        let bytes = (self.weigh)(&value);
        let replaced = self.slot_of(&id);
        if let Some(slot) = replaced {
            self.check_free(slot)?;
        }
        self.make_room(&id, bytes, replaced)?;
        if let Some(slot) = replaced {
            self.put_out(slot, EvictionReason::Replaced);
        }
        let now = self.clock.now();
        let holders = Arc::default();
        let entry =
            Entry { id: id.clone(), value, bytes, holders, pinned: false, hits: 0, admitted: now, used: now };
        let lease = lease_of(&entry);
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = Some(entry);
                slot
            }
            None => {
                self.slots.push(Some(entry));
                (self.slots.len() - 1) as u32
            }
        };
        self.index.insert(id, slot);
        self.order.push_newest(slot);
        self.bytes += bytes;
        self.counters.admissions += 1;
        Ok(lease)
    }

    /// Weighs a value again that has grown or shrunk, and puts out what must go for it; `false` where it is
    /// not here.
    ///
    /// # Errors
    /// [`CacheError::TooLarge`] or [`CacheError::NoRoom`]: the new weight does not fit beside what is held.
    /// The value stays with its old weight, and it is the caller's to shrink it again.
    pub fn reweigh(&mut self, id: &KernelId) -> Result<bool, CacheError> {
        let Some(slot) = self.slot_of(id) else {
            return Ok(false);
        };
        let bytes = (self.weigh)(&self.entry(slot).value);
        let old = self.entry(slot).bytes;
        if bytes > old {
            self.make_room(id, bytes, Some(slot))?;
        }
        self.entry_mut(slot).bytes = bytes;
        self.bytes = self.bytes - old + bytes;
        Ok(true)
    }

    /// Evicts others until `bytes` fit beside what stays, counting `own` as already gone; all or nothing.
    fn make_room(&mut self, id: &KernelId, bytes: u64, own: Option<u32>) -> Result<(), CacheError> {
        let Budget { max_entries, max_bytes } = self.budget;
        if bytes > max_bytes || max_entries == 0 {
            return Err(CacheError::TooLarge { id: id.clone(), bytes, max_bytes });
        }
        let mut left_bytes = self.bytes - own.map_or(0, |slot| self.entry(slot).bytes);
        let mut left_entries = self.index.len() - usize::from(own.is_some());
        let mut victims = Vec::new();
        let fits = |left_bytes: u64, left_entries: usize| {
            left_bytes <= max_bytes - bytes && left_entries < max_entries
        };
        // Held entries are stepped over, so this takes as long as there are victims and held entries older
        // than them.
        for slot in self.order.oldest_first() {
            if fits(left_bytes, left_entries) {
                break;
            }
            let entry = self.entry(slot);
            if Some(slot) != own && !entry.is_held() {
                left_bytes -= entry.bytes;
                left_entries -= 1;
                victims.push(slot);
            }
        }
        if !fits(left_bytes, left_entries) {
            return Err(CacheError::NoRoom {
                id: id.clone(),
                bytes,
                held_bytes: left_bytes,
                held_entries: left_entries,
                max_bytes,
                max_entries,
            });
        }
        for slot in victims {
            self.put_out(slot, EvictionReason::Room { newcomer: id.clone() });
        }
        Ok(())
    }

    /// Puts a kernel out; `false` where it is not here.
    ///
    /// # Errors
    /// [`CacheError::InUse`] when it is leased or pinned.
    pub fn evict(&mut self, id: &KernelId) -> Result<bool, CacheError> {
        let Some(slot) = self.slot_of(id) else {
            return Ok(false);
        };
        self.check_free(slot)?;
        self.put_out(slot, EvictionReason::Asked);
        Ok(true)
    }

    /// Puts all out that is neither leased nor pinned, and says how many that were.
    pub fn clear(&mut self) -> usize {
        let free: Vec<u32> = self.order.oldest_first().filter(|&slot| !self.entry(slot).is_held()).collect();
        free.iter().for_each(|&slot| self.put_out(slot, EvictionReason::Cleared));
        free.len()
    }

    /// Keeps a kernel from eviction, or lets it go again; `false` where it is not here.
    pub fn pin(&mut self, id: &KernelId, pinned: bool) -> bool {
        let Some(slot) = self.slot_of(id) else {
            return false;
        };
        self.entry_mut(slot).pinned = pinned;
        true
    }

    fn check_free(&self, slot: u32) -> Result<(), CacheError> {
        let entry = self.entry(slot);
        if entry.is_held() {
            let (holders, pinned) = (entry.holders(), entry.pinned);
            return Err(CacheError::InUse { id: entry.id.clone(), holders, pinned });
        }
        Ok(())
    }

    fn put_out(&mut self, slot: u32, reason: EvictionReason) {
        let Some(entry) = self.slots[slot as usize].take() else {
            return;
        };
        self.order.remove(slot);
        self.index.remove(&entry.id);
        self.free.push(slot);
        self.bytes -= entry.bytes;
        self.counters.evictions += 1;
        if self.evictions.len() == REMEMBERED_EVICTIONS {
            self.evictions.pop_front();
        }
        let idle_ms = whole_ms(self.clock.now().saturating_duration_since(entry.used));
        let at_unix_ms = self.clock.unix_ms();
        self.evictions.push_back(Eviction { id: entry.id, reason, bytes: entry.bytes, idle_ms, at_unix_ms });
    }

    /// Counters and contents.
    pub fn stats(&self) -> TierStats {
        let count = |wanted: fn(&Entry<V>) -> bool| self.entries_of().filter(|e| wanted(e)).count() as u64;
        TierStats {
            tier: "device".to_owned(),
            entries: self.index.len() as u64,
            bytes: self.bytes,
            max_entries: Some(self.budget.max_entries as u64),
            max_bytes: self.budget.max_bytes,
            pinned: count(|entry| entry.pinned),
            leased: count(|entry| entry.holders() > 0),
            ..self.counters.clone()
        }
    }

    /// Every kernel held, the most recently used last.
    pub fn entries(&self) -> Vec<EntryStats> {
        let now = self.clock.now();
        let since = |then| whole_ms(now.saturating_duration_since(then));
        let entry_stats = |slot| {
            let entry = self.entry(slot);
            EntryStats {
                id: entry.id.clone(),
                bytes: entry.bytes,
                age_ms: since(entry.admitted),
                idle_ms: since(entry.used),
                hits: entry.hits,
                holders: entry.holders(),
                pinned: entry.pinned,
            }
        };
        self.order.oldest_first().map(entry_stats).collect()
    }

    /// The last evictions, the latest last.
    pub fn evictions(&self) -> Vec<Eviction> {
        self.evictions.iter().cloned().collect()
    }

    fn entries_of(&self) -> impl Iterator<Item = &Entry<V>> {
        self.slots.iter().flatten()
    }

    fn slot_of(&self, id: &KernelId) -> Option<u32> {
        self.index.get(id).copied()
    }

    fn entry(&self, slot: u32) -> &Entry<V> {
        self.slots[slot as usize].as_ref().expect("the index and the order name only filled slots")
    }

    fn entry_mut(&mut self, slot: u32) -> &mut Entry<V> {
        self.slots[slot as usize].as_mut().expect("the index and the order name only filled slots")
    }
}

fn lease_of<V: Clone>(entry: &Entry<V>) -> Lease<V> {
    entry.holders.fetch_add(1, Ordering::Relaxed);
    Lease { value: entry.value.clone(), holders: entry.holders.clone() }
}
