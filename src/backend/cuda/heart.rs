//! Whether the device still does anything at all.
//!
//! A kernel that goes on for ever keeps its own stream, and the time limit of its pass deals with it. A device on which
//! nothing goes on any more says so by no error: marks that are set on an idle stream are not reached.

use std::{
    sync::{Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use super::{
    driver::{Driver, DriverError, Event},
    streams::Streams,
};

/// The last mark that was set, and what its lack came to.
#[derive(Debug, Default)]
pub(super) struct Heart {
    beat: Mutex<Option<(Event, Instant)>>,
    stopped: OnceLock<String>,
}

impl Heart {
    /// Looks whether the last mark was reached, and sets the next one. One that was set `limit` ago or earlier and is not
    /// reached is the end of the device. Never waits.
    pub(super) fn beat(&self, driver: &dyn Driver, streams: &Streams, now: Instant, limit: Duration) {
        let mut beat = self.beat.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((event, since)) = *beat {
            match driver.reached(event) {
                Ok(false) if now.saturating_duration_since(since) >= limit => {
                    let reason = format!("it has done nothing for {limit:?} (device.stall_limit)");
                    if self.stopped.set(reason).is_ok() {
                        tracing::error!(
                            ?limit,
                            "the GPU has stalled: nothing runs on it any more in this process"
                        );
                    }
                    return;
                }
                Ok(false) => return,
                // An error is told of by whoever works with the device.
                Ok(true) | Err(_) => streams.give_event(event),
            }
        }
        let set = || -> Result<Event, DriverError> {
            let event = streams.take_event()?;
            let recorded = driver.record(event, streams.for_ourselves());
            recorded.inspect_err(|_| streams.give_event(event)).map(|()| event)
        };
        *beat = set().ok().map(|event| (event, now));
    }

    /// Why the device is taken for lost, if it is.
    pub(super) fn stopped(&self) -> Option<&str> {
        self.stopped.get().map(String::as_str)
    }
}
