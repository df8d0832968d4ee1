//! Warming: kernels loaded before anybody asks for them.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use super::KernelCacheParts;
use crate::{id::KernelId, wire::WarmReport};

/// How many kernels are warmed at a time: trainers that wait go before.
const AT_A_TIME: usize = 2;

/// How far warming has come.
#[derive(Debug, Default)]
pub struct Warming {
    planned: AtomicU32,
    loaded: AtomicU32,
    failed: AtomicU32,
}

impl Warming {
    /// The progress now.
    pub fn report(&self) -> WarmReport {
        let read = |count: &AtomicU32| count.load(Ordering::Relaxed);
        let (loaded, failed) = (read(&self.loaded), read(&self.failed));
        let planned = read(&self.planned);
        WarmReport { planned, loaded, failed, done: loaded + failed >= planned }
    }
}

impl KernelCacheParts {
    /// Counts kernels as planned, and gives the work of loading them; some may be resident already.
    pub(super) fn begin_warming(&self, kernels: Vec<KernelId>) -> impl Future<Output = ()> + use<> {
        self.warming.planned.fetch_add(u32::try_from(kernels.len()).unwrap_or(u32::MAX), Ordering::Relaxed);
        self.clone().warm(kernels)
    }

    async fn warm(self, kernels: Vec<KernelId>) {
        let warming = self.warming.clone();
        let queue = Arc::new(std::sync::Mutex::new(kernels.into_iter()));
        let next = || queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
        let worker = || async {
            while let Some(id) = next() {
                let count = match self.get(id.clone()).await {
                    Ok(_) => &warming.loaded,
                    Err(error) => {
                        tracing::warn!(kernel = %id, %error, "kernel not warmed");
                        &warming.failed
                    }
                };
                count.fetch_add(1, Ordering::Relaxed);
            }
        };
        futures_util::future::join_all((0..AT_A_TIME).map(|_| worker())).await;
    }

    /// Warms what the configuration lists, what it pins, and what was used most.
    pub(super) async fn warm_start(self) {
        let WarmPlan { listed, most_used, window } = self.warm_plan.as_ref().clone();
        let mut kernels = listed;
        if most_used > 0 {
            let window_ms = i64::try_from(window.as_millis()).unwrap_or(i64::MAX);
            let since = self.clock.unix_ms().saturating_sub(window_ms);
            kernels.extend(self.lookup.most_used(since, most_used).await);
        }
        let mut seen = std::collections::BTreeSet::new();
        kernels.retain(|id| seen.insert(id.clone()));
        if kernels.is_empty() {
            return;
        }
        tracing::info!(kernels = kernels.len(), "warming");
        let warming = self.warming.clone();
        self.begin_warming(kernels).await;
        let WarmReport { planned, loaded, failed, .. } = warming.report();
        tracing::info!(planned, loaded, failed, "warm");
    }
}

/// What is warmed when the daemon starts.
#[derive(Clone, Debug, Default)]
pub struct WarmPlan {
    /// Kernels that the configuration names, the pinned ones among them.
    pub listed: Vec<KernelId>,
    /// How many of the most used ones beside them.
    pub most_used: u32,
    /// Over which time their uses count.
    pub window: std::time::Duration,
}
