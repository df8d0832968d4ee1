//! What tiers are told beside the look-ups: a few at a time, a bounded number in all.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{sync::Semaphore, task::JoinHandle};

use crate::telemetry::Counter;

/// How many writes run at a time.
const AT_A_TIME: usize = 8;

/// How many may wait; each holds an artifact in memory.
const MAX_WAITING: usize = 256;

/// Writes to tiers that nobody waits for.
///
/// A tier owes nobody its content, so where too many wait, a write is left out and counted. Those of one
/// kernel to one tier do not follow each other in any order; the tier checks what it gives in any case.
#[derive(Debug)]
pub(super) struct Writes {
    tasks: Mutex<VecDeque<JoinHandle<()>>>,
    places: Arc<Semaphore>,
    settling: tokio::sync::Mutex<()>,
    skipped: Counter,
}

impl Default for Writes {
    fn default() -> Self {
        Self {
            tasks: Mutex::default(),
            places: Arc::new(Semaphore::new(AT_A_TIME)),
            settling: tokio::sync::Mutex::default(),
            skipped: Counter::new(),
        }
    }
}

impl Writes {
    pub(super) fn begin(&self, write: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.lock();
        tasks.retain(|task| !task.is_finished());
        if tasks.len() >= MAX_WAITING {
            return self.skipped.increment();
        }
        let places = self.places.clone();
        tasks.push_back(tokio::spawn(async move {
            // The semaphore is never closed.
            let _place = places.acquire_owned().await;
            write.await;
        }));
    }

    /// Waits until all that has begun is done; what begins meanwhile is not waited for.
    ///
    /// Cancel safety: the writes go on.
    pub(super) async fn settle(&self) {
        // One at a time, so that nobody passes by writes that another waits for.
        let _turn = self.settling.lock().await;
        let begun = self.lock().len();
        for _ in 0..begun {
            let task = self.lock().pop_front();
            if let Some(task) = task
                && let Err(error) = task.await
            {
                tracing::error!(%error, "a write to a cache tier panicked");
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<JoinHandle<()>>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn skipped(&self) -> u64 {
        self.skipped.get()
    }
}
