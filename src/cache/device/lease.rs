//! A value in use, and how whoever waits for room learns that it is free again.

use std::{
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use tokio::sync::{Notify, futures::Notified};

use crate::clock::Clock;

/// One lease, in the lowest 24 bits: each belongs to a seed, so they do not run over.
const LEASE: u64 = 1;
const LEASES: u64 = (1 << 24) - 1;
/// Set on what is leaving the tier: no new lease is given.
const CLOSED: u64 = 1 << 24;
/// One hit, in the bits above; there a sum that runs over loses its top bit and nothing else.
const HIT: u64 = 1 << 25;

/// Tells those who wait for room that some may have become free.
#[derive(Debug, Default)]
pub(super) struct Freed {
    waiting: AtomicU32,
    notify: Notify,
}

impl Freed {
    /// With nobody waiting this is one load.
    pub(super) fn tell(&self) {
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.notify.notify_waiters();
        }
    }

    /// To be made before looking for room: what is freed after that is told.
    pub(super) fn listen(&self) -> Listener<'_> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        Listener(self)
    }
}

/// Somebody who waits for room.
#[derive(Debug)]
pub(super) struct Listener<'a>(&'a Freed);

impl Listener<'_> {
    /// Done when something has become free since the last look at this future.
    pub(super) fn freed(&self) -> Notified<'_> {
        self.0.notify.notified()
    }
}

impl Drop for Listener<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A value of the device tier with what is counted of it without the tier's lock.
#[derive(Debug)]
pub(super) struct Resident<V> {
    pub(super) value: V,
    /// Leases, hits and whether it is closed, in one word: a hit is a single addition.
    word: AtomicU64,
    /// Hits when it was closed: those that come later are given back again.
    closed_hits: AtomicU64,
    /// When a lease last ended, or when it came in, on the clock's coarse face.
    used_ms: AtomicU64,
    clock: Arc<dyn Clock>,
    /// Shared by the whole tier: told whenever a last lease ends.
    freed: Arc<Freed>,
}

impl<V> Resident<V> {
    pub(super) fn new(value: V, clock: Arc<dyn Clock>, freed: Arc<Freed>) -> Arc<Self> {
        let used_ms = AtomicU64::new(clock.coarse_ms());
        Arc::new(Self {
            value,
            word: AtomicU64::new(0),
            closed_hits: AtomicU64::new(0),
            used_ms,
            clock,
            freed,
        })
    }

    /// Leases that are out.
    pub(super) fn leases(&self) -> u32 {
        (self.word.load(Ordering::SeqCst) & LEASES) as u32
    }

    /// How often it was found.
    pub(super) fn hits(&self) -> u64 {
        self.word.load(Ordering::Relaxed) / HIT
    }

    /// When it was last let go, in milliseconds; of what is in use it says nothing.
    pub(super) fn used_ms(&self) -> u64 {
        self.used_ms.load(Ordering::Relaxed)
    }

    /// Milliseconds for which nobody has used it: none while a lease is out.
    pub(super) fn idle_ms(&self, now_ms: u64) -> u64 {
        if self.leases() > 0 { 0 } else { now_ms.saturating_sub(self.used_ms()) }
    }

    /// A lease for somebody who looked it up; `None` once it is closed.
    pub(super) fn hit(self: Arc<Self>) -> Option<Lease<V>> {
        self.take(LEASE + HIT)
    }

    /// A lease that is no look-up; `None` once it is closed.
    pub(super) fn hold(self: Arc<Self>) -> Option<Lease<V>> {
        self.take(LEASE)
    }

    fn take(self: Arc<Self>, taken: u64) -> Option<Lease<V>> {
        if self.word.fetch_add(taken, Ordering::SeqCst) & CLOSED != 0 {
            self.give_back(taken);
            return None;
        }
        Some(Lease(self))
    }

    /// Ordered before the look at who waits, as whoever waits says so before he looks at the leases: one of the two
    /// sees the other.
    fn give_back(&self, taken: u64) {
        if self.word.fetch_sub(taken, Ordering::SeqCst) & LEASES == LEASE {
            self.freed.tell();
        }
    }

    /// Closes what nobody uses; `false` where somebody does.
    pub(super) fn close_unused(&self) -> bool {
        let close = |word: u64| (word & LEASES == 0).then_some(word | CLOSED);
        let before = self.word.fetch_update(Ordering::SeqCst, Ordering::SeqCst, close);
        before.is_ok_and(|word| {
            self.closed_hits.store(word / HIT, Ordering::Relaxed);
            true
        })
    }

    /// Closes it, whoever uses it.
    pub(super) fn close(&self) {
        let before = self.word.fetch_or(CLOSED, Ordering::SeqCst);
        self.closed_hits.store(before / HIT, Ordering::Relaxed);
    }

    /// How often it had been found when it was closed last. A look-up that comes while it is put out counts itself for a
    /// moment, and is not one.
    pub(super) fn closed_hits(&self) -> u64 {
        self.closed_hits.load(Ordering::Relaxed)
    }

    /// Takes a [`close_unused`](Self::close_unused) back.
    pub(super) fn reopen(&self) {
        self.word.fetch_and(!CLOSED, Ordering::SeqCst);
    }
}

/// A value in use. While a lease is out, the entry is not evicted.
#[derive(Debug)]
pub struct Lease<V>(Arc<Resident<V>>);

impl<V> Lease<V> {
    /// The lease of whoever brings a value in.
    pub(super) fn first(held: &Arc<Resident<V>>) -> Self {
        held.word.fetch_add(LEASE, Ordering::SeqCst);
        Self(held.clone())
    }
}

impl<V> Deref for Lease<V> {
    type Target = V;

    fn deref(&self) -> &V {
        &self.0.value
    }
}

impl<V> Drop for Lease<V> {
    fn drop(&mut self) {
        let now_ms = self.0.clock.coarse_ms();
        // Before the lease is given back, or it could be put out as what nobody has used since it was taken. Read far
        // more often than it changes, so that threads share its line until the clock ticks.
        if self.0.used_ms() != now_ms {
            self.0.used_ms.store(now_ms, Ordering::Relaxed);
        }
        self.0.give_back(LEASE);
    }
}
