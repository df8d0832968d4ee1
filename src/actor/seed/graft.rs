//! Grafting: a kernel is fetched, planned and given its memory beside whatever runs, then put into the lane.

use std::sync::Arc;

use actix::{ActorFutureExt as _, AsyncContext as _, Handler, Message, ResponseActFuture, WrapFuture as _};

use super::{Occupant, Seed, SeedParts, memory::SeedMemory};
use crate::{
    actor::{ActorError, Holder, ReweighKernel},
    engine::{Alpha, LiveSeed, PlanKey, Weight, is_active, transition},
    id::{Generation, KernelId},
    tensor::{DType, PackedLayout, Shape},
    wire::{GraftReply, GraftRole, SeedState, SharedMemory, TensorEntry},
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
}

/// A kernel that is live now, and the memory its parameters are in.
#[derive(Debug)]
pub struct Grafted {
    /// What the trainer is told.
    pub reply: GraftReply,
    /// The memory file that goes with it.
    pub memory: Arc<SharedMemory>,
}

/// A kernel made ready beside whatever runs: memory, and proof that it fits.
#[derive(Debug)]
pub(super) struct Prepared {
    live: Arc<LiveSeed>,
    memory: Arc<SharedMemory>,
}

impl SeedParts {
    async fn prepare(&self, graft: &GraftSeed, generation: Generation) -> Result<Prepared, ActorError> {
        let SeedParts { session, layer, seed, .. } = *self;
        let lease = self.kernels.get(&graft.kernel, Holder { session, layer, seed, generation }).await?;
        let (kernel, backend, config) = (Arc::clone(&*lease), self.backend.clone(), self.config.clone());
        let dims = [TRIAL_BATCH].into_iter().chain(graft.input_shape.iter().copied());
        let key = PlanKey {
            input_shape: dims.collect(),
            dtype: graft.dtype,
            train: true,
            wants_input: true,
            wants_parameters: true,
        };
        let share = self.memory.take(kernel.memory_bytes() as u64)?;
        let start = std::time::Instant::now();
        let planned = tokio::task::spawn_blocking(move || {
            kernel.plans(&key, backend.as_ref(), &config)?;
            let memory = Arc::new(SharedMemory::create("kasmina-seed", kernel.memory_bytes())?);
            if !kernel.initialise(memory.region()) {
                return Err(ActorError::Lost { what: "writing the kernel's weights" });
            }
            let held = SeedMemory { shared: memory.clone(), _share: share, _lease: lease };
            let live = Arc::new(LiveSeed::new(kernel, Arc::new(held), generation)?);
            Ok((live, memory))
        });
        let (live, memory) =
            planned.await.map_err(|_| ActorError::Lost { what: "planning the kernel" })??;
        // Planning has made the kernel heavier; a cache that cannot be asked learns of it when it next looks for room.
        let plan_us = Some(u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX));
        let _ = self.kernels.cache().order(ReweighKernel { kernel: graft.kernel.clone(), plan_us }).await;
        Ok(Prepared { live, memory })
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
    /// Begins a load; by its number it is told later whether it is still wanted.
    fn begin(&mut self, graft: &GraftSeed) -> Result<u64, ActorError> {
        Alpha::new(graft.alpha)?;
        // A kernel that runs goes on running while the next one is made ready beside it.
        if self.state != SeedState::Loading && !is_active(self.state) {
            self.step(SeedState::Loading)?;
        }
        // One that is blended does not go back to training by a swap.
        if is_active(self.state) && graft.role == GraftRole::Train && self.state != SeedState::Training {
            transition(self.state, SeedState::Training)?;
        }
        self.epoch += 1;
        (self.load, self.background) = (Some((graft.kernel.clone(), self.epoch)), None);
        Ok(self.epoch)
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
        let (parts, live, alpha) = (self.parts.clone(), prepared.live.clone(), graft.alpha);
        let role = graft.role.into();
        let attached =
            async move { parts.lane.attach(parts.layer, parts.seed, live, Alpha::new(alpha)?, role).await };
        Box::pin(attached.into_actor(self).map(move |attached, seed, _| {
            let settled = attached.and_then(|()| seed.settle(&graft, Generation(epoch), prepared));
            settled.inspect_err(|error| seed.load_failed(epoch, error, &graft))
        }))
    }

    /// Ends a load: back to where the seed was, if it still waits for this one.
    fn load_failed(&mut self, epoch: u64, error: &ActorError, graft: &GraftSeed) {
        let SeedParts { layer, seed, .. } = self.parts;
        tracing::warn!(%layer, %seed, kernel = %graft.kernel, %error, "graft failed");
        if self.epoch == epoch {
            self.load = None;
        }
        if self.epoch == epoch && self.state == SeedState::Loading {
            let back = self.step(SeedState::ErrorRecovery).and_then(|()| self.step(SeedState::Dormant));
            debug_assert!(back.is_ok(), "a seed that loads may fail, and one that failed may rest");
        }
    }

    /// Takes note that a prepared kernel runs now.
    fn settle(
        &mut self,
        graft: &GraftSeed,
        generation: Generation,
        prepared: Prepared,
    ) -> Result<Grafted, ActorError> {
        if matches!(
            (self.state, graft.role),
            (SeedState::Loading, _) | (SeedState::Training, GraftRole::Blend)
        ) {
            self.step(match graft.role {
                GraftRole::Blend => SeedState::Holding,
                GraftRole::Train => SeedState::Training,
            })?;
        }
        self.load = self.load.take().filter(|(_, epoch)| Generation(*epoch) != generation);
        let kernel = prepared.live.kernel().clone();
        let memory_bytes = kernel.memory_bytes() as u64;
        (self.generation, self.alpha, self.failure) = (generation, graft.alpha, None);
        self.occupant = Some(Occupant { id: graft.kernel.clone(), memory_bytes });
        let buffers_offset = kernel.buffers_offset() as u64;
        let entries = |weights: &[Weight], layout: &PackedLayout, start: u64, buffers: bool| {
            let with_slots = weights.iter().zip(layout.slots());
            with_slots
                .map(|(weight, slot)| TensorEntry {
                    name: weight.name.clone(),
                    dtype: slot.dtype,
                    shape: slot.shape.clone(),
                    offset: start + slot.offset_bytes as u64,
                    requires_grad: weight.requires_grad && !buffers,
                })
                .collect::<Vec<_>>()
        };
        let reply = GraftReply {
            layer: self.parts.layer,
            seed: self.parts.seed,
            kernel: graft.kernel.clone(),
            generation,
            state: self.state,
            alpha: self.alpha,
            memory_bytes,
            buffers_offset,
            gradient_bytes: kernel.parameter_layout().total_bytes() as u64,
            parameters: entries(kernel.parameters(), kernel.parameter_layout(), 0, false),
            buffers: entries(kernel.buffers(), kernel.buffer_layout(), buffers_offset, true),
        };
        Ok(Grafted { reply, memory: prepared.memory })
    }
}

impl Handler<GraftSeed> for Seed {
    type Result = Grafting;

    fn handle(&mut self, graft: GraftSeed, _: &mut Self::Context) -> Self::Result {
        let epoch = match self.begin(&graft) {
            Ok(epoch) => epoch,
            Err(error) => return Box::pin(actix::fut::err(error)),
        };
        let (parts, asked) = (self.parts.clone(), graft.clone());
        let prepared = async move { parts.prepare(&asked, Generation(epoch)).await };
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
        let epoch = self.begin(&graft)?;
        self.background = Some(Background::Loading);
        let (parts, asked) = (self.parts.clone(), graft.clone());
        let prepared = async move { parts.prepare(&asked, Generation(epoch)).await };
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
