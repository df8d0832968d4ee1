//! A session: one trainer's connection, its layers, its lane.

mod connection;
mod export;
mod hints;
mod layers;
mod life;
mod offers;
mod requests;
mod watching;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use actix::{Actor, ActorContext as _, Addr, Context, Handler, Message, MessageResult, ResponseFuture};
use tokio::sync::{mpsc, watch};

use super::{
    ActorError, Devices, Events, Kernels, LaneLink, LaneNumbers, ReweighKernel, Seat, Seed, Supervisor,
    Teller, UnloadSeed,
    base::{Handle, StopActor},
    seed::SeedReached,
    supervisor::SessionClosed,
};
use crate::{
    clock::Clock,
    engine::{EngineConfig, LaneEvent, SessionLedger, Turns},
    failpoint::{self, Failpoint},
    id::{KernelId, LayerId, SeedIndex, SessionId},
    record::Recorder,
    wire::{
        Arena, ErrorReply, Event, EventKind, Peer, RecentReport, SeedReport, SessionLimits, SessionReport,
    },
};
use hints::Hints;
use layers::{Layers, describe};
use offers::Offers;

pub use connection::serve_session;
pub use watching::serve_watcher;

/// What a session is made with.
#[derive(Clone, Debug)]
pub struct SessionParts {
    /// Its number.
    pub id: SessionId,
    /// Who is at the other end.
    pub peer: Peer,
    /// Where its kernels come from.
    pub kernels: Kernels,
    /// Who is told when it ends.
    pub supervisor: Handle<Supervisor>,
    /// Where its kernels may run.
    pub devices: Arc<Devices>,
    /// How they run.
    pub engine: Arc<EngineConfig>,
    /// How much it may hold, as its trainer is told.
    pub limits: SessionLimits,
    /// What it holds, within its own limits and its user's.
    pub ledger: Arc<SessionLedger>,
    /// Where its passes take turns with those of other sessions.
    pub turns: Arc<Turns>,
    /// Where its failing passes are recorded, if anywhere.
    pub recorder: Option<Arc<Recorder>>,
    /// Microseconds that each side spins before it sleeps.
    pub spin_us: u32,
    /// Where it leaves its lane's numbers.
    pub numbers: LaneNumbers,
    /// Where what happens is told.
    pub events: Events,
    /// The time.
    pub clock: Arc<dyn Clock>,
}

/// One trainer's connection.
///
/// Ends when the trainer closes its control connection, when its lane ends, or when it is stopped. Then its
/// layers, tickets and memory are free.
#[derive(Debug)]
pub struct Session {
    parts: SessionParts,
    client: String,
    lane: Option<LaneLink>,
    /// Where its kernels run, from its greeting on.
    seat: Option<Seat>,
    teller: Teller,
    arena: Option<Arc<Arena>>,
    arena_bytes: u64,
    /// Whether tensors lie on the device.
    on_device: bool,
    layers: Layers,
    hints: Hints,
    offers: Offers,
    draining: bool,
    /// Closes the connection when dropped.
    _open: watch::Sender<()>,
}

impl Session {
    /// A session before its greeting, and what tells its connection that it is over.
    pub fn new(parts: SessionParts) -> (Self, watch::Receiver<()>) {
        let (open, closed) = watch::channel(());
        let session = Self {
            teller: Teller::new(parts.events.clone(), parts.peer.uid, parts.id),
            parts,
            client: String::new(),
            lane: None,
            seat: None,
            arena: None,
            arena_bytes: 0,
            on_device: false,
            layers: Layers::default(),
            hints: Hints::default(),
            offers: Offers::default(),
            draining: false,
            _open: open,
        };
        (session, closed)
    }

    fn lane(&self, verb: &'static str) -> Result<&LaneLink, ActorError> {
        self.lane.as_ref().ok_or(ActorError::Greeting { verb })
    }

    fn seat(&self, verb: &'static str) -> Result<&Seat, ActorError> {
        self.seat.as_ref().ok_or(ActorError::Greeting { verb })
    }

    /// Has the cache take a kernel's weight anew.
    fn reweigh(&self, kernel: KernelId) {
        let cache = self.parts.kernels.cache().clone();
        // A cache that cannot be asked learns of it when it next looks for room.
        actix::spawn(async move { cache.order(ReweighKernel { kernel, plan_us: None }).await });
    }

    /// Tells a seed what happened to it on the lane. It comes into the mailbox here and now, in the order of the
    /// events, unless that is full: then as soon as there is room.
    fn tell_seed<M>(&self, layer: LayerId, seed: SeedIndex, message: M)
    where
        Seed: Handler<M>,
        M: Message<Result = ()> + Send + 'static,
        Context<Seed>: actix::dev::ToEnvelope<Seed, M>,
    {
        if let Some(actor) = self.layers.actor(layer, seed) {
            let told = actor.send(message);
            // A seed that is gone has nothing to be told.
            actix::spawn(async move { _ = told.await });
        }
    }

    /// Turns a lane's events into messages, one after the other.
    fn listen(mut events: mpsc::UnboundedReceiver<LaneEvent>, session: Addr<Self>) {
        actix::spawn(async move {
            while let Some(event) = events.recv().await {
                if session.send(LaneHappened(event)).await.is_err() {
                    return;
                }
            }
        });
    }
}

impl Actor for Session {
    type Context = Context<Self>;

    fn stopped(&mut self, _: &mut Self::Context) {
        failpoint::reached(Failpoint::SessionEnding);
        let (id, supervisor) = (self.parts.id, self.parts.supervisor.clone());
        tracing::info!(session = %id, client = self.client, "session closed");
        self.layers.stop_seeds();
        if self.lane.is_some() {
            self.teller.tell(EventKind::SessionClosed);
        }
        self.withdraw_offers();
        // A supervisor that cannot be asked finds the closed address when it next looks.
        actix::spawn(async move { supervisor.ask(SessionClosed(id)).await });
    }
}

impl Handler<StopActor> for Session {
    type Result = ();

    fn handle(&mut self, _: StopActor, context: &mut Self::Context) {
        context.stop();
    }
}

/// Something that happened on the session's lane.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct LaneHappened(LaneEvent);

impl Handler<LaneHappened> for Session {
    type Result = ();

    fn handle(&mut self, LaneHappened(event): LaneHappened, context: &mut Self::Context) {
        let session = self.parts.id;
        match event {
            LaneEvent::SeedFailed { layer, seed, generation, kernel, error } => {
                tracing::warn!(%session, %layer, %seed, %kernel, %error, "a pass of a seed failed");
                let error = ErrorReply::from_fault(&error);
                let kind = EventKind::PassFailed { error };
                let (seed, kernel, generation) = (Some(seed), Some(kernel), Some(generation));
                self.layers.teller(&self.teller, layer).tell(Event {
                    seed,
                    kernel,
                    generation,
                    ..kind.into()
                });
            }
            LaneEvent::AlphaReached { layer, seed, generation, number, alpha } => {
                self.tell_seed(layer, seed, SeedReached { number, alpha, generation });
            }
            LaneEvent::Planned { kernel } => self.reweigh(kernel),
            LaneEvent::SeedUnloaded { layer, seed, generation, error, alpha, course } => {
                tracing::warn!(%session, %layer, %seed, %error, "kernel unloaded after failures in a row");
                self.tell_seed(layer, seed, UnloadSeed { generation, error, alpha, course });
            }
            LaneEvent::Ended(end) => {
                if let Some(code) = end.code() {
                    tracing::warn!(%session, code, ?end, "lane ended");
                }
                context.stop();
            }
        }
    }
}

/// From now on the session takes no new work; what is under way goes on.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct DrainSession;

impl Handler<DrainSession> for Session {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: DrainSession, _: &mut Self::Context) -> Self::Result {
        self.draining = true;
        let lane = self.lane.clone();
        Box::pin(async move {
            if let Some(lane) = lane {
                lane.drain().await;
            }
        })
    }
}

/// What a session tells of itself.
#[derive(Clone, Debug)]
pub struct SessionOverview {
    /// Its numbers.
    pub report: SessionReport,
    /// Its seeds.
    pub seeds: Vec<SeedReport>,
}

/// Asks for a session's numbers and seeds.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "SessionOverview")]
pub struct ReportSession;

impl Handler<ReportSession> for Session {
    type Result = ResponseFuture<SessionOverview>;

    fn handle(&mut self, _: ReportSession, _: &mut Self::Context) -> Self::Result {
        let gauges = self.lane.as_ref().map(LaneLink::gauges);
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let passes = gauges.map(|gauges| gauges.passes().summary()).unwrap_or_default();
        let recent = gauges.map(|gauges| gauges.recent(Instant::now())).unwrap_or_default();
        let mut report = SessionReport {
            session: self.parts.id,
            client: self.client.clone(),
            pid: self.parts.peer.pid,
            uid: self.parts.peer.uid,
            device: self.seat.as_ref().map_or_else(String::new, |seat| seat.backend().name().to_owned()),
            layers: self.layers.len() as u32,
            live_seeds: 0,
            tickets: gauges.map_or(0, |gauges| gauges.tickets() as u32),
            arena_bytes: self.arena_bytes,
            saved_bytes: gauges.map_or(0, |gauges| gauges.saved_bytes()),
            passes: gauges.map_or(0, |gauges| gauges.forwards() + gauges.backwards()),
            refused_passes: gauges.map_or(0, |gauges| gauges.refusals()),
            supply_waits: gauges.map_or(0, |gauges| gauges.supply_waits().get()),
            pass_plans: gauges.map_or(0, |gauges| gauges.pass_plans()),
            held_bytes: self.parts.ledger.held().bytes,
            compute_us: gauges.map_or(0, |gauges| micros(gauges.computed())),
            turn_wait_us: gauges.map_or(0, |gauges| micros(gauges.waited())),
            pass_p50_us: passes.p50_ns as f64 / 1e3,
            pass_p99_us: passes.p99_ns as f64 / 1e3,
            recent: RecentReport {
                passes_per_second: recent.passes,
                compute_percent: 100.0 * recent.computing,
                waiting_percent: 100.0 * recent.waiting,
            },
        };
        let slots = self.layers.slots();
        Box::pin(async move {
            let mut seeds = Vec::with_capacity(slots.len());
            for slot in slots {
                seeds.push(describe(report.session, slot).await);
            }
            report.live_seeds = seeds.iter().filter(|seed| seed.kernel.is_some()).count() as u32;
            SessionOverview { report, seeds }
        })
    }
}

/// Asks how many tickets of a session await their backward.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "u64")]
pub struct CountTickets;

impl Handler<CountTickets> for Session {
    type Result = MessageResult<CountTickets>;

    fn handle(&mut self, _: CountTickets, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.lane.as_ref().map_or(0, |lane| lane.gauges().tickets()))
    }
}
