//! Warming: kernels loaded before anybody asks for them.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use super::KernelCacheParts;
use crate::{
    backoff::{Backoff, Jitter},
    fault::{ErrorClass, Fault as _},
    id::KernelId,
    wire::WarmReport,
};

/// How many kernels are warmed at a time: trainers that wait go before.
const AT_A_TIME: usize = 2;

/// Between two attempts at what did not answer. A node may be up long before its network is.
const BETWEEN_ATTEMPTS: Backoff =
    Backoff { first: Duration::from_secs(1), max: Duration::from_secs(60), factor: 2.0, jitter: 0.5 };

/// How far warming has come.
#[derive(Debug, Default)]
pub struct Warming {
    planning: AtomicBool,
    planned: AtomicU32,
    loaded: AtomicU32,
    failed: AtomicU32,
    /// What is tried again, each once however often it was asked for.
    retrying: Mutex<BTreeSet<KernelId>>,
}

impl Warming {
    /// Warming that has not begun, of which it is not known yet how much it will be.
    pub fn of(plan: &WarmPlan) -> Self {
        let planning = AtomicBool::new(!plan.listed.is_empty() || plan.most_used > 0);
        Self { planning, ..Self::default() }
    }

    /// The progress now.
    pub fn report(&self) -> WarmReport {
        let read = |count: &AtomicU32| count.load(Ordering::SeqCst);
        // First what may still add to the others.
        let planning = self.planning.load(Ordering::SeqCst);
        let (loaded, failed) = (read(&self.loaded), read(&self.failed));
        let retrying = u32::try_from(self.retried().len()).unwrap_or(u32::MAX);
        let planned = read(&self.planned);
        let done = !planning && loaded + failed >= planned;
        WarmReport { planning, planned, loaded, failed, retrying, done }
    }

    /// Notes that a kernel is tried again; `false` where it is already.
    fn retries(&self, id: &KernelId) -> bool {
        self.retried().insert(id.clone())
    }

    fn has_retried(&self, id: &KernelId) {
        self.retried().remove(id);
    }

    fn retried(&self) -> MutexGuard<'_, BTreeSet<KernelId>> {
        self.retrying.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KernelCacheParts {
    /// Counts kernels as planned, and gives the work of loading them; some may be resident already.
    pub(super) fn begin_warming(&self, kernels: Vec<KernelId>) -> impl Future<Output = ()> + use<> {
        self.warming.planned.fetch_add(u32::try_from(kernels.len()).unwrap_or(u32::MAX), Ordering::SeqCst);
        self.clone().warm(kernels)
    }

    /// Loads kernels, and again after a growing delay those for which somebody did not answer.
    async fn warm(self, kernels: Vec<KernelId>) {
        let mut jitter = Jitter::from_process();
        let mut left = self.warm_once(kernels, false).await;
        let mut failures = 0;
        while !left.is_empty() {
            failures += 1;
            tokio::time::sleep(BETWEEN_ATTEMPTS.delay(failures, &mut jitter)).await;
            left = self.warm_once(left, true).await;
        }
    }

    /// Loads kernels once, and gives back those that may be had later.
    async fn warm_once(&self, kernels: Vec<KernelId>, again: bool) -> Vec<KernelId> {
        let warming = &self.warming;
        let queue = Mutex::new((VecDeque::from(kernels), Vec::new()));
        let lock = || queue.lock().unwrap_or_else(PoisonError::into_inner);
        let next = || lock().0.pop_front();
        let worker = || async {
            while let Some(id) = next() {
                let count = match self.get(id.clone()).await {
                    Ok(_) => &warming.loaded,
                    // Room does not come by trying again, and whoever needs it has the same right to it.
                    Err(error) if error.class().is_retryable() && error.code() != "cache.no_room" => {
                        if again {
                            lock().1.push(id);
                            continue;
                        }
                        if warming.retries(&id) {
                            tracing::warn!(kernel = %id, %error, "kernel not warmed, tried again later");
                            lock().1.push(id);
                        } else {
                            // Somebody else does already, who counts it.
                            warming.planned.fetch_sub(1, Ordering::SeqCst);
                        }
                        continue;
                    }
                    Err(error) => {
                        tracing::warn!(kernel = %id, %error, "kernel not warmed");
                        &warming.failed
                    }
                };
                count.fetch_add(1, Ordering::SeqCst);
                if again {
                    warming.has_retried(&id);
                }
            }
        };
        futures_util::future::join_all((0..AT_A_TIME).map(|_| worker())).await;
        std::mem::take(&mut lock().1)
    }

    /// Warms what the configuration lists, what it pins, and what was used most.
    pub(super) async fn warm_start(self) {
        let mut seen = BTreeSet::new();
        let mut listed = self.warm_plan.listed.clone();
        listed.retain(|id| seen.insert(id.clone()));
        // What is listed does not wait for what has yet to be found out.
        let listed = self.begin_warming(listed);
        let most_used = async {
            let mut most_used = self.most_used().await;
            most_used.retain(|id| !seen.contains(id));
            let work = self.begin_warming(most_used);
            self.warming.planning.store(false, Ordering::SeqCst);
            work.await;
        };
        futures_util::future::join(listed, most_used).await;
        let WarmReport { planned, loaded, failed, .. } = self.warming.report();
        if planned > 0 {
            tracing::info!(planned, loaded, failed, "warm");
        }
    }

    /// What was used most, as soon as a tier that knows it answers.
    async fn most_used(&self) -> Vec<KernelId> {
        let WarmPlan { most_used, window, .. } = *self.warm_plan;
        if most_used == 0 {
            return Vec::new();
        }
        let window_ms = i64::try_from(window.as_millis()).unwrap_or(i64::MAX);
        let (mut jitter, mut failures) = (Jitter::from_process(), 0);
        loop {
            let since = self.clock.unix_ms().saturating_sub(window_ms);
            let error = match self.lookup.most_used(since, most_used).await {
                Ok(ids) => return ids,
                Err(error) => error,
            };
            failures += 1;
            if failures == 1 {
                tracing::warn!(%error, "what was used most is not known yet");
            }
            if error.class() != ErrorClass::Unavailable {
                return Vec::new();
            }
            tokio::time::sleep(BETWEEN_ATTEMPTS.delay(failures, &mut jitter)).await;
        }
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
    pub window: Duration,
}
