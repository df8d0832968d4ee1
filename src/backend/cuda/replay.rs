//! Runs of one executable as single pieces of work.
//!
//! Handing over a launch costs the host a few microseconds, more than many kernels take. So a stream's second run of a
//! program is captured, and from then on one replay is handed over for all its launches. A captured launch holds
//! addresses and a seed: those that differ from the last run's are updated before.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    device::{Device, close},
    driver::{Address, DriverError, Replay, Stream},
    pass::{Arguments, Pass},
};

/// The replays of one executable, no more than there are streams.
#[derive(Debug)]
pub(super) struct Replays {
    device: Arc<Device>,
    by_stream: Mutex<HashMap<Stream, Arc<Mutex<State>>>>,
}

/// What is known of an executable on a stream.
#[derive(Debug, Default)]
enum State {
    /// It has not run there.
    #[default]
    New,
    /// It has run there once. Many run no second time, so nothing is captured for the first.
    RanOnce,
    Captured(Captured),
    /// The driver has refused, and is not asked again.
    Refused,
}

#[derive(Debug)]
struct Captured {
    replay: Replay,
    /// The addresses that its launches hold, by the program's touches.
    addresses: Box<[Address]>,
    /// The seed that they hold.
    seed: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Replays {
    pub(super) fn new(device: &Arc<Device>) -> Self {
        Self { device: Arc::clone(device), by_stream: Mutex::default() }
    }

    /// Bytes of the host's memory that they take.
    pub(super) fn held_bytes(&self) -> usize {
        let of_state = |state: &Arc<Mutex<State>>| match &*lock(state) {
            State::Captured(captured) => size_of::<State>() + size_of_val(&*captured.addresses),
            _ => size_of::<State>(),
        };
        lock(&self.by_stream).values().map(of_state).sum()
    }

    /// Hands a pass over as one; `false`, and nothing is handed over, where its launches have to be handed over singly.
    ///
    /// # Errors
    /// [`DriverError`] when the driver does not take a replay that is ready.
    ///
    /// # Safety
    /// As for [`Driver::launch`](super::driver::Driver::launch) with each launch of the pass. Every pass must be of the
    /// same program.
    pub(super) unsafe fn run(&self, pass: &Pass<'_>, stream: Stream) -> Result<bool, DriverError> {
        let state = Arc::clone(lock(&self.by_stream).entry(stream).or_default());
        // Held until the replay is handed over: a thread whose queue shares the stream must not update it between.
        let mut state = lock(&state);
        let ready = match &mut *state {
            State::New => {
                *state = State::RanOnce;
                return Ok(false);
            }
            State::Refused => return Ok(false),
            State::RanOnce => match Captured::of(&self.device, pass) {
                None => return Ok(false),
                Some(captured) => captured.map(|captured| *state = State::Captured(captured)),
            },
            // SAFETY: as the caller promises; the replay is this stream's, whose state is locked.
            State::Captured(captured) => unsafe { captured.update(&self.device, pass) },
        };
        if let Err(error) = ready {
            tracing::debug!(%error, "launches cannot be captured or updated: they are handed over singly");
            self.close(std::mem::replace(&mut *state, State::Refused));
            return Ok(false);
        }
        let State::Captured(captured) = &*state else { return Ok(false) };
        // SAFETY: its launches are now those of the pass, for which the caller promises; the state is locked.
        unsafe { self.device.driver().replay(captured.replay, stream) }.map(|()| true)
    }

    fn close(&self, state: State) {
        if let State::Captured(captured) = state {
            close(self.device.driver(), captured.replay);
        }
    }
}

impl Drop for Replays {
    fn drop(&mut self) {
        for (_, state) in std::mem::take(&mut *lock(&self.by_stream)) {
            self.close(std::mem::take(&mut *lock(&state)));
        }
    }
}

impl Captured {
    /// Captures a pass, without running it; `None` where that has to be tried another time.
    fn of(device: &Device, pass: &Pass<'_>) -> Option<Result<Self, DriverError>> {
        let replay = device.capture(|stream| {
            let mut arguments = Arguments::default();
            for nth in 0..pass.len() {
                // SAFETY: the record is the one that lowering made for this kernel, whose module the device keeps
                // loaded. It is only kept; who hands it over promises for the addresses.
                unsafe { device.driver().launch(&pass.launch(nth, &mut arguments), stream) }?;
            }
            Ok(())
        })?;
        Some(replay.map(|replay| {
            let addresses = (0..pass.program.origins.len()).map(|touch| pass.address(touch)).collect();
            Self { replay, addresses, seed: pass.seed }
        }))
    }

    /// Makes its launches those of a pass.
    ///
    /// # Safety
    /// As for [`Replays::run`]; nobody else may use the replay meanwhile.
    unsafe fn update(&mut self, device: &Device, pass: &Pass<'_>) -> Result<(), DriverError> {
        let mut arguments = Arguments::default();
        let has_other_seed = self.seed != pass.seed;
        for nth in 0..pass.len() {
            let mut is_stale = has_other_seed && pass.is_seeded(nth);
            for touch in pass.touched(nth) {
                let address = pass.address(touch);
                is_stale |= std::mem::replace(&mut self.addresses[touch], address) != address;
            }
            if is_stale {
                // SAFETY: the record is the one that lowering made for this kernel; the rest the caller promises.
                unsafe { device.driver().update(self.replay, nth, &pass.launch(nth, &mut arguments)) }?;
            }
        }
        self.seed = pass.seed;
        Ok(())
    }
}
