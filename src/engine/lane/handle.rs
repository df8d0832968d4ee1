//! The control plane's end of a lane.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use crossbeam_channel::{Sender, unbounded};

use super::{EventSink, LaneCommand, LaneGauges, thread::LaneThread};
use crate::{
    backend::{Backend, Memory},
    engine::{EngineConfig, EngineError, QuotaLimits, SessionLedger, Share, Turns, TurnsSettings},
    id::SessionId,
    record::Recorder,
    wire::{DaemonLane, Waker},
};

/// Commands that may wait for a lane's thread.
const MAILBOX: usize = 256;

/// A running lane. Dropping it tells the lane to stop and does not wait until it has.
#[derive(Debug)]
pub struct LaneHandle {
    commands: Sender<LaneCommand>,
    stop: Arc<AtomicBool>,
    waker: Waker,
    gauges: Arc<LaneGauges>,
    thread: Option<JoinHandle<()>>,
}

/// What bounds a lane: what its session may hold, when its passes run, and how it waits.
#[derive(Clone, Debug)]
pub struct LaneLimits {
    /// Where layers and tickets are entered.
    pub ledger: Arc<SessionLedger>,
    /// Where passes take turns with those of other sessions.
    pub turns: Arc<Turns>,
    /// How long the thread looks for the next submission before it sleeps; zero sleeps at once.
    pub spin: Duration,
}

impl Default for LaneLimits {
    /// A session without limits and without others, which does not spin.
    fn default() -> Self {
        let ledger = SessionLedger::alone(QuotaLimits::default());
        Self { ledger, turns: Turns::new(TurnsSettings::default()), spin: Duration::ZERO }
    }
}

/// What a lane is started with.
#[derive(Debug)]
pub struct LaneParts {
    /// Whose lane it is; names its thread.
    pub session: SessionId,
    /// The daemon's side of the session's shared memory.
    pub lane: DaemonLane,
    /// Where kernels run.
    pub backend: Arc<dyn Backend>,
    /// How seeds run.
    pub config: Arc<EngineConfig>,
    /// What the session may hold.
    pub limits: LaneLimits,
    /// Where failing passes are recorded, if anywhere.
    pub recorder: Option<Arc<Recorder>>,
    /// Memory of the device that tensors lie in, at the arena's offsets; absent where they lie in the arena itself.
    pub device_arena: Option<Arc<dyn Memory>>,
    /// What the arena takes of the device's memory, in the session's ledger; absent where it takes nothing.
    pub device_share: Option<Share>,
}

impl LaneHandle {
    /// Starts a session's lane on a thread of its own.
    ///
    /// # Errors
    /// [`EngineError::Thread`] when the system gives no thread, [`EngineError::Run`] when the device has no room for the
    /// session's arena.
    pub fn start(parts: LaneParts, events: EventSink) -> Result<Self, EngineError> {
        // Bounded by `send`: a bounded channel would keep what waits in it when the lane ends, and with it
        // the live seeds inside, for as long as the handle lives; this one lets go of it.
        let (commands, mailbox) = unbounded();
        let stop = Arc::new(AtomicBool::new(false));
        let gauges = Arc::new(LaneGauges::default());
        let waker = parts.lane.waker();
        let name = format!("lane-{}", parts.session);
        let lane = LaneThread::new(parts, mailbox, stop.clone(), gauges.clone(), events)?;
        let thread = std::thread::Builder::new()
            .name(name.clone())
            .spawn(move || lane.run())
            .map_err(|error| EngineError::Thread { name, reason: error.to_string() })?;
        Ok(Self { commands, stop, waker, gauges, thread: Some(thread) })
    }

    /// Asks something of the lane. Never blocks; the lane comes to it between two passes.
    ///
    /// # Errors
    /// [`EngineError::LaneGone`] when the lane has ended, [`EngineError::Quota`] when it is so far behind
    /// that nothing more may wait.
    pub fn send(&self, command: LaneCommand) -> Result<(), EngineError> {
        if self.commands.len() >= MAILBOX {
            return Err(EngineError::Quota { what: "commands waiting", limit: MAILBOX as u64 });
        }
        self.commands.send(command).map_err(|_| EngineError::LaneGone)?;
        self.waker.wake();
        Ok(())
    }

    /// How many commands wait.
    #[cfg(test)]
    pub fn queued(&self) -> usize {
        self.commands.len()
    }

    /// The lane's numbers.
    pub fn gauges(&self) -> &Arc<LaneGauges> {
        &self.gauges
    }

    /// Whether the lane has ended.
    pub fn is_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Tells the lane to stop and waits until it has.
    ///
    /// Blocking: until the pass under way is over.
    pub fn stop(mut self) {
        self.tell();
        if let Some(thread) = self.thread.take() {
            // A lane's thread catches its own panics and reports them as its end.
            let _ = thread.join();
        }
    }

    fn tell(&self) {
        // Beside the mailbox, which may be full.
        self.stop.store(true, Ordering::Release);
        self.waker.wake();
    }
}

impl Drop for LaneHandle {
    fn drop(&mut self) {
        self.tell();
    }
}
