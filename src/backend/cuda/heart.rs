//! Whether the device still does anything at all.
//!
//! A kernel that goes on for ever keeps its own stream, and the time limit of its pass deals with it. A device on which
//! nothing goes on any more says so by no error: marks that are set on an idle stream are not reached.

use std::{
    sync::{Mutex, MutexGuard, OnceLock, PoisonError, TryLockError},
    time::{Duration, Instant},
};

use super::{
    driver::{Driver, Event},
    streams::Streams,
};

/// The last mark that was set, and what its lack came to.
#[derive(Debug, Default)]
pub(super) struct Heart {
    beat: Mutex<Option<(Event, Instant)>>,
    /// Since when the driver has been asked, while it has not answered.
    asked: Mutex<Option<Instant>>,
    stopped: OnceLock<String>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Heart {
    /// Looks whether the last mark was reached, and sets the next one. One that was set `limit` ago or earlier and is not
    /// reached is the end of the device, and so is a driver that does not answer for as long. Blocking where the driver is;
    /// a further call meanwhile is not.
    pub(super) fn beat(&self, driver: &dyn Driver, streams: &Streams, now: Instant, limit: Duration) {
        let is_over = |since| now.saturating_duration_since(since) >= limit;
        let mut beat = match self.beat.try_lock() {
            Ok(beat) => beat,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                if lock(&self.asked).is_some_and(is_over) {
                    self.stop(limit);
                }
                return;
            }
        };
        *lock(&self.asked) = Some(now);
        let mark = || streams.mark(streams.for_ourselves()).ok().map(|event| (event, now));
        *beat = match *beat {
            None => mark(),
            Some((event, since)) => match driver.reached(event) {
                Ok(false) => {
                    if is_over(since) {
                        self.stop(limit);
                    }
                    Some((event, since))
                }
                // An error is told of by whoever works with the device.
                Ok(true) | Err(_) => {
                    streams.give_event(event);
                    mark()
                }
            },
        };
        *lock(&self.asked) = None;
    }

    fn stop(&self, limit: Duration) {
        if self.stopped.set(format!("it has done nothing for {limit:?} (device.stall_limit)")).is_ok() {
            tracing::error!(?limit, "the GPU has stalled: nothing runs on it any more in this process");
        }
    }

    /// Why the device is taken for lost, if it is.
    pub(super) fn stopped(&self) -> Option<&str> {
        self.stopped.get().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::backend::cuda::driver::host::HostDriver;

    #[test]
    fn a_driver_that_does_not_answer_is_the_end_of_the_device() {
        let driver: Arc<dyn Driver> = Arc::new(HostDriver::new());
        let streams = Streams::open(Arc::clone(&driver)).unwrap();
        let (heart, began, limit) = (Heart::default(), Instant::now(), Duration::from_secs(60));
        let beat = |seconds| heart.beat(&*driver, &streams, began + Duration::from_secs(seconds), limit);
        beat(0);
        // As a call that is within the driver holds them.
        let within = heart.beat.lock().unwrap();
        *heart.asked.lock().unwrap() = Some(began + Duration::from_secs(10));
        [20, 69].into_iter().for_each(beat);
        assert_eq!(heart.stopped(), None);
        beat(70);
        assert_eq!(heart.stopped(), Some("it has done nothing for 60s (device.stall_limit)"));
        drop(within);
    }
}
