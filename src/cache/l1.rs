//! The device tier's decisions: what stays, what goes, and why.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Weak},
};

use tokio::sync::Notify;

use super::{
    CacheError, EntryStats, Eviction, EvictionReason, Lease, TierStats, lease::Resident,
    name_hash::NameHashes, order::Order,
};
use crate::{clock::Clock, config, id::KernelId};

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
    held: Arc<Resident<V>>,
    bytes: u64,
    pinned: bool,
    hits: u64,
    /// On the clock's coarse face, as `used`.
    admitted_ms: u64,
    used_ms: u64,
}

impl<V> Entry<V> {
    fn holders(&self) -> u32 {
        self.held.leases()
    }

    fn is_held(&self) -> bool {
        self.pinned || self.holders() > 0
    }
}

/// A kernel that was condemned while leases were out: no look-up finds it, but its bytes are still taken.
#[derive(Debug)]
struct Leaving<V> {
    held: Weak<Resident<V>>,
    bytes: u64,
}

impl<V> Leaving<V> {
    fn is_gone(&self) -> bool {
        self.held.upgrade().is_none_or(|held| held.leases() == 0)
    }
}

/// What became of a kernel that must not be found any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condemned {
    /// It was not here.
    Absent,
    /// It is gone, pinned or not.
    Gone {
        /// What it weighed.
        bytes: u64,
    },
    /// No look-up finds it any more; its bytes are free when those who use it let go.
    Marked {
        /// How many leases are out.
        holders: u32,
    },
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
    index: HashMap<KernelId, u32, NameHashes>,
    order: Order,
    leaving: Vec<Leaving<V>>,
    /// Of all entries and of those that are leaving.
    bytes: u64,
    /// Told whenever something may have become free.
    freed: Arc<Notify>,
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
            index: HashMap::default(),
            order: Order::default(),
            leaving: Vec::new(),
            bytes: 0,
            freed: Arc::default(),
            counters: TierStats::default(),
            evictions: VecDeque::with_capacity(REMEMBERED_EVICTIONS),
        }
    }

    /// The value, now the most recently used one.
    pub fn get(&mut self, id: &KernelId) -> Option<V> {
        self.hit(id).map(|entry| entry.held.value.clone())
    }

    /// The value, held until the lease is dropped.
    pub fn lease(&mut self, id: &KernelId) -> Option<Lease<V>> {
        self.hit(id).map(|entry| Lease::of(&entry.held))
    }

    /// The value, held until the lease is dropped, without counting a look-up: for whoever has just put it
    /// there.
    pub fn hold(&mut self, id: &KernelId) -> Option<Lease<V>> {
        self.slot_of(id).map(|slot| Lease::of(&self.entry(slot).held))
    }

    /// The value, without counting it as used.
    pub fn peek(&self, id: &KernelId) -> Option<&V> {
        self.slot_of(id).map(|slot| &self.entry(slot).held.value)
    }

    fn hit(&mut self, id: &KernelId) -> Option<&Entry<V>> {
        let Some(slot) = self.slot_of(id) else {
            self.counters.misses += 1;
            return None;
        };
        self.counters.hits += 1;
        self.order.touch(slot);
        let now_ms = self.clock.coarse_ms();
        let entry = self.entry_mut(slot);
        entry.hits += 1;
        entry.used_ms = now_ms;
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
        let now_ms = self.clock.coarse_ms();
        let held = Resident::new(value, self.freed.clone());
        let lease = Lease::of(&held);
        let (admitted_ms, used_ms) = (now_ms, now_ms);
        let entry = Entry { id: id.clone(), held, bytes, pinned: false, hits: 0, admitted_ms, used_ms };
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
        let bytes = (self.weigh)(&self.entry(slot).held.value);
        let old = self.entry(slot).bytes;
        if bytes > old {
            self.make_room(id, bytes, Some(slot))?;
        }
        self.entry_mut(slot).bytes = bytes;
        self.bytes = self.bytes - old + bytes;
        if bytes < old {
            self.freed.notify_waiters();
        }
        Ok(true)
    }

    /// Evicts others until `bytes` fit beside what stays, counting `own` as already gone; all or nothing.
    fn make_room(&mut self, id: &KernelId, bytes: u64, own: Option<u32>) -> Result<(), CacheError> {
        let Budget { max_entries, max_bytes } = self.budget;
        if bytes > max_bytes || max_entries == 0 {
            return Err(CacheError::TooLarge { id: id.clone(), bytes, max_bytes });
        }
        self.let_go();
        let mut left_bytes = self.bytes - own.map_or(0, |slot| self.entry(slot).bytes);
        let mut left_entries = self.index.len() + self.leaving.len() - usize::from(own.is_some());
        let mut victims = Vec::new();
        let fits = |left_bytes: u64, left_entries: usize| {
            left_bytes <= max_bytes - bytes && left_entries < max_entries
        };
        // Resident entries are stepped over, so this takes as long as there are victims and held entries older
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
        if !pinned {
            self.freed.notify_waiters();
        }
        true
    }

    /// Sees to it that no look-up finds a kernel any more: it is put out, pinned or not; one in use leaves when
    /// its last lease ends, and counts until then.
    pub fn condemn(&mut self, id: &KernelId) -> Condemned {
        let Some(slot) = self.slot_of(id) else {
            return Condemned::Absent;
        };
        let entry = self.entry(slot);
        let (bytes, holders) = (entry.bytes, entry.holders());
        let held = Arc::downgrade(&entry.held);
        self.put_out(slot, EvictionReason::Invalidated);
        if holders == 0 {
            return Condemned::Gone { bytes };
        }
        self.bytes += bytes;
        self.leaving.push(Leaving { held, bytes });
        Condemned::Marked { holders }
    }

    /// Puts all out that is not leased, pinned or not, and says how many that were.
    pub fn condemn_unleased(&mut self) -> usize {
        let leased = |entry: &Entry<V>| entry.holders() > 0;
        let free: Vec<u32> = self.order.oldest_first().filter(|&slot| !leased(self.entry(slot))).collect();
        free.iter().for_each(|&slot| self.put_out(slot, EvictionReason::Invalidated));
        free.len()
    }

    /// Gives back the bytes of condemned kernels that nobody uses any more.
    fn let_go(&mut self) {
        let bytes = &mut self.bytes;
        self.leaving.retain(|leaving| {
            let gone = leaving.is_gone();
            if gone {
                *bytes -= leaving.bytes;
            }
            !gone
        });
    }

    /// What is told whenever a lease or a pin ends or an entry goes.
    pub(super) fn freed(&self) -> Arc<Notify> {
        self.freed.clone()
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
        self.freed.notify_waiters();
        self.counters.evictions += 1;
        if self.evictions.len() == REMEMBERED_EVICTIONS {
            self.evictions.pop_front();
        }
        let idle_ms = self.clock.coarse_ms().saturating_sub(entry.used_ms);
        let at_unix_ms = self.clock.unix_ms();
        self.evictions.push_back(Eviction { id: entry.id, reason, bytes: entry.bytes, idle_ms, at_unix_ms });
    }

    /// Counters and contents.
    pub fn stats(&mut self) -> TierStats {
        self.let_go();
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
        let now_ms = self.clock.coarse_ms();
        let since = |then_ms: u64| now_ms.saturating_sub(then_ms);
        let entry_stats = |slot| {
            let entry = self.entry(slot);
            EntryStats {
                id: entry.id.clone(),
                bytes: entry.bytes,
                age_ms: since(entry.admitted_ms),
                idle_ms: since(entry.used_ms),
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
