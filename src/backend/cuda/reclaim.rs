//! Memory that nobody wants any more, given back once no work uses it, by a thread of its own.
//!
//! Queues take work with regions and return, so whoever drops memory may have left work with it under way, and the driver's
//! own call to free it may wait for the whole device. A pass, or an actor that prunes a seed, must not be held up by what
//! other sessions run.

use std::{
    fmt,
    os::fd::OwnedFd,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{
    device::close,
    driver::{Address, Driver, DriverError, Replay},
    heart::Heart,
    memory::{Budget, counted},
    streams::Streams,
};
use crate::backend::Memory;

/// How often the thread asks whether work has come to its end.
const NAP: Duration = Duration::from_micros(200);
/// How often whoever waits for memory, or for the end, looks whether the device has stalled.
const LOOK: Duration = Duration::from_millis(50);
/// How long a device that is closed may go on with what it was handed; then nobody waits for it any more.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is to be given back.
pub(super) enum Leaving {
    /// A block of the device's memory; with a file, one that other processes map.
    Block { address: Address, len_bytes: usize, file: Option<OwnedFd> },
    /// Host memory that the driver has locked, and what keeps it mapped.
    Locked(Arc<dyn Memory>),
    /// Captured launches.
    Replay(Replay),
}

impl fmt::Debug for Leaving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Block { len_bytes, .. } => write!(f, "{len_bytes} bytes of the device"),
            Self::Locked(memory) => write!(f, "{} locked bytes", memory.region().len_bytes()),
            Self::Replay(replay) => write!(f, "{replay:?}"),
        }
    }
}

/// The thread, until this is dropped, which waits for all that it was given, but not for ever.
#[derive(Debug)]
pub(super) struct Reclaimer {
    /// Taken when it ends.
    leavings: Option<mpsc::Sender<Leaving>>,
    thread: Option<JoinHandle<()>>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    driver: Arc<dyn Driver>,
    streams: Arc<Streams>,
    budget: Arc<Budget>,
    heart: Arc<Heart>,
    counts: Mutex<Counts>,
    given_back: Condvar,
}

/// How many leavings there were so far.
#[derive(Debug, Default)]
struct Counts {
    left: u64,
    /// The first so many of them.
    given_back: u64,
}

impl Reclaimer {
    /// Starts the thread.
    ///
    /// # Errors
    /// [`DriverError::Failed`] when the system starts none.
    pub(super) fn start(
        driver: &Arc<dyn Driver>,
        streams: &Arc<Streams>,
        budget: &Arc<Budget>,
        heart: &Arc<Heart>,
    ) -> Result<Self, DriverError> {
        let shared = Arc::new(Shared {
            driver: Arc::clone(driver),
            streams: Arc::clone(streams),
            budget: Arc::clone(budget),
            heart: Arc::clone(heart),
            counts: Mutex::default(),
            given_back: Condvar::new(),
        });
        let (leavings, received) = mpsc::channel();
        let theirs = Arc::clone(&shared);
        let thread = thread::Builder::new().name("kasmina-reclaim".to_owned()).spawn(move || {
            while let Ok(first) = received.recv() {
                theirs.give_back(std::iter::once(first).chain(received.try_iter()).collect());
            }
        });
        let thread = thread.map_err(|error| DriverError::Failed {
            call: "the start of a thread that gives memory back",
            reason: error.to_string(),
        })?;
        Ok(Self { leavings: Some(leavings), thread: Some(thread), shared })
    }

    /// Has it given back once all work that was handed over before is done. Never waits.
    pub(super) fn leave(&self, leaving: Leaving) {
        // Held while it is sent, so that they are given back in the order in which they are counted.
        let mut counts = self.shared.counts();
        counts.left += 1;
        let sent = match &self.leavings {
            Some(leavings) => leavings.send(leaving).map_err(|unsent| unsent.0),
            None => Err(leaving),
        };
        // The thread ends with this alone, but for a panic.
        if let Err(leaving) = sent {
            tracing::error!(?leaving, "the thread that gives the GPU's memory back has ended: this is lost");
            // It may still be in use.
            std::mem::forget(leaving);
            counts.given_back += 1;
        }
    }

    /// Waits until all is given back that was left before, unless the device has stalled. Blocking, for as long as what had been
    /// handed over runs.
    pub(super) fn settle(&self) {
        let mut counts = self.shared.counts();
        let before = counts.left;
        while counts.given_back < before && self.shared.heart.stopped().is_none() {
            let waited = self.shared.given_back.wait_timeout(counts, LOOK);
            counts = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Reclaimer {
    fn drop(&mut self) {
        self.leavings = None;
        let Some(thread) = self.thread.take() else { return };
        let begun = Instant::now();
        while !thread.is_finished() {
            // In a stall it may be within a call of the driver that does not return.
            if self.shared.heart.stopped().is_some() || begun.elapsed() > PATIENCE {
                return tracing::error!("the GPU is closed with work under way, and what that may use stays");
            }
            // It ends within a moment as a rule; then whatever waits here waits no longer.
            thread::sleep(if begun.elapsed() < LOOK { NAP } else { LOOK });
        }
        if thread.join().is_err() {
            tracing::error!("the thread that gives the GPU's memory back has panicked");
        }
    }
}

/// Counts what was given back once it is, or once the thread has panicked over it.
struct Told<'a> {
    shared: &'a Shared,
    count: u64,
}

impl Drop for Told<'_> {
    fn drop(&mut self) {
        self.shared.counts().given_back += self.count;
        self.shared.given_back.notify_all();
    }
}

impl Shared {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give_back(&self, leavings: Vec<Leaving>) {
        let _told = Told { shared: self, count: leavings.len() as u64 };
        let is_unused = self.wait_for_work_so_far();
        for leaving in leavings {
            if is_unused {
                self.free(leaving);
            } else {
                // What the device may still use stays until the process ends.
                std::mem::forget(leaving);
            }
        }
    }

    /// Waits until all is done that was handed over before; `false` where nobody knows whether it is, as in a stall.
    fn wait_for_work_so_far(&self) -> bool {
        let (mut marks, mut is_unused) = (Vec::new(), true);
        for stream in self.streams.with_work() {
            match self.streams.mark(stream) {
                Ok(event) => marks.push(event),
                Err(error) => {
                    // On a device that has failed for good nothing runs any more.
                    is_unused &= self.driver.lost().is_some();
                    tracing::debug!(%error, is_unused, "no mark could be set before memory is given back");
                }
            }
        }
        for event in marks {
            while is_unused && matches!(self.driver.reached(event), Ok(false)) {
                is_unused = self.heart.stopped().is_none();
                thread::sleep(NAP);
            }
            self.streams.give_event(event);
        }
        is_unused
    }

    fn free(&self, leaving: Leaving) {
        // SAFETY: the address comes from `allocate`, or from `share` with this length, and the host's memory was registered, once,
        // and is still mapped. Nothing that was handed over before it was dropped is under way. Nothing was handed over since, as
        // regions borrow it; and whoever has the host's memory registered anew has waited for this.
        let freed = unsafe {
            match &leaving {
                Leaving::Block { address, file: None, .. } => self.driver.free(*address),
                Leaving::Block { address, len_bytes, file: Some(_) } => {
                    self.driver.unshare(*address, *len_bytes)
                }
                Leaving::Locked(memory) => self.driver.unregister(memory.region().start()),
                Leaving::Replay(replay) => {
                    close(&*self.driver, *replay);
                    Ok(())
                }
            }
        };
        if let Err(error) = freed {
            tracing::debug!(%error, ?leaving, "memory could not be given back");
        }
        if let Leaving::Block { len_bytes, .. } = leaving {
            self.budget.give_back(counted(len_bytes));
        }
    }
}
