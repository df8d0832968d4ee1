//! A value in use, and how whoever waits for room learns that it is free again.

use std::{
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use tokio::sync::Notify;

/// A value of the device tier with the number of its leases.
#[derive(Debug)]
pub(super) struct Resident<V> {
    pub(super) value: V,
    leases: AtomicU32,
    /// Shared by the whole tier: told whenever a last lease ends.
    freed: Arc<Notify>,
}

impl<V> Resident<V> {
    pub(super) fn new(value: V, freed: Arc<Notify>) -> Arc<Self> {
        Arc::new(Self { value, leases: AtomicU32::new(0), freed })
    }

    /// Leases that are out.
    pub(super) fn leases(&self) -> u32 {
        // Acquire pairs with the release in `Lease::drop`: who sees the last lease gone also sees what was
        // done under it.
        self.leases.load(Ordering::Acquire)
    }
}

/// A value in use. While a lease is out, the entry is not evicted.
#[derive(Debug)]
pub struct Lease<V>(Arc<Resident<V>>);

impl<V> Lease<V> {
    pub(super) fn of(held: &Arc<Resident<V>>) -> Self {
        held.leases.fetch_add(1, Ordering::Relaxed);
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
        if self.0.leases.fetch_sub(1, Ordering::Release) == 1 {
            // With nobody waiting this is one load.
            self.0.freed.notify_waiters();
        }
    }
}
