//! Runs of one executable as single pieces of work.
//!
//! Handing over a launch costs the host a few microseconds, more than many kernels take. So what a stream has run before
//! is captured, and from then on one replay is handed over for all launches of a pass. A captured launch holds addresses
//! and a seed: those of our kernels that differ from the last run's are updated before.
//!
//! What a library has captured is its own, and nobody can update it. So a replay is good for passes alone whose libraries
//! find everything where it lay when it was made, and a stream has a few of them: whoever runs has blocks of memory that come
//! back.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    device::{Device, close},
    driver::{Address, DriverError, Replay, Stream},
    pass::{Arguments, Pass},
    reclaim::Leaving,
};

/// The most replays of an executable on a stream.
const MOST: usize = 4;

/// How many passes a replay goes unused before another may take its place. Else places that take turns, more than there
/// are replays, would put each other out for ever, and a capture costs more than what it saves.
const IDLE_PASSES: u64 = 64;

/// The replays of one executable, no more than [`MOST`] for each stream.
#[derive(Debug)]
pub(super) struct Replays {
    device: Arc<Device>,
    by_stream: Mutex<HashMap<Stream, Arc<Mutex<State>>>>,
}

/// What is known of an executable on a stream.
#[derive(Debug, Default)]
struct State {
    /// The places of what libraries use in passes that have run as single launches, the latest first. Many run no second time, so
    /// nothing is captured for the first; and where places never come back, nothing is captured at all.
    ran: [Option<Places>; MOST],
    /// The most recently used one last.
    captured: Vec<Captured>,
    /// How many passes there were.
    passes: u64,
    /// Whether the driver has refused; it is not asked again.
    is_refused: bool,
}

/// A number for the addresses that a pass's libraries are given. Two may share one: then one pass is captured a run early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Places(u64);

#[derive(Debug)]
struct Captured {
    replay: Replay,
    /// The addresses that its launches hold, by the program's touches.
    addresses: Box<[Address]>,
    /// The seed that they hold.
    seed: u64,
    /// The pass that used it last.
    last_used: u64,
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
        let of_captured = |captured: &Captured| size_of::<Captured>() + size_of_val(&*captured.addresses);
        let of_state = |state: &Arc<Mutex<State>>| {
            size_of::<State>() + lock(state).captured.iter().map(of_captured).sum::<usize>()
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
        if state.is_refused {
            return Ok(false);
        }
        // SAFETY: as the caller promises; the replays are this stream's, whose state is locked.
        match unsafe { state.ready(&self.device, pass) } {
            None => Ok(false),
            // SAFETY: its launches are now those of the pass, for which the caller promises; the state is locked.
            Some(Ok(replay)) => unsafe { self.device.driver().replay(replay, stream) }.map(|()| true),
            Some(Err(error)) => {
                tracing::debug!(%error, "launches cannot be captured or updated: they are handed over singly");
                state.close(&self.device);
                state.is_refused = true;
                Ok(false)
            }
        }
    }
}

impl Drop for Replays {
    fn drop(&mut self) {
        for (_, state) in std::mem::take(&mut *lock(&self.by_stream)) {
            for captured in lock(&state).captured.drain(..) {
                self.device.leave(Leaving::Replay(captured.replay));
            }
        }
    }
}

impl State {
    /// A replay whose launches are those of a pass; `None` where it is to run as single launches this time.
    ///
    /// # Safety
    /// As for [`Replays::run`]; nobody else may use the replays meanwhile.
    unsafe fn ready(&mut self, device: &Device, pass: &Pass<'_>) -> Option<Result<Replay, DriverError>> {
        self.passes += 1;
        if let Some(at) = self.captured.iter().position(|captured| captured.fits(pass)) {
            self.captured[at..].rotate_left(1);
            let captured = self.captured.last_mut()?;
            captured.last_used = self.passes;
            // SAFETY: as the caller promises.
            return Some(unsafe { captured.update(device, pass) }.map(|()| captured.replay));
        }
        let places = Places::of(pass);
        if !self.ran.contains(&Some(places)) {
            self.ran.rotate_right(1);
            self.ran[0] = Some(places);
            return None;
        }
        let is_full = self.captured.len() == MOST;
        if is_full && self.captured[0].last_used + IDLE_PASSES > self.passes {
            return None;
        }
        let mut captured = match Captured::of(device, pass)? {
            Ok(captured) => captured,
            Err(error) => return Some(Err(error)),
        };
        captured.last_used = self.passes;
        if is_full {
            close(device.driver(), self.captured.remove(0).replay);
        }
        let replay = captured.replay;
        self.captured.push(captured);
        Some(Ok(replay))
    }

    fn close(&mut self, device: &Device) {
        for captured in self.captured.drain(..) {
            close(device.driver(), captured.replay);
        }
    }
}

impl Places {
    fn of(pass: &Pass<'_>) -> Self {
        let mut hasher = DefaultHasher::new();
        pass.fixed().for_each(|touch| pass.address(touch).hash(&mut hasher));
        Self(hasher.finish())
    }
}

impl Captured {
    /// Captures a pass, without running it; `None` where that has to be tried another time.
    fn of(device: &Device, pass: &Pass<'_>) -> Option<Result<Self, DriverError>> {
        let replay = device.capture(|stream| {
            let mut arguments = Arguments::default();
            for nth in 0..pass.len() {
                // SAFETY: the record is the one that lowering made for this kernel, whose module the device keeps
                // loaded, or for a routine that the executable keeps open. It is only kept; who hands it over promises
                // for the addresses.
                unsafe { device.driver().launch(&pass.launch(nth, &mut arguments), stream) }?;
            }
            Ok(())
        })?;
        Some(replay.map(|replay| {
            let addresses = (0..pass.program.origins.len()).map(|touch| pass.address(touch)).collect();
            Self { replay, addresses, seed: pass.seed, last_used: 0 }
        }))
    }

    /// Whether its libraries are given what those of a pass are.
    fn fits(&self, pass: &Pass<'_>) -> bool {
        pass.fixed().all(|touch| self.addresses[touch] == pass.address(touch))
    }

    /// Makes its launches those of a pass that it fits.
    ///
    /// # Safety
    /// As for [`Replays::run`]; nobody else may use the replay meanwhile.
    unsafe fn update(&mut self, device: &Device, pass: &Pass<'_>) -> Result<(), DriverError> {
        let mut arguments = Arguments::default();
        let has_other_seed = self.seed != pass.seed;
        for nth in (0..pass.len()).filter(|&nth| !pass.is_fixed(nth)) {
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
