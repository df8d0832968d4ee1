//! The device tier's decisions: what stays, what goes, and why.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Weak},
};

use super::{
    CacheError, EntryStats, Eviction, Evictor, Lease, LeavingStats, TierStats,
    index::Index,
    lease::{Freed, Resident},
};
use crate::{cache::EvictionReason, clock::Clock, config, id::KernelId};

/// How many evictions are remembered.
const REMEMBERED_EVICTIONS: usize = 256;

/// The limits of the device tier. What comes in keeps both; what grows while all else is in use may pass the second.
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
    held: Arc<Resident<V>>,
    /// What it weighed when it was last looked at.
    bytes: u64,
    pinned: bool,
    /// On the clock's coarse face.
    admitted_ms: u64,
    /// Counts admissions.
    number: u64,
    /// Hits that [`Table::take_hits`] has told of.
    told_hits: u64,
}

impl<V> Entry<V> {
    /// Who has the least goes first: the clock ticks every few milliseconds, and of those let go within one tick who
    /// was found less often goes before the others. What is in use is used now.
    fn recency(&self) -> (bool, u64, u64, u64) {
        (self.held.leases() > 0, self.held.used_ms(), self.held.hits(), self.number)
    }
}

/// A kernel that was condemned while leases were out: no look-up finds it, but its bytes are still taken.
#[derive(Debug)]
struct Leaving<V> {
    id: KernelId,
    held: Weak<Resident<V>>,
    bytes: u64,
    /// On the clock's coarse face.
    condemned_ms: u64,
}

impl<V> Leaving<V> {
    /// What somebody still uses of it.
    fn held(&self) -> Option<Arc<Resident<V>>> {
        self.held.upgrade().filter(|held| held.leases() > 0)
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
/// Look-ups go past it, by the index, and are counted in each [`Resident`]. Whoever wants a kernel out closes it
/// first, which fails while a lease is out and lets none be given afterwards.
#[derive(Debug)]
pub(super) struct Table<V> {
    budget: Budget,
    weigh: fn(&V) -> u64,
    clock: Arc<dyn Clock>,
    entries: HashMap<KernelId, Entry<V>>,
    /// The same for look-ups.
    index: Arc<Index<V>>,
    leaving: Vec<Leaving<V>>,
    /// Of all entries and of those that are leaving.
    bytes: u64,
    /// Told whenever something may have become free.
    freed: Arc<Freed>,
    /// Admissions, evictions, and the hits of those that have left.
    counters: TierStats,
    /// Hits of those that have left, which nobody has been told of.
    departed_hits: HashMap<KernelId, u64>,
    evictions: VecDeque<Eviction>,
}

impl<V: Clone> Table<V> {
    pub(super) fn new(budget: Budget, weigh: fn(&V) -> u64, clock: Arc<dyn Clock>) -> Self {
        Self {
            budget,
            weigh,
            clock,
            entries: HashMap::new(),
            index: Arc::default(),
            leaving: Vec::new(),
            bytes: 0,
            freed: Arc::default(),
            counters: TierStats::default(),
            departed_hits: HashMap::new(),
            evictions: VecDeque::with_capacity(REMEMBERED_EVICTIONS),
        }
    }

    /// What look-ups go by.
    pub(super) fn index(&self) -> Arc<Index<V>> {
        self.index.clone()
    }

    /// What is told whenever a lease or a pin ends or an entry goes.
    pub(super) fn freed(&self) -> Arc<Freed> {
        self.freed.clone()
    }

    /// The kernel, which while the lock is held is not closed.
    pub(super) fn held(&self, id: &KernelId) -> Option<Arc<Resident<V>>> {
        self.entries.get(id).map(|entry| entry.held.clone())
    }

    /// As [`DeviceCache::admit`](super::DeviceCache::admit).
    pub(super) fn admit(&mut self, id: KernelId, value: V) -> Result<Lease<V>, CacheError> {
        let bytes = (self.weigh)(&value);
        self.weigh_all();
        let replaces = self.close(&id)?;
        if let Err(error) = self.make_room(&id, bytes) {
            if replaces {
                self.entries[&id].held.reopen();
            }
            return Err(error);
        }
        self.put_out(&id, EvictionReason::Replaced);
        let now_ms = self.clock.coarse_ms();
        let held = Resident::new(value, self.clock.clone(), self.freed.clone());
        let lease = Lease::first(&held);
        self.index.insert(id.clone(), held.clone());
        self.counters.admissions += 1;
        let number = self.counters.admissions;
        let entry = Entry { held, bytes, pinned: false, admitted_ms: now_ms, number, told_hits: 0 };
        self.entries.insert(id, entry);
        self.bytes += bytes;
        Ok(lease)
    }

    /// As [`DeviceCache::reweigh`](super::DeviceCache::reweigh).
    pub(super) fn reweigh(&mut self, id: &KernelId) -> Result<bool, CacheError> {
        self.weigh_all();
        let Some(entry) = self.entries.get(id) else {
            return Ok(false);
        };
        let bytes = entry.bytes;
        if self.bytes <= self.budget.max_bytes {
            return Ok(true);
        }
        let short = self.make_room(id, bytes).inspect_err(|_| {
            // What has grown is there. Nobody unused is left where it is too much.
            self.put_out_all(&EvictionReason::Room { newcomer: id.clone() }, |entry| !entry.pinned, Some(id));
            self.counters.overruns += 1;
        });
        short.map(|()| true)
    }

    /// Takes every weight anew: kernels grow and shrink with their plans and with what their seeds run on, and only
    /// those that grow tell.
    fn weigh_all(&mut self) {
        self.let_go();
        let before = self.bytes;
        for entry in self.entries.values_mut() {
            let bytes = (self.weigh)(&entry.held.value);
            self.bytes = self.bytes - entry.bytes + bytes;
            entry.bytes = bytes;
        }
        for leaving in &mut self.leaving {
            if let Some(held) = leaving.held.upgrade() {
                let bytes = (self.weigh)(&held.value);
                self.bytes = self.bytes - leaving.bytes + bytes;
                leaving.bytes = bytes;
            }
        }
        if self.bytes < before {
            self.freed.tell();
        }
    }

    /// Evicts others until `bytes` fit beside what stays, counting what stands under `id` as already gone; all or
    /// nothing.
    fn make_room(&mut self, id: &KernelId, bytes: u64) -> Result<(), CacheError> {
        let Budget { max_entries, max_bytes } = self.budget;
        if bytes > max_bytes || max_entries == 0 {
            return Err(CacheError::TooLarge { id: id.clone(), bytes, max_bytes });
        }
        let own = self.entries.get(id);
        let mut left_bytes = self.bytes - own.map_or(0, |entry| entry.bytes);
        let mut left_entries = self.entries.len() + self.leaving.len() - usize::from(own.is_some());
        let fits = |left_bytes: u64, left_entries: usize| {
            left_bytes <= max_bytes - bytes && left_entries < max_entries
        };
        if fits(left_bytes, left_entries) {
            return Ok(());
        }
        let mut victims = Vec::new();
        for other in self.oldest_first().filter(|&other| other != id) {
            if fits(left_bytes, left_entries) {
                break;
            }
            let entry = &self.entries[other];
            if !entry.pinned && entry.held.close_unused() {
                left_bytes -= entry.bytes;
                left_entries -= 1;
                victims.push(other.clone());
            }
        }
        if !fits(left_bytes, left_entries) {
            victims.iter().for_each(|victim| self.entries[victim].held.reopen());
            return Err(CacheError::NoRoom {
                id: id.clone(),
                bytes,
                held_bytes: left_bytes,
                held_entries: left_entries,
                max_bytes,
                max_entries,
            });
        }
        for victim in victims {
            self.put_out(&victim, EvictionReason::Room { newcomer: id.clone() });
        }
        Ok(())
    }

    /// As [`DeviceCache::evict`](super::DeviceCache::evict).
    pub(super) fn evict(&mut self, id: &KernelId, by: &Evictor) -> Result<Option<u64>, CacheError> {
        self.weigh_all();
        let bytes = self.entries.get(id).map(|entry| entry.bytes);
        self.close(id)?;
        self.put_out(id, EvictionReason::Asked { by: by.clone() });
        Ok(bytes)
    }

    /// As [`DeviceCache::clear`](super::DeviceCache::clear).
    pub(super) fn clear(&mut self, by: &Evictor) -> Vec<(KernelId, u64)> {
        self.weigh_all();
        self.put_out_all(&EvictionReason::Cleared { by: by.clone() }, |entry| !entry.pinned, None)
    }

    /// Keeps a kernel from eviction, or lets it go again; `false` where it is not here.
    pub(super) fn pin(&mut self, id: &KernelId, pinned: bool) -> bool {
        let Some(entry) = self.entries.get_mut(id) else {
            return false;
        };
        entry.pinned = pinned;
        if !pinned {
            self.freed.tell();
        }
        true
    }

    /// As [`DeviceCache::condemn`](super::DeviceCache::condemn).
    pub(super) fn condemn(&mut self, id: &KernelId, by: &Evictor) -> Condemned {
        let Some(entry) = self.entries.get(id) else {
            return Condemned::Absent;
        };
        let (bytes, held) = (entry.bytes, entry.held.clone());
        held.close();
        self.put_out(id, EvictionReason::Invalidated { by: by.clone() });
        match held.leases() {
            0 => Condemned::Gone { bytes },
            holders => {
                self.bytes += bytes;
                let (id, held) = (id.clone(), Arc::downgrade(&held));
                self.leaving.push(Leaving { id, held, bytes, condemned_ms: self.clock.coarse_ms() });
                Condemned::Marked { holders }
            }
        }
    }

    /// As [`DeviceCache::condemn_all`](super::DeviceCache::condemn_all).
    pub(super) fn condemn_all(&mut self, by: &Evictor) -> usize {
        let all: Vec<KernelId> = self.oldest_first().cloned().collect();
        for id in &all {
            self.condemn(id, by);
        }
        all.len()
    }

    /// Puts out, the oldest first, what may go and nobody uses, but for one; says what that was and weighed.
    fn put_out_all(
        &mut self,
        reason: &EvictionReason,
        may_go: fn(&Entry<V>) -> bool,
        except: Option<&KernelId>,
    ) -> Vec<(KernelId, u64)> {
        let goes = |id: &&KernelId| {
            let entry = &self.entries[*id];
            Some(*id) != except && may_go(entry) && entry.held.close_unused()
        };
        let gone = self.oldest_first().filter(goes).map(|id| (id.clone(), self.entries[id].bytes));
        let gone: Vec<(KernelId, u64)> = gone.collect();
        gone.iter().for_each(|(id, _)| self.put_out(id, reason.clone()));
        gone
    }

    /// Gives back the bytes of condemned kernels that nobody uses any more.
    fn let_go(&mut self) {
        let bytes = &mut self.bytes;
        self.leaving.retain(|leaving| {
            let stays = leaving.held().is_some();
            if !stays {
                *bytes -= leaving.bytes;
            }
            stays
        });
    }

    /// Closes what is neither leased nor pinned; `false` where it is not here.
    fn close(&self, id: &KernelId) -> Result<bool, CacheError> {
        let Some(entry) = self.entries.get(id) else {
            return Ok(false);
        };
        if entry.pinned || !entry.held.close_unused() {
            let (holders, pinned) = (entry.held.leases(), entry.pinned);
            return Err(CacheError::InUse { id: id.clone(), holders, pinned });
        }
        Ok(true)
    }

    /// Takes a closed kernel out, if it is here.
    fn put_out(&mut self, id: &KernelId, reason: EvictionReason) {
        let Some(entry) = self.entries.remove(id) else {
            return;
        };
        self.index.remove(id);
        self.bytes -= entry.bytes;
        self.freed.tell();
        let hits = entry.held.closed_hits();
        self.counters.hits += hits;
        if hits > entry.told_hits {
            *self.departed_hits.entry(id.clone()).or_default() += hits - entry.told_hits;
        }
        self.counters.evictions += 1;
        if self.evictions.len() == REMEMBERED_EVICTIONS {
            self.evictions.pop_front();
        }
        let idle_ms = entry.held.idle_ms(self.clock.coarse_ms());
        let at_unix_ms = self.clock.unix_ms();
        self.evictions.push_back(Eviction {
            id: id.clone(),
            reason,
            bytes: entry.bytes,
            idle_ms,
            at_unix_ms,
        });
    }

    /// As [`DeviceCache::take_hits`](super::DeviceCache::take_hits).
    pub(super) fn take_hits(&mut self) -> Vec<(KernelId, u64)> {
        let mut all = std::mem::take(&mut self.departed_hits);
        for (id, entry) in &mut self.entries {
            let hits = entry.held.hits();
            if hits > entry.told_hits {
                *all.entry(id.clone()).or_default() += hits - entry.told_hits;
                entry.told_hits = hits;
            }
        }
        all.into_iter().collect()
    }

    /// Counters and contents, but for the misses.
    pub(super) fn stats(&mut self) -> TierStats {
        self.weigh_all();
        let count =
            |wanted: fn(&Entry<V>) -> bool| self.entries.values().filter(|e| wanted(e)).count() as u64;
        TierStats {
            tier: "device".to_owned(),
            entries: self.entries.len() as u64,
            bytes: self.bytes,
            max_entries: Some(self.budget.max_entries as u64),
            max_bytes: self.budget.max_bytes,
            pinned: count(|entry| entry.pinned),
            leased: count(|entry| entry.held.leases() > 0),
            hits: self.counters.hits + self.entries.values().map(|entry| entry.held.hits()).sum::<u64>(),
            ..self.counters.clone()
        }
    }

    /// Every kernel held, the most recently used last.
    pub(super) fn entries(&mut self) -> Vec<EntryStats> {
        self.weigh_all();
        let now_ms = self.clock.coarse_ms();
        let entry_stats = |id: &KernelId| {
            let entry = &self.entries[id];
            EntryStats {
                id: id.clone(),
                bytes: entry.bytes,
                age_ms: now_ms.saturating_sub(entry.admitted_ms),
                idle_ms: entry.held.idle_ms(now_ms),
                hits: entry.held.hits(),
                holders: entry.held.leases(),
                pinned: entry.pinned,
            }
        };
        self.oldest_first().map(entry_stats).collect()
    }

    /// What was condemned and is still in use, the latest last.
    pub(super) fn leaving(&mut self) -> Vec<LeavingStats> {
        self.weigh_all();
        let now_ms = self.clock.coarse_ms();
        let stats = |leaving: &Leaving<V>| {
            Some(LeavingStats {
                id: leaving.id.clone(),
                bytes: leaving.bytes,
                leaving_ms: now_ms.saturating_sub(leaving.condemned_ms),
                holders: leaving.held()?.leases(),
            })
        };
        self.leaving.iter().filter_map(stats).collect()
    }

    /// The last evictions, the latest last.
    pub(super) fn evictions(&self) -> Vec<Eviction> {
        self.evictions.iter().cloned().collect()
    }

    /// Kernels, the least recently used first.
    fn oldest_first(&self) -> impl Iterator<Item = &KernelId> {
        let mut ids: Vec<_> = self.entries.iter().map(|(id, entry)| (entry.recency(), id)).collect();
        ids.sort_unstable_by_key(|(recency, _)| *recency);
        ids.into_iter().map(|(_, id)| id)
    }
}
