//! Grafting: a kernel is fetched, planned and given its memory beside whatever runs, then put into the lane.

use std::sync::Arc;

use actix::{ActorFutureExt as _, AsyncContext as _, Handler, Message, ResponseActFuture, WrapFuture as _};

use super::{
    Occupant, Seed, SeedParts, Way,
    memory::{KeptMemory, SeedFile, SeedMemory},
    tables::Tables,
};
use crate::{
    actor::{ActorError, Holder, ReweighKernel},
    engine::{Alpha, Course, EngineError, Holdings, LiveSeed, PlanKey, Schedule, is_active, transition},
    failpoint::{self, Failpoint},
    id::{Generation, KernelId},
    tensor::{DType, Shape},
    wire::{EventKind, GraftReply, GraftRole, ScheduleSpec, SeedState},
};

/// The batch that a graft is planned for, to learn early whether the kernel fits. Two, because batch
/// normalisation refuses to train on one.
const TRIAL_BATCH: usize = 2;

/// Puts a kernel into the seed. A kernel that is there already goes on running until the new one is ready.
#[derive(Clone, Debug, Message)]
#[rtype(result = "Result<Grafted, ActorError>")]
pub struct GraftSeed {
    /// Which kernel.
    pub kernel: KernelId,
    /// The blend factor to start with.
    pub alpha: f32,
    /// The input's shape without the batch.
    pub input_shape: Shape,
    /// The input's element type.
    pub dtype: DType,
    /// What the kernel does from then on.
    pub role: GraftRole,
    /// How the blend factor goes on; where nothing is said, it stays.
    pub schedule: Option<ScheduleSpec>,
}

impl GraftSeed {
    /// Where a seed stands that this was done to.
    fn goal(&self) -> SeedState {
        match (self.role, self.schedule) {
            (GraftRole::Train, _) => SeedState::Training,
            (GraftRole::Blend, Some(_)) => SeedState::Blending,
            (GraftRole::Blend, None) => SeedState::Holding,
        }
    }

    /// The schedule at its start.
    fn course(&self, number: u64) -> Result<Option<Course>, EngineError> {
        let alpha = Alpha::new(self.alpha)?;
        let Some(spec) = &self.schedule else { return Ok(None) };
        if self.role == GraftRole::Train {
            let reason = "a kernel that learns behind its layer has none: blend it later".to_owned();
            return Err(EngineError::Schedule { reason });
        }
        Ok(Some(Course { schedule: Schedule::new(spec, alpha)?, number }))
    }
}

/// A kernel that is live now, and the memory its parameters are in.
#[derive(Debug)]
pub struct Grafted {
    /// What the trainer is told.
    pub reply: GraftReply,
    /// The memory file that goes with it.
    pub memory: Arc<SeedFile>,
}

/// A kernel made ready beside whatever runs: memory, and proof that it fits.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) live: Arc<LiveSeed>,
    memory: KeptMemory,
    tables: Tables,
}

impl SeedParts {
    /// Has a kernel ready to run, in memory of its own, or in that of its earlier life with the values that are there.
    pub(super) async fn prepare(
        &self,
        graft: &GraftSeed,
        generation: Generation,
        earlier: Option<(KeptMemory, Tables)>,
    ) -> Result<Prepared, ActorError> {
        let SeedParts { session, layer, seed, on_device, .. } = *self;
        let lease = self.kernels.get(&graft.kernel, Holder { session, layer, seed, generation }).await?;
        failpoint::reached(Failpoint::GraftLoaded);
        let (kernel, backend, config) = (Arc::clone(&*lease), self.backend.clone(), self.config.clone());
        let dims = [TRIAL_BATCH].into_iter().chain(graft.input_shape.iter().copied());
        let key = PlanKey {
            input_shape: dims.collect(),
            dtype: graft.dtype,
            train: true,
            wants_input: true,
            wants_parameters: true,
        };
        let tables = Tables::of(&kernel);
        let share = match &earlier {
            Some((_, known)) if *known != tables => {
                return Err(ActorError::Changed { kernel: graft.kernel.clone() });
            }
            Some((memory, _)) => memory._share.clone(),
            None => {
                let bytes = SeedFile::bytes_for(&kernel, &*backend, on_device);
                Arc::new(self.ledger.take(Holdings { seeds: 1, bytes, ..Holdings::NONE })?)
            }
        };
        let start = std::time::Instant::now();
        let planned = tokio::task::spawn_blocking(move || {
            kernel.plans(&key, backend.as_ref(), &config)?;
            let shared = match earlier {
                Some((memory, _)) => memory.shared,
                None => Arc::new(SeedFile::of(&kernel, &*backend, on_device)?),
            };
            failpoint::reached(Failpoint::GraftMemoryMade);
            let memory = KeptMemory { shared, _share: share };
            let held = SeedMemory { kept: memory.clone(), _lease: lease };
            let shared = backend.share(Arc::new(held)).map_err(EngineError::of_kernel(kernel.id()))?;
            let live = Arc::new(LiveSeed::new(kernel, shared, generation)?);
            Ok::<_, ActorError>((live, memory))
        });
        let (live, memory) =
            planned.await.map_err(|_| ActorError::Lost { what: "planning the kernel" })??;
        // No pass is to make plans because of a swap.
        self.plan_ahead(live.kernel(), graft.role).await?;
        // Planning has made the kernel heavier; a cache that cannot be asked learns of it when it next looks for room.
        let plan_us = Some(u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX));
        let _ = self.kernels.cache().order(ReweighKernel { kernel: graft.kernel.clone(), plan_us }).await;
        Ok(Prepared { live, memory, tables })
    }

    /// As [`prepare`](Self::prepare) for a trainer. Where an attempt to bring the kernel before back was just being
    /// put into the lane, it is taken out again first.
    async fn prepare_anew(
        &self,
        graft: &GraftSeed,
        epoch: u64,
        is_stray: bool,
    ) -> Result<Prepared, ActorError> {
        if is_stray {
            self.lane.detach(self.layer, self.seed).await?;
        }
        self.prepare(graft, Generation(epoch), None).await
    }
}

/// Where a graft stands that nobody waits for.
#[derive(Debug)]
pub(super) enum Background {
    /// It is under way.
    Loading,
    /// It is ready, and goes into the lane when the trainer says so: until then passes are the old kernel's.
    Ready(Box<(GraftSeed, Prepared)>),
    /// It has failed, and nobody was told yet.
    Failed(ActorError),
}

type Grafting = ResponseActFuture<Seed, Result<Grafted, ActorError>>;

impl Seed {
    /// Refuses a kernel that the seed, as it is, cannot take.
    fn may_take(&self, graft: &GraftSeed) -> Result<(), ActorError> {
        let SeedParts { layer, seed, ref clock, .. } = self.parts;
        graft.course(0)?;
        if let Some(left) = self.embargoes.left(&graft.kernel, clock.now()) {
            let (kernel, left_ms) = (graft.kernel.clone(), crate::clock::whole_ms(left).max(1));
            return Err(ActorError::Embargoed { kernel, layer, seed, left_ms });
        }
        let goal = graft.goal();
        match self.state {
            // It has become part of its layer, and is swapped for nothing.
            SeedState::Fossilized => transition(self.state, SeedState::Loading).map(drop)?,
            state if is_active(state) && state != goal => transition(state, goal).map(drop)?,
            _ => {}
        }
        Ok(())
    }

    /// Begins a load; by its number it is told later whether it is still wanted. With it comes whether an attempt to
    /// come back is to be taken out of the lane first.
    fn begin(&mut self, graft: &GraftSeed) -> Result<(u64, bool), ActorError> {
        self.may_take(graft)?;
        failpoint::reached(Failpoint::GraftBegun);
        self.epoch = self.number();
        (self.load, self.background) = (Some((graft.kernel.clone(), self.epoch)), None);
        // A trainer that grafts does not wait for the kernel before.
        let is_stray = self.recovery.take().is_some_and(|recovery| recovery.is_attaching());
        // A kernel that runs goes on running while the next one is made ready beside it.
        if !is_active(self.state) {
            // What was a fossil is not to come back any more.
            self.frozen = false;
            if self.state != SeedState::Loading {
                self.step(SeedState::Loading, "its trainer grafts a kernel")?;
            }
        }
        Ok((self.epoch, is_stray))
    }

    /// What a load gave, unless the seed was asked for something else meanwhile.
    fn loaded(
        &mut self,
        epoch: u64,
        graft: &GraftSeed,
        prepared: Result<Prepared, ActorError>,
    ) -> Result<Prepared, ActorError> {
        let superseded = || ActorError::Superseded { kernel: graft.kernel.clone() };
        let wanted = if self.epoch == epoch { prepared } else { prepared.and(Err(superseded())) };
        wanted.inspect_err(|error| self.load_failed(epoch, error, graft))
    }

    /// Puts a prepared kernel into the lane.
    fn attach(&mut self, epoch: u64, graft: GraftSeed, prepared: Prepared) -> Grafting {
        // While it was made ready the seed may have gone on.
        let number = self.number();
        let ready =
            self.may_take(&graft).and_then(|()| Ok((Alpha::new(graft.alpha)?, graft.course(number)?)));
        let (alpha, course) = match ready {
            Ok(ready) => ready,
            Err(error) => {
                self.load_failed(epoch, &error, &graft);
                return Box::pin(actix::fut::err(error));
            }
        };
        failpoint::reached(Failpoint::GraftReady);
        self.parts.counters.keep_series(self.parts.config.series_length);
        let (parts, live, role) = (self.parts.clone(), prepared.live.clone(), graft.role.into());
        self.takeovers += 1;
        let attached =
            async move { parts.lane.attach(parts.layer, parts.seed, live, alpha, role, course).await };
        Box::pin(attached.into_actor(self).map(move |attached, seed, _| {
            seed.takeovers -= 1;
            failpoint::reached(Failpoint::GraftAttached);
            let settled = attached.and_then(|()| seed.settle(&graft, Generation(epoch), prepared, course));
            settled.inspect_err(|error| seed.load_failed(epoch, error, &graft))
        }))
    }

    /// Ends a load: back to where the seed was, if it still waits for this one.
    fn load_failed(&mut self, epoch: u64, error: &ActorError, graft: &GraftSeed) {
        let SeedParts { layer, seed, .. } = self.parts;
        tracing::warn!(%layer, %seed, kernel = %graft.kernel, %error, "graft failed");
        if self.epoch != epoch {
            return;
        }
        // Loading may also be an attempt to bring the kernel before back, which goes on.
        if self.state == SeedState::Loading && self.recovery.is_none() {
            let back = self
                .step(SeedState::ErrorRecovery, "the kernel could not be had")
                .and_then(|()| self.step(SeedState::Dormant, "a trainer's graft is not tried again"));
            debug_assert!(back.is_ok(), "a seed that loads may fail, and one that failed may rest");
        }
        self.load = None;
    }

    /// Takes note that a prepared kernel runs now.
    fn settle(
        &mut self,
        graft: &GraftSeed,
        generation: Generation,
        prepared: Prepared,
        course: Option<Course>,
    ) -> Result<Grafted, ActorError> {
        self.recovery = None;
        if matches!(self.state, SeedState::ErrorRecovery | SeedState::Dormant) {
            // The kernel before was unloaded while this one was made ready.
            self.step(SeedState::Loading, "its trainer grafts a kernel")?;
        }
        let before = self.kernel().cloned().filter(|_| is_active(self.state));
        self.before = before.clone().map(|kernel| (self.generation, kernel));
        let Prepared { live, memory, tables } = prepared;
        let memory_bytes = live.kernel().memory_bytes() as u64;
        self.load = self.load.take().filter(|(_, epoch)| Generation(*epoch) != generation);
        (self.generation, self.alpha, self.failure, self.frozen) = (generation, graft.alpha, None, false);
        self.attempts.renew();
        self.occupant = Some(Occupant {
            graft: graft.clone(),
            kernel: Arc::downgrade(live.kernel()),
            digest: live.kernel().digest(),
            memory: memory.clone(),
            tables: tables.clone(),
            memory_bytes,
        });
        self.arrive(graft.goal(), course, "its kernel runs")?;
        if let Some(before) = before {
            self.tell(EventKind::KernelSwapped { before });
        }
        failpoint::reached(Failpoint::GraftSettled);
        let Tables { parameters, buffers, buffers_offset, gradient_bytes } = tables;
        let reply = GraftReply {
            layer: self.parts.layer,
            seed: self.parts.seed,
            kernel: graft.kernel.clone(),
            generation,
            state: self.state,
            alpha: self.reply().alpha,
            memory_bytes,
            device_bytes: memory.shared.device_bytes(),
            buffers_offset,
            gradient_bytes,
            parameters,
            buffers,
        };
        Ok(Grafted { reply, memory: memory.shared })
    }

    /// Takes note of where the seed stands with the kernel that runs now, and of the schedule that it follows.
    pub(super) fn arrive(
        &mut self,
        state: SeedState,
        course: Option<Course>,
        reason: &str,
    ) -> Result<(), ActorError> {
        self.way = course.map(|course| Way { number: course.number, target: course.schedule.target().get() });
        if self.state != state {
            self.step(state, reason)?;
        }
        self.settle_early()
    }
}

impl Handler<GraftSeed> for Seed {
    type Result = Grafting;

    fn handle(&mut self, graft: GraftSeed, _: &mut Self::Context) -> Self::Result {
        let (epoch, is_stray) = match self.begin(&graft) {
            Ok(begun) => begun,
            Err(error) => return Box::pin(actix::fut::err(error)),
        };
        let (parts, asked) = (self.parts.clone(), graft.clone());
        let prepared = async move { parts.prepare_anew(&asked, epoch, is_stray).await };
        Box::pin(prepared.into_actor(self).then(move |prepared, seed, _| {
            match seed.loaded(epoch, &graft, prepared) {
                Ok(prepared) => seed.attach(epoch, graft, prepared),
                Err(error) => Box::pin(actix::fut::err(error)),
            }
        }))
    }
}

/// Loads a kernel while nobody waits. [`FinishGraft`] puts it into the seed.
#[derive(Clone, Debug, Message)]
#[rtype(result = "Result<(), ActorError>")]
pub struct BeginGraft(
    /// Which kernel, and how.
    pub GraftSeed,
);

impl Handler<BeginGraft> for Seed {
    type Result = Result<(), ActorError>;

    fn handle(&mut self, BeginGraft(graft): BeginGraft, context: &mut Self::Context) -> Self::Result {
        let (epoch, is_stray) = self.begin(&graft)?;
        self.background = Some(Background::Loading);
        let (parts, asked) = (self.parts.clone(), graft.clone());
        let prepared = async move { parts.prepare_anew(&asked, epoch, is_stray).await };
        context.spawn(prepared.into_actor(self).map(move |prepared, seed, _| {
            let loaded = seed.loaded(epoch, &graft, prepared);
            // Another load, or a prune, has taken this one's place.
            if seed.epoch == epoch {
                seed.background = Some(match loaded {
                    Ok(prepared) => Background::Ready(Box::new((graft, prepared))),
                    Err(error) => Background::Failed(error),
                });
            }
        }));
        Ok(())
    }
}

/// Puts the kernel of a [`BeginGraft`] into the seed, where it is ready. None while it loads.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Result<Option<Grafted>, ActorError>")]
pub struct FinishGraft;

impl Handler<FinishGraft> for Seed {
    type Result = ResponseActFuture<Self, Result<Option<Grafted>, ActorError>>;

    fn handle(&mut self, _: FinishGraft, _: &mut Self::Context) -> Self::Result {
        let SeedParts { layer, seed, .. } = self.parts;
        match self.background.take() {
            Some(Background::Ready(ready)) => {
                let (graft, prepared) = *ready;
                Box::pin(self.attach(self.epoch, graft, prepared).map(|result, _, _| result.map(Some)))
            }
            Some(Background::Failed(error)) => Box::pin(actix::fut::err(error)),
            Some(Background::Loading) => {
                self.background = Some(Background::Loading);
                Box::pin(actix::fut::ok(None))
            }
            None => Box::pin(actix::fut::err(ActorError::NothingLoads { layer, seed })),
        }
    }
}
