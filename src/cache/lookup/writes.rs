//! What tiers are told beside the look-ups: a few at a time, a bounded number and size in all.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use tokio::sync::{Semaphore, watch};

use crate::{id::KernelId, telemetry::Counter};

/// How many writes run at a time.
const AT_A_TIME: usize = 8;

/// How many may wait.
const MAX_WAITING: usize = 256;

/// Writes to tiers that nobody waits for.
///
/// A tier owes nobody its content, so where too many wait, or those that wait hold too many bytes of artifacts, a
/// write is left out and counted. Those of one kernel to one tier do not follow each other in any order; the tier
/// checks what it gives in any case.
#[derive(Debug)]
pub(super) struct Writes {
    begun: Mutex<Vec<Write>>,
    places: Arc<Semaphore>,
    max_bytes: u64,
    skipped: Counter,
}

/// A write that waits for its turn or has had it.
#[derive(Debug)]
struct Write {
    id: KernelId,
    bytes: u64,
    has_turn: Arc<AtomicBool>,
    /// Closed when it is done.
    done: watch::Receiver<()>,
}

impl Writes {
    /// Writes that hold so many bytes together; a single one may hold more.
    pub(super) fn new(max_bytes: u64) -> Self {
        let places = Arc::new(Semaphore::new(AT_A_TIME));
        Self { begun: Mutex::default(), places, max_bytes, skipped: Counter::new() }
    }

    /// Begins a write about a kernel, which holds so many bytes in memory until it is done. It asks `is_wanted` when
    /// its turn has come.
    pub(super) fn begin(
        &self,
        id: &KernelId,
        bytes: u64,
        is_wanted: impl FnOnce() -> bool + Send + 'static,
        write: impl Future<Output = ()> + Send + 'static,
    ) {
        let mut begun = self.lock();
        begun.retain(|write| write.done.has_changed().is_ok());
        let waiting_bytes = begun.iter().fold(bytes, |sum, write| sum.saturating_add(write.bytes));
        if begun.len() >= MAX_WAITING || (waiting_bytes > self.max_bytes && waiting_bytes > bytes) {
            return self.skipped.increment();
        }
        let (places, has_turn) = (self.places.clone(), Arc::new(AtomicBool::new(false)));
        let (is_done, done) = watch::channel(());
        begun.push(Write { id: id.clone(), bytes, has_turn: has_turn.clone(), done });
        tokio::spawn(async move {
            // Dropped at the end, however that comes.
            let _is_done = is_done;
            // The semaphore is never closed.
            let _place = places.acquire_owned().await;
            // Before it asks: who has forgotten the kernel and sees no turn here knows that it will be told so.
            has_turn.store(true, Ordering::SeqCst);
            if is_wanted() {
                write.await;
            }
        });
    }

    /// Waits until all that has begun is done; what begins meanwhile is not waited for.
    ///
    /// Cancel safety: the writes go on.
    pub(super) async fn settle(&self) {
        self.settle_if(|_| true).await;
    }

    /// Waits for the writes that have had their turn, of one kernel or of all: the others will ask whether they are
    /// wanted.
    ///
    /// Cancel safety: the writes go on.
    pub(super) async fn settle_turns(&self, id: Option<&KernelId>) {
        let is_meant = |write: &Write| id.is_none_or(|id| write.id == *id);
        self.settle_if(|write| is_meant(write) && write.has_turn.load(Ordering::SeqCst)).await;
    }

    async fn settle_if(&self, is_meant: impl Fn(&Write) -> bool) {
        let meant = |write: &&Write| is_meant(write);
        let awaited: Vec<_> = self.lock().iter().filter(meant).map(|write| write.done.clone()).collect();
        for mut done in awaited {
            // Nothing is ever sent: this ends when the write does.
            while done.changed().await.is_ok() {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Write>> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn skipped(&self) -> u64 {
        self.skipped.get()
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    fn id(text: &str) -> KernelId {
        text.parse().unwrap()
    }

    #[tokio::test]
    async fn who_forgets_one_kernel_waits_for_its_writes_alone_and_not_for_their_turn() {
        let writes = Writes::new(1 << 30);
        let mut gates = Vec::new();
        for _ in 0..AT_A_TIME {
            let (open, gate) = oneshot::channel::<()>();
            gates.push(open);
            writes.begin(&id("slow"), 1, || true, async move { drop(gate.await) });
        }
        let (wrote, written) = oneshot::channel();
        writes.begin(&id("late"), 1, || false, async move { wrote.send(()).unwrap() });
        while writes.lock().iter().filter(|write| write.has_turn.load(Ordering::SeqCst)).count() < AT_A_TIME {
            tokio::task::yield_now().await;
        }
        // Both hang where they wait for what has no turn, or for another's.
        writes.settle_turns(Some(&id("late"))).await;
        writes.settle_turns(Some(&id("other"))).await;
        drop(gates);
        writes.settle_turns(Some(&id("slow"))).await;
        writes.settle().await;
        assert!(written.await.is_err(), "it was not wanted when its turn came");
    }

    #[tokio::test]
    async fn writes_are_left_out_where_those_that_wait_hold_too_much() {
        let writes = Writes::new(100);
        let (open, gate) = oneshot::channel::<()>();
        writes.begin(&id("large"), 1000, || true, async move { drop(gate.await) });
        writes.begin(&id("small"), 1, || true, async {});
        assert_eq!(writes.skipped(), 1);
        drop(open);
        writes.settle().await;
        for _ in 0..3 {
            writes.begin(&id("small"), 50, || true, std::future::pending());
        }
        assert_eq!(writes.skipped(), 2);
    }

    #[tokio::test]
    async fn a_write_that_panics_is_done() {
        let writes = Writes::new(100);
        writes.begin(&id("a"), 1, || true, async { panic!("as the test wants it") });
        writes.settle().await;
    }
}
