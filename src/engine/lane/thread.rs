//! The lane's thread: waits, serves, answers.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use crossbeam_channel::Receiver;

use super::{EventSink, LaneCommand, LaneEnd, LaneEvent, LaneGauges, LaneLimits, LaneParts, layers::Layers};
use crate::{
    backend::{Backend, Shared},
    engine::{EngineError, Share, Witness, job::message_of, turns::Entrant},
    failpoint::{self, Failpoint},
    fault::Fault,
    id::LayerId,
    telemetry::step_path,
    wire::{Command, Completion, DaemonLane, Spin, Status, Submission, Wake, WireError},
};

/// Everything a lane's thread owns.
pub(super) struct LaneThread {
    service: Service,
    commands: Receiver<LaneCommand>,
    spin: Spin,
}

pub(super) struct Service {
    pub(super) lane: DaemonLane,
    pub(super) backend: Arc<dyn Backend>,
    pub(super) turns: Entrant,
    /// How long the submission under way has waited for its tensors and its turn.
    pub(super) waited: Duration,
    pub(super) stop: Arc<AtomicBool>,
    pub(super) arena: Arc<Shared>,
    /// In the ledger for as long as the arena is there.
    _device_share: Option<Share>,
    /// Whether tensors lie on the device, where the trainer's streams say when they are there.
    on_device: bool,
    pub(super) layers: Layers,
    gauges: Arc<LaneGauges>,
    events: EventSink,
    is_draining: bool,
}

impl LaneThread {
    pub(super) fn new(
        parts: LaneParts,
        commands: Receiver<LaneCommand>,
        stop: Arc<AtomicBool>,
        gauges: Arc<LaneGauges>,
        events: EventSink,
    ) -> Result<Self, EngineError> {
        let failed = EngineError::of_run("sharing the arena with the device");
        let (words, on_device) = (parts.lane.arena().clone(), parts.device_arena.is_some());
        let arena = Arc::new(match parts.device_arena {
            Some(tensors) => Shared::on_device(tensors, words),
            None => parts.backend.share(words).map_err(failed)?,
        });
        let witness = parts.recorder.map(|recorder| {
            let (session, uid) = (parts.session, parts.limits.ledger.uid());
            Witness { recorder, session, uid, step: 0 }
        });
        let backend = parts.backend;
        let layers = Layers::new(backend.clone(), parts.config, &parts.limits, witness);
        let LaneLimits { ledger, turns, spin } = parts.limits;
        let turns = turns.join(ledger.uid());
        let (lane, waited) = (parts.lane, Duration::ZERO);
        let service = Service {
            lane,
            backend,
            turns,
            waited,
            stop,
            arena,
            _device_share: parts.device_share,
            on_device,
            layers,
            gauges,
            events,
            is_draining: false,
        };
        Ok(Self { service, commands, spin: Spin::new(spin) })
    }

    /// Serves until the lane ends, frees everything, then tells why it ended.
    pub(super) fn run(mut self) {
        step_path::enter(self.service.gauges.supply_waits().clone());
        let end = catch_unwind(AssertUnwindSafe(|| self.serve()));
        let end = end.unwrap_or_else(|panic| LaneEnd::Panicked { message: message_of(&*panic) });
        match &end {
            LaneEnd::Stopped | LaneEnd::PeerGone => tracing::debug!(?end, "lane ended"),
            LaneEnd::Wire(error) => tracing::warn!(error = %error, "lane ended"),
            LaneEnd::Request(error) => tracing::warn!(error = %error, "lane ended"),
            LaneEnd::DeviceLost { reason } => tracing::warn!(reason, "lane ended"),
            LaneEnd::Panicked { message } => tracing::error!(message, "lane panicked"),
        }
        failpoint::reached(Failpoint::LaneEnding);
        let Self { service: Service { lane, turns, arena, layers, gauges, events, .. }, commands, .. } = self;
        // The mailbox goes first: a command that comes later is refused instead of forgotten.
        drop(commands);
        drop((turns, layers));
        drop((lane, arena));
        gauges.hold(0, 0);
        failpoint::reached(Failpoint::LaneFreed);
        events(LaneEvent::Ended(end));
    }

    fn serve(&mut self) -> LaneEnd {
        loop {
            let waited = self.service.next(&mut self.spin);
            // Commands go first: what was sent before a submission was published is obeyed before it runs.
            while let Ok(command) = self.commands.try_recv() {
                if matches!(command, LaneCommand::Stop) {
                    return LaneEnd::Stopped;
                }
                self.service.obey(command);
            }
            if self.service.stop.load(Ordering::Acquire) {
                return LaneEnd::Stopped;
            }
            let result = match waited {
                Ok(Wake::Item(submission)) => self.service.answer(&submission),
                Ok(Wake::Gone) => Err(LaneEnd::PeerGone),
                Ok(Wake::Woken | Wake::TimedOut) => Ok(()),
                Err(error) => Err(ended_by(error)),
            };
            if let Err(end) = result {
                return end;
            }
        }
    }
}

impl Service {
    /// What to do next. A turn that was kept for another pass, because the client said that there was one, goes back
    /// before anything is waited for: it may have said so in vain.
    fn next(&mut self, spin: &mut Spin) -> Result<Wake<Submission>, WireError> {
        if let Some(submission) = self.lane.poll()? {
            return Ok(Wake::Item(submission));
        }
        self.turns.withdraw();
        let began = Instant::now();
        let next = self.lane.wait(spin.next(), None);
        if matches!(next, Ok(Wake::Item(_))) {
            spin.note(began);
        }
        next
    }

    fn obey(&mut self, command: LaneCommand) {
        let layers = &mut self.layers;
        match command {
            LaneCommand::OpenLayer { spec, answer } => answer(layers.open(spec)),
            LaneCommand::CloseLayer { layer, answer } => answer(layers.close(layer)),
            LaneCommand::Attach { layer, seed, live, alpha, role, course, answer } => {
                answer(layers.attach(layer, seed, live, alpha, role, course));
            }
            LaneCommand::Detach { layer, seed, answer } => answer(layers.detach(layer, seed)),
            LaneCommand::SetAlpha { layer, seed, alpha, answer } => {
                answer(layers.set_alpha(layer, seed, alpha));
            }
            LaneCommand::Blend { layer, seed, spec, number, from, answer } => {
                answer(layers.blend(layer, seed, &spec, number, from));
            }
            LaneCommand::Hold { layer, seed, answer } => answer(layers.hold(layer, seed)),
            LaneCommand::SetRole { layer, seed, role, answer } => answer(layers.set_role(layer, seed, role)),
            LaneCommand::Upcoming { layer, seed, answer } => answer(layers.upcoming(layer, seed)),
            LaneCommand::Snapshot { answer } => answer(layers.snapshot()),
            LaneCommand::Drain => self.is_draining = true,
            LaneCommand::Stop => {}
        }
        self.measure();
    }

    /// Runs one submission and publishes its completion.
    fn answer(&mut self, submission: &Submission) -> Result<(), LaneEnd> {
        failpoint::reached(Failpoint::SubmissionTaken);
        let start = Instant::now();
        let mut completion = Completion { sequence: submission.sequence, ..Completion::default() };
        let end = match submission.check(self.lane.arena().layout()) {
            Ok(command) if self.on_device => self.run_on_device(&command, &mut completion),
            Ok(command) => self.run(&command, &mut completion),
            Err(error) => {
                refuse(&mut completion, Status::Protocol, &error.to_string());
                Err(LaneEnd::Wire(Arc::new(error)))
            }
        };
        self.measure();
        let time = start.elapsed();
        let work = time.saturating_sub(std::mem::take(&mut self.waited));
        completion.duration_ns = u64::try_from(work.as_nanos()).unwrap_or(u64::MAX);
        // Before it is published: whoever has seen a completion finds it counted.
        self.gauges.service().record_duration(time);
        if let Err(LaneEnd::DeviceLost { .. }) = end {
            return end;
        }
        failpoint::reached(Failpoint::CompletionReady);
        self.lane.publish(&completion).map_err(ended_by)?;
        failpoint::reached(Failpoint::CompletionRung);
        end
    }

    pub(super) fn run(&mut self, command: &Command, completion: &mut Completion) -> Result<(), LaneEnd> {
        let result = match command {
            Command::Forward(_) if self.is_draining => {
                let message = "the daemon is shutting down: spend the tickets and reconnect";
                self.turns.withdraw();
                self.gauges.count_refusal();
                refuse(completion, Status::Draining, message);
                return Ok(());
            }
            Command::Release(request) => {
                // A turn is kept for a pass alone: releases without end must not keep a place for nothing.
                self.turns.withdraw();
                self.layers.release(request)
            }
            Command::Forward(request) => {
                self.pass(request.layer, completion, |layers, arena, completion, tell| {
                    layers.forward(request, arena, completion, tell)
                })?
            }
            Command::Backward(request) => {
                self.pass(request.layer, completion, |layers, arena, completion, tell| {
                    layers.backward(request, arena, completion, tell)
                })?
            }
        };
        let Err(error) = result else {
            match command {
                Command::Forward(_) => self.gauges.count_forward(),
                Command::Backward(_) => self.gauges.count_backward(),
                Command::Release(_) => {}
            }
            return Ok(());
        };
        self.gauges.count_refusal();
        if let Some(reason) = self.backend.lost() {
            return Err(LaneEnd::DeviceLost { reason });
        }
        refuse(completion, Status::from_code(error.code()), &error.to_string());
        match error {
            EngineError::Request { .. } => Err(LaneEnd::Request(error)),
            _ => Ok(()),
        }
    }

    /// Runs a pass when its turn comes; an end of the lane where nobody needs it by then.
    fn pass(
        &mut self,
        layer: LayerId,
        completion: &mut Completion,
        run: impl FnOnce(&mut Layers, &Arc<Shared>, &mut Completion, &EventSink) -> Result<(), EngineError>,
    ) -> Result<Result<(), EngineError>, LaneEnd> {
        let Self { lane, turns, stop, layers, arena, gauges, events, .. } = self;
        let is_stopped = || stop.load(Ordering::Acquire);
        failpoint::reached(Failpoint::TurnBefore);
        let Some(turn) = turns.begin(|| is_stopped() || lane.is_gone()) else {
            refuse(completion, Status::Draining, "the session is being closed");
            return Err(if is_stopped() { LaneEnd::Stopped } else { LaneEnd::PeerGone });
        };
        failpoint::reached(Failpoint::TurnBegun);
        let result = run(layers, arena, completion, events);
        layers.bound_idle(layer);
        gauges.count_plans(layers.take_plans_made());
        let used = turn.end(lane.has_next());
        failpoint::reached(Failpoint::TurnEnded);
        self.waited += used.waited;
        gauges.passed(&used);
        Ok(result)
    }

    fn measure(&self) {
        let quota = self.layers.quota();
        self.gauges.hold(quota.tickets() as u64, quota.saved_bytes());
    }
}

fn refuse(completion: &mut Completion, status: Status, message: &str) {
    *completion = Completion::refused(completion.sequence, status, message);
}

fn ended_by(error: WireError) -> LaneEnd {
    match error {
        WireError::Closed => LaneEnd::PeerGone,
        other => LaneEnd::Wire(Arc::new(other)),
    }
}
