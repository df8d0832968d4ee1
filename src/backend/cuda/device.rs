//! What all executables, queues and blocks of memory of a device share.

use std::{
    sync::{Arc, PoisonError, RwLock, TryLockError},
    time::{Duration, Instant},
};

use super::{
    driver::{Driver, DriverError, Replay, Stream},
    heart::Heart,
    kernels::Kernels,
    memory::Budget,
    streams::Streams,
};
use crate::backend::{BuildError, RunError};

/// A device that is open.
#[derive(Debug)]
pub(super) struct Device {
    /// First, so that nothing is under way when kernels are unloaded.
    streams: Streams,
    kernels: Kernels,
    budget: Budget,
    has_graphs: bool,
    heart: Heart,
    /// Held for writing while a stream captures, and for reading while somebody waits for all streams: CUDA refuses
    /// that during any capture, and ends the capture too.
    capturing: RwLock<()>,
}

impl Device {
    pub(super) fn new(kernels: Kernels, budget: Budget, has_graphs: bool) -> Result<Self, DriverError> {
        let streams = Streams::open(Arc::clone(kernels.driver()))?;
        let (heart, capturing) = (Heart::default(), RwLock::new(()));
        Ok(Self { streams, kernels, budget, has_graphs, heart, capturing })
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

    /// Why the device is taken for lost although the driver says nothing of it, if it is. Then nobody waits for it, and what
    /// it may still use stays until the process ends.
    pub(super) fn stopped(&self) -> Option<&str> {
        self.heart.stopped()
    }

    /// Waits until nothing is under way on the device. Blocking.
    pub(super) fn wait_for_all(&self) -> Result<(), DriverError> {
        let _no_captures = self.capturing.read().unwrap_or_else(PoisonError::into_inner);
        self.driver().synchronize_all()
    }

    /// Captures what `hand_over` hands to the stream that it is given; `None` where somebody else is about to capture
    /// or to wait, whom a pass does not wait for.
    ///
    /// The stream is one of the device's own, never one of a queue: those may be shared, and what others handed to a
    /// stream meanwhile would be captured too.
    pub(super) fn capture(
        &self,
        hand_over: impl FnOnce(Stream) -> Result<(), DriverError>,
    ) -> Option<Result<Replay, DriverError>> {
        let _capture = match self.capturing.try_write() {
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

/// Lets a replay go.
pub(super) fn close(driver: &dyn Driver, replay: Replay) {
    if let Err(error) = driver.close_replay(replay) {
        tracing::debug!(%error, "captured work could not be let go");
    }
}
