//! What all executables, queues and blocks of memory of a device share.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, TryLockError},
    time::{Duration, Instant},
};

use super::{
    driver::{Driver, DriverError, Replay, RoutineSpec, Stream},
    heart::Heart,
    kernels::Kernels,
    memory::Budget,
    reclaim::{Leaving, Reclaimer},
    streams::Streams,
};
use crate::backend::{BuildError, RunError};

/// A device that is open.
#[derive(Debug)]
pub(super) struct Device {
    /// First, so that all is given back before streams are closed; and these, so that nothing is under way when kernels are
    /// unloaded.
    reclaimer: Reclaimer,
    streams: Arc<Streams>,
    kernels: Kernels,
    budget: Arc<Budget>,
    has_graphs: bool,
    heart: Arc<Heart>,
    /// Held while a stream captures.
    capturing: Mutex<()>,
    /// Which routines work. Held during a trial, so that one at a time takes memory.
    tried: Mutex<HashMap<RoutineSpec, bool>>,
}

/// How many kinds of routines are kept in mind.
const MOST_TRIED: usize = 4096;

impl Device {
    pub(super) fn new(kernels: Kernels, budget: Budget, has_graphs: bool) -> Result<Self, DriverError> {
        let streams = Arc::new(Streams::open(Arc::clone(kernels.driver()))?);
        let (budget, heart) = (Arc::new(budget), Arc::new(Heart::default()));
        let reclaimer = Reclaimer::start(kernels.driver(), &streams, &budget, &heart)?;
        let (capturing, tried) = (Mutex::default(), Mutex::default());
        Ok(Self { reclaimer, streams, kernels, budget, has_graphs, heart, capturing, tried })
    }

    /// The device's name.
    pub(super) fn name(&self) -> &str {
        self.kernels.device()
    }

    pub(super) fn kernels(&self) -> &Kernels {
        &self.kernels
    }

    pub(super) fn driver(&self) -> &dyn Driver {
        &**self.kernels.driver()
    }

    pub(super) fn streams(&self) -> &Streams {
        &self.streams
    }

    pub(super) fn budget(&self) -> &Budget {
        &self.budget
    }

    /// How large a block becomes that other processes are to map.
    pub(super) fn shared_bytes(&self, len_bytes: usize) -> usize {
        let grain = self.driver().properties().shared_grain_bytes.unwrap_or(1);
        len_bytes.checked_next_multiple_of(grain).unwrap_or(usize::MAX)
    }

    /// Whether runs are captured and replayed.
    pub(super) fn has_graphs(&self) -> bool {
        self.has_graphs
    }

    /// See [`Heart::beat`].
    pub(super) fn beat(&self, now: Instant, limit: Duration) {
        self.heart.beat(self.driver(), &self.streams, now, limit);
    }

    /// Why the device is taken for lost although the driver says nothing of it, if it is. Then whoever waits for a mark gives up,
    /// and what it may still use stays until the process ends.
    pub(super) fn stopped(&self) -> Option<&str> {
        self.heart.stopped()
    }

    /// See [`Reclaimer::leave`].
    pub(super) fn leave(&self, leaving: Leaving) {
        self.reclaimer.leave(leaving);
    }

    /// See [`Reclaimer::settle`].
    ///
    /// # Errors
    /// [`RunError::Device`] when the device has stalled.
    pub(super) fn settle(&self) -> Result<(), RunError> {
        self.reclaimer.settle();
        self.stopped().map_or(Ok(()), |reason| Err(self.run_error(reason)))
    }

    /// Asks until something has happened. Blocking, until the deadline at most; `false` where it had not happened by then.
    ///
    /// # Errors
    /// [`RunError::Device`] when asking fails, or the device has stalled.
    pub(super) fn wait_until(
        &self,
        deadline: Option<Instant>,
        mut has_happened: impl FnMut() -> Result<bool, DriverError>,
    ) -> Result<bool, RunError> {
        let mut turn = 0_u32;
        while !has_happened().map_err(|error| self.run_error(error))? {
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(false);
            }
            if let Some(reason) = self.stopped() {
                return Err(self.run_error(reason));
            }
            pause(turn, deadline);
            turn = turn.saturating_add(1);
        }
        Ok(true)
    }

    /// Hands something over to a stream of the device's own, and waits for it. Blocking, for as long as it runs.
    ///
    /// # Errors
    /// [`RunError::Device`] when it fails, or the device has stalled.
    pub(super) fn do_now(
        &self,
        hand_over: impl FnOnce(&dyn Driver, Stream) -> Result<(), DriverError>,
    ) -> Result<(), RunError> {
        let (driver, stream) = (self.driver(), self.streams.for_ourselves());
        let marked = hand_over(driver, stream).and_then(|()| self.streams.mark(stream));
        let event = marked.map_err(|error| self.run_error(error))?;
        let done = self.wait_until(None, || driver.reached(event));
        self.streams.give_event(event);
        done.map(|_| ())
    }

    /// Whether a library's routines of a kind work, which the first one's trial says; they count as such where it could not be
    /// made. Blocking for as long as a trial takes.
    pub(super) fn works(&self, spec: &RoutineSpec, try_it: impl FnOnce() -> Option<bool>) -> bool {
        let mut tried = self.tried.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(&works) = tried.get(spec) {
            return works;
        }
        let Some(works) = try_it() else { return true };
        if tried.len() == MOST_TRIED {
            tried.clear();
        }
        tried.insert(*spec, works);
        works
    }

    /// Captures what `hand_over` hands to the stream that it is given; `None` where somebody else captures, whom a pass
    /// does not wait for.
    ///
    /// The stream is one of the device's own, never one of a queue: those may be shared, and what others handed to a
    /// stream meanwhile would be captured too.
    pub(super) fn capture(
        &self,
        hand_over: impl FnOnce(Stream) -> Result<(), DriverError>,
    ) -> Option<Result<Replay, DriverError>> {
        let _capture = match self.capturing.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        let stream = self.streams.for_captures();
        if let Err(error) = self.driver().begin_capture(stream) {
            return Some(Err(error));
        }
        let handed_over = hand_over(stream);
        let replay = self.driver().end_capture(stream);
        Some(match (handed_over, replay) {
            (Err(error), Ok(replay)) => {
                close(self.driver(), replay);
                Err(error)
            }
            (Err(error), Err(_)) => Err(error),
            (Ok(()), replay) => replay,
        })
    }

    pub(super) fn build_error(&self, reason: impl ToString) -> BuildError {
        BuildError::Device { device: self.name().to_owned(), reason: reason.to_string() }
    }

    pub(super) fn run_error(&self, reason: impl ToString) -> RunError {
        RunError::Device { device: self.name().to_owned(), reason: reason.to_string() }
    }
}

/// How often whatever is waited for is asked for at once, and then how often after the thread's turn was offered to
/// others. Every further time it sleeps first.
const SPINS: u32 = 200;
const YIELDS: u32 = 2000;
/// How long it sleeps.
const NAP: Duration = Duration::from_micros(50);

/// Waits a little, longer after many turns, and not past the deadline.
fn pause(turn: u32, deadline: Option<Instant>) {
    if turn < SPINS {
        std::hint::spin_loop();
    } else if turn < YIELDS {
        std::thread::yield_now();
    } else {
        let left = deadline.map_or(NAP, |deadline| deadline.saturating_duration_since(Instant::now()));
        std::thread::sleep(NAP.min(left));
    }
}

/// Lets a replay go.
pub(super) fn close(driver: &dyn Driver, replay: Replay) {
    if let Err(error) = driver.close_replay(replay) {
        tracing::debug!(%error, "captured work could not be let go");
    }
}
