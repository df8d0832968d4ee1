//! What a trainer may ask of its session, and the answers.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use actix::{
    Actor as _, ActorFutureExt as _, Addr, AsyncContext as _, Context, Handler, Message, ResponseActFuture,
    WrapFuture as _,
};
use serde::Serialize;
use tokio::sync::mpsc::UnboundedReceiver;

use super::{
    Session,
    layers::{Layer, SeedSlot, dormant},
};
use crate::{
    actor::{
        ActorError, BeginGraft, DescribeSeed, FinishGraft, GraftSeed, LaneLink, Seat, Seed, SeedFile,
        SeedParts, SetSeedAlpha,
    },
    backend::DeviceFile,
    engine::{EngineError, Holdings, LaneEvent, LaneLimits, LaneParts, LayerSpec},
    failpoint::{self, Failpoint},
    fault::Fault as _,
    id::{KernelId, LayerId, SeedIndex},
    wire::{
        Arena, CloseLayer, DaemonLane, Empty, ErrorReply, EventKind, FrameKind, Graft, GraftReply, GraftRole,
        Hello, HelloReply, LastErrorReply, LayerReply, MAX_SEEDS, MIN_ARENA_BYTES, OpenLayer, PROTOCOL,
        PrefetchReply, Reply, Request, SeedRef, encode,
    },
};

/// A reply, ready to be sent.
pub(super) struct Answer {
    /// The whole frame.
    pub(super) frame: Vec<u8>,
    /// What goes with it, each by its descriptor.
    pub(super) memory: Vec<Arc<dyn MemoryFile>>,
}

/// Something whose memory file is handed to the trainer.
pub(super) trait MemoryFile: Send + Sync {
    fn file(&self) -> std::os::fd::BorrowedFd<'_>;
}

impl MemoryFile for SeedFile {
    fn file(&self) -> std::os::fd::BorrowedFd<'_> {
        SeedFile::file(self)
    }
}

impl MemoryFile for OwnedFd {
    fn file(&self) -> std::os::fd::BorrowedFd<'_> {
        self.as_fd()
    }
}

/// The memory of a GPU that a session's tensors lie in.
struct DeviceArena(Arc<dyn DeviceFile>);

impl MemoryFile for DeviceArena {
    fn file(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.file()
    }
}

impl MemoryFile for Arena {
    fn file(&self) -> std::os::fd::BorrowedFd<'_> {
        Arena::file(self)
    }
}

impl Answer {
    pub(super) fn plain<T: Serialize>(result: Result<T, ErrorReply>) -> Self {
        Self::with(result, Vec::new())
    }

    fn with<T: Serialize>(result: Result<T, ErrorReply>, memory: Vec<Arc<dyn MemoryFile>>) -> Self {
        let frame = match result {
            Ok(value) => encode(FrameKind::Reply, memory.len(), &Reply::Ok(value)),
            Err(error) => encode(FrameKind::Reply, 0, &Reply::<()>::Error(error)),
        };
        match frame {
            Ok(frame) => Self { frame, memory },
            // A reply too long for a frame; the refusal is not.
            Err(error) => Self::plain::<()>(Err(ErrorReply::from_fault(&error))),
        }
    }
}

/// The most kernels that one request may ask to prefetch.
const MAX_PREFETCH: usize = 64;

pub(super) type Served = ResponseActFuture<Session, Answer>;

/// A trainer's request.
#[derive(Debug, Message)]
#[rtype(result = "Answer")]
pub(super) struct Serve(pub(super) Request);

impl Handler<Serve> for Session {
    type Result = Served;

    fn handle(&mut self, Serve(request): Serve, context: &mut Self::Context) -> Self::Result {
        let verb = request.verb();
        tracing::debug!(session = %self.parts.id, verb, "request");
        if self.draining
            && matches!(
                request,
                Request::OpenLayer(_)
                    | Request::Graft(_)
                    | Request::BeginGraft(_)
                    | Request::Prefetch(_)
                    | Request::Offer(_)
            )
        {
            return answered(Err::<Empty, _>(refusal(&ActorError::Draining)));
        }
        // A refusal of a graft says which it was.
        let graft = match &request {
            Request::Graft(graft) | Request::BeginGraft(graft) => {
                Some((graft.layer, graft.seed, graft.kernel.clone()))
            }
            _ => None,
        };
        let served = match request {
            Request::Hello(hello) => self.hello(&hello),
            // The connection takes it where it is allowed, which is at its very beginning.
            Request::Watch(_) => Err(ActorError::Greeting { verb }),
            Request::OpenLayer(open) => self.open_layer(open),
            Request::CloseLayer(close) => self.close_layer(close),
            Request::Graft(graft) => self.graft(graft),
            Request::BeginGraft(graft) => self.begin_graft(graft),
            Request::FinishGraft(seed) => self.finish_graft(seed),
            Request::SetAlpha(set) => self.ask_seed(set.layer, set.seed, SetSeedAlpha(set.alpha)),
            Request::Blend(blend) => self.blend(blend),
            Request::Hold(seed) => self.hold(seed),
            Request::Fossilize(fossilize) => self.fossilize(fossilize),
            Request::Prune(prune) => self.prune(prune),
            Request::SeedState(seed) => self.seed_state(seed),
            Request::SeedStats(seed) => {
                self.layers.slot(seed.layer, seed.seed).map(|slot| answered(Ok(slot.counters.snapshot())))
            }
            Request::SeedSeries(asked) => self
                .layers
                .slot(asked.layer, asked.seed)
                .map(|slot| answered(Ok(slot.counters.series(asked.after)))),
            Request::LastError(seed) => self.last_error(seed),
            Request::Prefetch(prefetch) => self.prefetch(prefetch.kernels, context),
            Request::Offer(offer) => self.offer(offer),
            Request::Export(export) => self.export(export),
        };
        served.unwrap_or_else(|error| {
            tracing::debug!(session = %self.parts.id, verb, code = error.code(), %error, "request refused");
            let refused = match graft {
                Some((layer, seed, kernel)) => refusal(&error).at(layer, seed).about(&kernel),
                None => refusal(&error),
            };
            answered(Err::<Empty, _>(refused))
        })
    }
}

/// A lane's link and events, and the memory of the device that its tensors lie in, if they do.
type Started = (LaneLink, UnboundedReceiver<LaneEvent>, Option<Arc<dyn DeviceFile>>);

/// Starts a session's lane, with memory of the device for its tensors where they are to lie there. Blocking.
fn start_lane(mut parts: LaneParts, on_device: bool) -> Result<Started, ActorError> {
    let bytes = parts.lane.arena().layout().arena_bytes as usize;
    let device_bytes =
        if on_device { parts.backend.file_bytes(bytes) } else { parts.backend.mirror_bytes(bytes) };
    let asked = Holdings { bytes: device_bytes as u64, ..Holdings::NONE };
    parts.device_share = (device_bytes > 0).then(|| parts.limits.ledger.take(asked)).transpose()?;
    let device_arena = if on_device {
        let failed = EngineError::of_run("the session's memory on the device");
        Some(parts.backend.allocate_file(bytes).map_err(failed)?)
    } else {
        None
    };
    parts.device_arena = device_arena.clone().map(|memory| memory as _);
    let (link, events) = LaneLink::start(parts)?;
    Ok((link, events, device_arena))
}

pub(super) fn answered<T: Serialize>(result: Result<T, ErrorReply>) -> Served {
    Box::pin(actix::fut::ready(Answer::plain(result)))
}

pub(super) fn refusal(error: &ActorError) -> ErrorReply {
    ErrorReply::from_fault(error)
}

impl Session {
    /// Waits for something and answers with it.
    fn later<T: Serialize + 'static>(
        &self,
        work: impl Future<Output = Result<T, ErrorReply>> + 'static,
    ) -> Served {
        let work: Pin<Box<dyn Future<Output = _>>> = Box::pin(work);
        Box::pin(work.into_actor(self).map(|result, _, _| Answer::plain(result)))
    }

    fn hello(&mut self, hello: &Hello) -> Result<Served, ActorError> {
        if self.lane.is_some() {
            return Err(ActorError::Greeting { verb: "hello" });
        }
        if hello.protocol != PROTOCOL {
            return Err(ActorError::Protocol { asked: hello.protocol, ours: PROTOCOL });
        }
        let limits = self.parts.limits;
        let arena_bytes =
            hello.arena_bytes.clamp(MIN_ARENA_BYTES, limits.max_arena_bytes.max(MIN_ARENA_BYTES));
        let seat = self.parts.devices.seat(hello.gpu.as_deref())?;
        let (lane, doorbell) = DaemonLane::serve(arena_bytes)?;
        failpoint::reached(Failpoint::ArenaMade);
        let (arena, on_device) = (lane.arena().clone(), hello.gpu.is_some());
        // Printable and short, since it ends up in logs and tables.
        self.client = hello.client.chars().filter(|c| !c.is_control()).take(64).collect();
        let parts = LaneParts {
            session: self.parts.id,
            lane,
            backend: seat.backend().clone(),
            config: self.parts.engine.clone(),
            limits: LaneLimits {
                ledger: self.parts.ledger.clone(),
                turns: self.parts.turns.clone(),
                spin: Duration::from_micros(self.parts.spin_us.into()),
            },
            recorder: self.parts.recorder.clone(),
            device_arena: None,
            device_share: None,
        };
        let started = async move {
            // A device takes its time to give as much memory.
            let started = tokio::task::spawn_blocking(move || start_lane(parts, on_device)).await;
            started.unwrap_or(Err(ActorError::Lost { what: "starting the session's lane" }))
        };
        Ok(Box::pin(started.into_actor(self).map(move |started, session, context| {
            let (link, events, device_arena) = match started {
                Ok(started) => started,
                Err(error) => return Answer::plain::<Empty>(Err(refusal(&error))),
            };
            Self::listen(events, context.address());
            failpoint::reached(Failpoint::LaneStarted);
            let device_bytes = device_arena.as_ref().map(|memory| memory.len_bytes() as u64);
            let reply = session.greeted(link, seat, arena.clone(), device_bytes);
            let mut files: Vec<Arc<dyn MemoryFile>> = vec![arena, Arc::new(doorbell)];
            if let Some(memory) = device_arena {
                files.push(Arc::new(DeviceArena(memory)));
            }
            Answer::with(Ok(reply), files)
        })))
    }

    /// Takes note that the session's lane serves.
    fn greeted(
        &mut self,
        link: LaneLink,
        seat: Seat,
        arena: Arc<Arena>,
        device_bytes: Option<u64>,
    ) -> HelloReply {
        // Said once, for a session is greeted once.
        let _ = self.parts.numbers.set(link.gauges().clone());
        let (layout, device) = (*arena.layout(), seat.backend().name().to_owned());
        (self.lane, self.seat) = (Some(link), Some(seat));
        (self.arena, self.arena_bytes) = (Some(arena), layout.arena_bytes);
        self.on_device = device_bytes.is_some();
        tracing::info!(session = %self.parts.id, client = self.client, pid = self.parts.peer.pid, uid = self.parts.peer.uid, device, arena_bytes = layout.arena_bytes, device_bytes, "session opened");
        let (client, pid) = (self.client.clone(), self.parts.peer.pid);
        self.teller.tell(EventKind::SessionOpened { client, pid });
        HelloReply {
            session: self.parts.id,
            server: concat!("kasminad/", env!("CARGO_PKG_VERSION")).to_owned(),
            protocol: PROTOCOL,
            device,
            arena: layout,
            limits: self.parts.limits,
            spin_us: self.parts.spin_us,
            device_bytes,
        }
    }

    fn open_layer(&mut self, open: OpenLayer) -> Result<Served, ActorError> {
        let lane = self.lane("open_layer")?.clone();
        let limits = self.parts.limits;
        // The host takes a bit of the masks too.
        let host = usize::from(open.host);
        let most = usize::from(limits.max_seeds_per_layer).min(MAX_SEEDS - host);
        if usize::from(open.seeds) > most {
            let what = "seeds in a layer (limits.max_seeds_per_layer)";
            return Err(ActorError::Quota { what, limit: most as u64 });
        }
        failpoint::reached(Failpoint::LayerOpening);
        let id = self.layers.number();
        let seeds =
            vec![(); usize::from(open.seeds) + host].iter().map(|()| SeedSlot::default()).collect::<Vec<_>>();
        let counters = seeds.iter().map(|slot| slot.counters.clone()).collect();
        let OpenLayer { blend, host, recompute, .. } = open;
        let spec = LayerSpec { id, blend, counters, host, recompute };
        let name: String = open.name.chars().filter(|c| !c.is_control()).take(128).collect();
        let (name, count): (Arc<str>, _) = (name.into(), open.seeds);
        let opened = async move { lane.open(spec).await };
        Ok(Box::pin(opened.into_actor(self).map(move |result, session, _| {
            let reply = result.map(|()| {
                session.teller.of_layer(id, &name).tell(EventKind::LayerOpened { seeds: count });
                session.layers.insert(id, Layer { name, seeds, host });
                LayerReply { layer: id }
            });
            Answer::plain(reply.map_err(|error| refusal(&error)))
        })))
    }

    fn close_layer(&mut self, CloseLayer { layer }: CloseLayer) -> Result<Served, ActorError> {
        let lane = self.lane("close_layer")?.clone();
        if let Some(closed) = self.layers.remove(layer) {
            self.teller.of_layer(layer, &closed.name).tell(EventKind::LayerClosed);
        }
        Ok(self.later(
            async move { lane.close(layer).await.map(|()| Empty {}).map_err(|error| refusal(&error)) },
        ))
    }

    /// The seed's actor, made where it is not there yet or has failed.
    fn seed(&mut self, layer: LayerId, seed: SeedIndex) -> Result<Addr<Seed>, ActorError> {
        let lane = self.lane("graft")?.clone();
        let backend = self.seat("graft")?.backend().clone();
        let parts = &self.parts;
        let (kernels, config) = (parts.kernels.clone(), parts.engine.clone());
        let (session, ledger, clock) = (parts.id, parts.ledger.clone(), parts.clock.clone());
        let (teller, on_device) = (self.layers.teller(&self.teller, layer), self.on_device);
        let slot = self.layers.slot(layer, seed)?;
        if let Some(actor) = slot.actor.as_ref().filter(|actor| actor.connected()) {
            return Ok(actor.clone());
        }
        let counters = slot.counters.clone();
        let parts = SeedParts {
            session,
            layer,
            seed,
            lane,
            kernels,
            backend,
            on_device,
            config,
            counters,
            ledger,
            teller,
            clock,
        };
        let actor = Seed::new(parts).start();
        slot.actor = Some(actor.clone());
        Ok(actor)
    }

    /// Whom a graft is for, and what is asked there.
    fn grafting(&mut self, graft: Graft) -> Result<(Addr<Seed>, GraftSeed), ActorError> {
        let Graft { layer, seed, kernel, alpha, input_shape, dtype, mut role, schedule } = graft;
        if self.layers.is_host(layer, seed) {
            if schedule.is_some() {
                let what = format!("slot {seed} of layer {layer} is the host, which has no blend factor");
                return Err(EngineError::Schedule { reason: format!("{what}: graft it without one") }.into());
            }
            // It does not train behind itself, whatever its graft says.
            role = GraftRole::Blend;
        }
        let actor = self.seed(layer, seed)?;
        Ok((actor, GraftSeed { kernel, alpha, input_shape, dtype, role, schedule }))
    }

    fn graft(&mut self, graft: Graft) -> Result<Served, ActorError> {
        let (layer, seed) = (graft.layer, graft.seed);
        let (actor, message) = self.grafting(graft)?;
        let kernel = message.kernel.clone();
        let grafted = async move { actor.send(message).await };
        Ok(Box::pin(grafted.into_actor(self).map(move |result, _, _| {
            let result = result.unwrap_or(Err(ActorError::Lost { what: "the graft" }));
            match result {
                Ok(grafted) => Answer::with(Ok(grafted.reply), vec![grafted.memory]),
                Err(error) => Answer::plain::<Empty>(Err(refusal(&error).at(layer, seed).about(&kernel))),
            }
        })))
    }

    fn begin_graft(&mut self, graft: Graft) -> Result<Served, ActorError> {
        let (layer, seed) = (graft.layer, graft.seed);
        let (actor, message) = self.grafting(graft)?;
        let kernel = message.kernel.clone();
        Ok(self.later(async move {
            let begun =
                actor.send(BeginGraft(message)).await.unwrap_or(Err(ActorError::Lost { what: "the graft" }));
            begun.map(|()| Empty {}).map_err(|error| refusal(&error).at(layer, seed).about(&kernel))
        }))
    }

    fn finish_graft(&mut self, SeedRef { layer, seed }: SeedRef) -> Result<Served, ActorError> {
        let actor = self.layers.slot(layer, seed)?.actor.clone();
        let actor = actor.ok_or(ActorError::NothingLoads { layer, seed })?;
        let finished = async move { actor.send(FinishGraft).await };
        Ok(Box::pin(finished.into_actor(self).map(move |result, _, _| {
            let result = result.unwrap_or(Err(ActorError::Lost { what: "the graft" }));
            match result {
                Ok(Some(grafted)) => Answer::with(Ok(grafted.reply), vec![grafted.memory]),
                Ok(None) => Answer::plain(Ok(None::<GraftReply>)),
                Err(error) => Answer::plain::<Empty>(Err(refusal(&error).at(layer, seed))),
            }
        })))
    }

    /// Asks a seed that has an actor; one that has none has no kernel either.
    pub(super) fn ask_seed<M>(
        &mut self,
        layer: LayerId,
        seed: SeedIndex,
        message: M,
    ) -> Result<Served, ActorError>
    where
        Seed: Handler<M>,
        M: Message<Result = Result<crate::wire::SeedReply, ActorError>> + Send + 'static,
        Context<Seed>: actix::dev::ToEnvelope<Seed, M>,
    {
        let actor =
            self.layers.slot(layer, seed)?.actor.clone().ok_or(ActorError::NoKernel { layer, seed })?;
        Ok(self.later(async move {
            let result = actor.send(message).await.unwrap_or(Err(ActorError::Lost { what: "the seed" }));
            result.map_err(|error| refusal(&error).at(layer, seed))
        }))
    }

    fn seed_state(&mut self, SeedRef { layer, seed }: SeedRef) -> Result<Served, ActorError> {
        let Some(actor) = self.layers.slot(layer, seed)?.actor.clone() else {
            return Ok(answered(Ok(dormant())));
        };
        Ok(self.later(async move {
            let lost = |_| refusal(&ActorError::Lost { what: "the seed" }).at(layer, seed);
            actor.send(DescribeSeed).await.map(|found| found.seed).map_err(lost)
        }))
    }

    fn last_error(&mut self, SeedRef { layer, seed }: SeedRef) -> Result<Served, ActorError> {
        let Some(actor) = self.layers.slot(layer, seed)?.actor.clone() else {
            return Ok(answered(Ok(LastErrorReply::default())));
        };
        Ok(self.later(async move {
            let lost = |_| refusal(&ActorError::Lost { what: "the seed" }).at(layer, seed);
            let found = actor.send(DescribeSeed).await.map_err(lost)?;
            Ok(LastErrorReply { error: found.last_error })
        }))
    }

    fn prefetch(
        &mut self,
        mut kernels: Vec<KernelId>,
        context: &mut Context<Self>,
    ) -> Result<Served, ActorError> {
        self.lane("prefetch")?;
        if kernels.len() > MAX_PREFETCH {
            return Err(ActorError::Quota { what: "kernels in one prefetch", limit: MAX_PREFETCH as u64 });
        }
        kernels.retain(|id| !self.parts.kernels.has(id));
        let started = self.hints.add(kernels)?;
        self.follow_hints(context);
        Ok(answered(Ok(PrefetchReply { started })))
    }
}
