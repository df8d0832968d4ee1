//! The supervisor: starts the others, brings back what fails, knows every session, gathers statistics and
//! orders the daemon's end.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use actix::{Actor, Addr, AsyncContext as _, Context, Handler, Message, ResponseFuture};
use tokio::{net::UnixStream, sync::mpsc};

use super::{
    ActorError, CloseCache, Devices, Events, Kernels, LaneNumbers, ReportBreakers, ReportSession,
    ReportSupply, Session, SessionParts, SupplyStatus, UrzaFetcher, WarmStart,
    base::{Child, Exit, Handle, StopActor},
    roll::Roll,
    serve_session,
    session::{CountTickets, DrainSession},
};
use crate::{
    clock::Clock,
    engine::{
        EngineConfig, Held, Holdings, Ledgers, Occupancy, QuotaSpent, SessionLedger, Turns, UserHoldings,
        Whose,
    },
    id::SessionId,
    record::{Counts, Dropped, Recorder},
    wire::{
        ActorReport, DeviceReport, Peer, RecordsReport, SeedsReport, SessionLimits, StatusReport,
        TurnsReport, UserReport,
    },
};

/// Says what kernels run on, as it stands when it is asked. It may not wait.
pub type DeviceReporter = Arc<dyn Fn() -> DeviceReport + Send + Sync>;

/// What a supervisor is made with.
pub struct SupervisorParts {
    /// The actors it starts, in the order it starts them.
    pub children: Vec<Box<dyn Child>>,
    /// Where their ends are told.
    pub exits: mpsc::UnboundedReceiver<Exit>,
    /// Its own handle, for the sessions it opens.
    pub handle: Handle<Supervisor>,
    /// Where kernels come from.
    pub kernels: Kernels,
    /// The fetcher.
    pub fetcher: Handle<UrzaFetcher>,
    /// Where kernels run.
    pub devices: Arc<Devices>,
    /// What that is, for operators.
    pub device: DeviceReporter,
    /// How they run.
    pub engine: Arc<EngineConfig>,
    /// How much a session may hold, as its trainer is told.
    pub limits: SessionLimits,
    /// What sessions hold, by user.
    pub ledgers: Arc<Ledgers>,
    /// Where passes take turns.
    pub turns: Arc<Turns>,
    /// Where failing passes are recorded, if anywhere.
    pub recorder: Option<Arc<Recorder>>,
    /// Sessions at a time.
    pub max_sessions: usize,
    /// Microseconds that each side of a session spins before it sleeps.
    pub spin_us: u32,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Where what happens is told.
    pub events: Events,
}

impl std::fmt::Debug for SupervisorParts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = self.children.iter().map(|child| child.name()).collect();
        write!(f, "SupervisorParts({names:?})")
    }
}

/// Watches over the other actors and the sessions.
#[derive(Debug)]
pub struct Supervisor {
    parts: SupervisorParts,
    sessions: Roll,
    started: Instant,
    draining: bool,
}

impl Supervisor {
    /// A supervisor whose children start when it does.
    pub fn new(parts: SupervisorParts) -> Self {
        let started = parts.clock.now();
        Self { parts, sessions: Roll::new(), started, draining: false }
    }

    fn addresses(&self) -> Vec<Addr<Session>> {
        self.sessions.addresses()
    }

    /// The ledger of one more session, if there may be one.
    fn place(&self, uid: u32) -> Result<Arc<SessionLedger>, QuotaSpent> {
        let (used, limit) = (self.sessions.len() as u64, self.parts.max_sessions as u64);
        if used >= limit {
            let (key, what, whose) = ("limits.max_sessions", Held::Sessions, Whose::Node);
            return Err(QuotaSpent { key, limit, used, asked: 1, what, whose });
        }
        self.parts.ledgers.open(uid)
    }

    fn child(&mut self, name: &str) -> Option<&mut Box<dyn Child>> {
        self.parts.children.iter_mut().find(|child| child.name() == name)
    }
}

impl Actor for Supervisor {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        for child in &mut self.parts.children {
            child.start();
        }
        // Not before the cache has its address.
        let cache = self.parts.kernels.cache().clone();
        actix::spawn(async move {
            if let Err(error) = cache.order(WarmStart).await {
                tracing::warn!(%error, "warming cannot begin");
            }
        });
        let (_, closed) = mpsc::unbounded_channel();
        let mut exits = std::mem::replace(&mut self.parts.exits, closed);
        let address = context.address();
        actix::spawn(async move {
            while let Some(exit) = exits.recv().await {
                if address.send(ActorEnded(exit)).await.is_err() {
                    return;
                }
            }
        });
    }
}

/// A supervised actor has ended.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
struct ActorEnded(Exit);

impl Handler<ActorEnded> for Supervisor {
    type Result = ();

    fn handle(&mut self, ActorEnded(exit): ActorEnded, context: &mut Self::Context) {
        if exit.graceful || self.draining {
            return;
        }
        let now = self.parts.clock.now();
        let Some(child) = self.child(exit.actor) else { return };
        match child.failed(now) {
            Some(delay) => {
                tracing::error!(actor = exit.actor, ?delay, "actor panicked, it is started again");
                context.run_later(delay, move |supervisor, _| {
                    if let Some(child) = supervisor.child(exit.actor) {
                        child.start();
                    }
                });
            }
            None => tracing::error!(actor = exit.actor, "actor panicked too often, it stays down"),
        }
    }
}

/// A trainer that is not served, with its connection, so that it can be told why.
#[derive(Debug)]
pub struct RefusedSession {
    /// The connection.
    pub stream: UnixStream,
    /// Why.
    pub error: ActorError,
}

/// Opens a session for a trainer that has connected.
#[derive(Debug, Message)]
#[rtype(result = "Result<SessionId, RefusedSession>")]
pub struct AdmitSession {
    /// Its control connection.
    pub stream: UnixStream,
    /// Who is at the other end.
    pub peer: Peer,
}

impl Handler<AdmitSession> for Supervisor {
    type Result = Result<SessionId, RefusedSession>;

    fn handle(&mut self, message: AdmitSession, _: &mut Self::Context) -> Self::Result {
        self.sessions.strike_absent(Addr::connected);
        if self.draining {
            return Err(RefusedSession { stream: message.stream, error: ActorError::Draining });
        }
        let ledger = match self.place(message.peer.uid) {
            Ok(ledger) => ledger,
            Err(spent) => return Err(RefusedSession { stream: message.stream, error: spent.into() }),
        };
        let (id, numbers) = (self.sessions.next(), LaneNumbers::default());
        let parts = &self.parts;
        let (session, closed) = Session::new(SessionParts {
            id,
            peer: message.peer,
            kernels: parts.kernels.clone(),
            supervisor: parts.handle.clone(),
            devices: parts.devices.clone(),
            engine: parts.engine.clone(),
            limits: parts.limits,
            ledger,
            turns: parts.turns.clone(),
            recorder: parts.recorder.clone(),
            spin_us: parts.spin_us,
            numbers: numbers.clone(),
            events: parts.events.clone(),
            clock: parts.clock.clone(),
        });
        let address = session.start();
        self.sessions.enter(id, address.clone(), numbers);
        let events = self.parts.events.clone();
        actix::spawn(serve_session(message.stream, address, closed, message.peer, events));
        Ok(id)
    }
}

/// Tells that a session has ended.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct SessionClosed(
    /// Which.
    pub SessionId,
);

impl Handler<SessionClosed> for Supervisor {
    type Result = ();

    fn handle(&mut self, SessionClosed(id): SessionClosed, _: &mut Self::Context) {
        self.sessions.strike(id);
    }
}

/// Asks whether anybody is there.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct Ping;

impl Handler<Ping> for Supervisor {
    type Result = ();

    fn handle(&mut self, _: Ping, _: &mut Self::Context) {}
}

/// Asks how the daemon does. The edge that asks adds what is its own: phase, process, version.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "StatusReport")]
pub struct ReportStatus;

impl Handler<ReportStatus> for Supervisor {
    type Result = ResponseFuture<StatusReport>;

    fn handle(&mut self, _: ReportStatus, _: &mut Self::Context) -> Self::Result {
        let mut report = StatusReport {
            uptime_seconds: self.parts.clock.now().duration_since(self.started).as_secs(),
            device: (self.parts.device)(),
            actors: self.parts.children.iter().map(|child| actor_report(child.report())).collect(),
            totals: self.sessions.totals(),
            events: self.parts.events.report(),
            turns: turns_report(&self.parts.turns),
            records: self.parts.recorder.as_deref().map(records_report),
            users: self.parts.ledgers.users().into_iter().map(user_report).collect(),
            ..StatusReport::default()
        };
        let (sessions, fetcher) = (self.addresses(), self.parts.fetcher.clone());
        let cache = self.parts.kernels.cache().clone();
        Box::pin(async move {
            for session in sessions {
                // One that has ended since is no session any more.
                if let Ok(overview) = session.send(ReportSession).await {
                    report.sessions.push(overview.report);
                }
            }
            if let Ok(breakers) = fetcher.order(ReportBreakers).await {
                report.breakers.extend(breakers.into_iter().map(Into::into));
            }
            if let Ok(SupplyStatus { warming, breakers }) = cache.order(ReportSupply).await {
                report.warming = warming;
                report.breakers.extend(breakers.into_iter().map(Into::into));
            }
            report
        })
    }
}

fn turns_report(turns: &Turns) -> TurnsReport {
    let Occupancy { places, running, waiting } = turns.occupancy();
    TurnsReport { places, running, waiting }
}

fn records_report(recorder: &Recorder) -> RecordsReport {
    let Counts { written, dropped } = recorder.counts();
    let dropped = Dropped::ALL.into_iter().zip(dropped);
    RecordsReport { written, dropped: dropped.map(|(why, count)| (why.as_str().to_owned(), count)).collect() }
}

fn user_report(user: UserHoldings) -> UserReport {
    let UserHoldings { uid, held: Holdings { sessions, layers, seeds, tickets, bytes } } = user;
    UserReport { uid, sessions, layers, seeds, tickets, bytes }
}

fn actor_report(report: super::base::ActorReport) -> ActorReport {
    let state = match (report.alive, report.down) {
        (true, _) => "running",
        (false, false) => "restarting",
        (false, true) => "failed",
    };
    ActorReport { name: report.name.to_owned(), state: state.to_owned(), restarts: report.panics }
}

/// Asks for every seed of every session.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "SeedsReport")]
pub struct ReportSeeds;

impl Handler<ReportSeeds> for Supervisor {
    type Result = ResponseFuture<SeedsReport>;

    fn handle(&mut self, _: ReportSeeds, _: &mut Self::Context) -> Self::Result {
        let sessions = self.addresses();
        Box::pin(async move {
            let mut report = SeedsReport::default();
            for session in sessions {
                if let Ok(overview) = session.send(ReportSession).await {
                    report.seeds.extend(overview.seeds);
                }
            }
            report
        })
    }
}

/// How often the tickets are counted while the daemon drains.
const DRAIN_POLL: Duration = Duration::from_millis(20);

/// Ends the daemon's work: no new sessions and no new forward passes; waits until no ticket awaits its
/// backward or the time is over; closes the sessions; lets the cache write what it holds. Answers with the
/// number of tickets that were left.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "u64")]
pub struct BeginDrain {
    /// How long to wait for tickets.
    pub patience: Duration,
}

impl Handler<BeginDrain> for Supervisor {
    type Result = ResponseFuture<u64>;

    fn handle(&mut self, BeginDrain { patience }: BeginDrain, _: &mut Self::Context) -> Self::Result {
        self.draining = true;
        let (sessions, cache) = (self.addresses(), self.parts.kernels.cache().clone());
        Box::pin(async move {
            for session in &sessions {
                let _ = session.send(DrainSession).await;
            }
            let deadline = tokio::time::Instant::now() + patience;
            let left = loop {
                let mut tickets = 0;
                for session in &sessions {
                    tickets += session.send(CountTickets).await.unwrap_or(0);
                }
                if tickets == 0 || tokio::time::Instant::now() >= deadline {
                    break tickets;
                }
                tokio::time::sleep(DRAIN_POLL).await;
            };
            for session in &sessions {
                let _ = session.send(StopActor).await;
            }
            if let Err(error) = cache.order(CloseCache).await {
                tracing::warn!(%error, "the cache could not be closed in order");
            }
            left
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_actor_that_stays_down_has_failed() {
        let state = |alive, down| {
            let report =
                crate::actor::base::ActorReport { name: "any", alive, down, panics: 6, under_way: 0 };
            actor_report(report).state
        };
        assert_eq!(
            [state(true, false), state(false, false), state(false, true)],
            ["running", "restarting", "failed"]
        );
    }
}
