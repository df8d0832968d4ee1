//! One seed: its state, its kernel, its blend factor. Loads kernels and puts them into its slot of the lane.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use actix::{
    Actor, ActorFutureExt as _, Context, Handler, Message, MessageResult, ResponseActFuture, WrapFuture as _,
};

use super::{ActorError, GetKernel, KernelCache, KernelLease, LaneLink, ReweighKernel, base::Handle};
use crate::{
    backend::{Backend, Memory, Region},
    engine::{Alpha, EngineConfig, EngineError, LiveSeed, PlanKey, SeedCounters, is_active, transition},
    id::{Generation, KernelId, LayerId, SeedIndex},
    tensor::{DType, Shape},
    wire::{ErrorReply, GraftReply, SeedReply, SeedState, SharedMemory, TensorEntry},
};

/// The batch that a graft is planned for, to learn early whether the kernel fits. Two, because batch
/// normalisation refuses to train on one.
const TRIAL_BATCH: usize = 2;

/// How many bytes the memory files of a session's seeds may take together.
#[derive(Debug)]
pub struct MemoryBudget {
    limit_bytes: u64,
    used_bytes: AtomicU64,
}

impl MemoryBudget {
    /// A budget of which nothing is taken.
    pub fn new(limit_bytes: u64) -> Self {
        Self { limit_bytes, used_bytes: AtomicU64::new(0) }
    }

    fn take(self: &Arc<Self>, bytes: u64) -> Result<Share, ActorError> {
        let share = Share { budget: self.clone(), bytes };
        let before = self.used_bytes.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) > self.limit_bytes {
            let limit = self.limit_bytes;
            return Err(ActorError::Quota { what: "bytes of parameters and buffers", limit });
        }
        Ok(share)
    }
}

/// Bytes taken from a budget, given back when dropped.
#[derive(Debug)]
struct Share {
    budget: Arc<MemoryBudget>,
    bytes: u64,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.used_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// What a seed is made with.
#[derive(Clone, Debug)]
pub struct SeedParts {
    /// Its layer.
    pub layer: LayerId,
    /// Its place there.
    pub seed: SeedIndex,
    /// Its session's lane.
    pub lane: LaneLink,
    /// Where its kernels come from.
    pub cache: Handle<KernelCache>,
    /// Where they run.
    pub backend: Arc<dyn Backend>,
    /// How they run.
    pub config: Arc<EngineConfig>,
    /// Where its passes are counted.
    pub counters: Arc<SeedCounters>,
    /// What its session's seeds may take.
    pub memory: Arc<MemoryBudget>,
}

/// A kernel in the seed.
#[derive(Debug)]
struct Occupant {
    id: KernelId,
    memory_bytes: u64,
}

/// A seed's memory file, with what it costs: as long as a slot or a ticket holds it, its bytes stay charged
/// to the session and the cache does not evict its kernel.
#[derive(Debug)]
struct SeedMemory {
    shared: Arc<SharedMemory>,
    _share: Share,
    _lease: KernelLease,
}

impl Memory for SeedMemory {
    fn region(&self) -> Region<'_> {
        self.shared.region()
    }
}

/// One slot of a layer.
#[derive(Debug)]
pub struct Seed {
    parts: SeedParts,
    state: SeedState,
    alpha: f32,
    occupant: Option<Occupant>,
    generation: Generation,
    /// Counts what was asked of the seed, so that a load that comes late can tell it is not wanted any more.
    epoch: u64,
    /// Why the kernel was unloaded.
    failure: Option<ErrorReply>,
}

impl Seed {
    /// A dormant seed.
    pub fn new(parts: SeedParts) -> Self {
        Self {
            parts,
            state: SeedState::Dormant,
            alpha: 0.0,
            occupant: None,
            generation: Generation(0),
            epoch: 0,
            failure: None,
        }
    }

    fn step(&mut self, to: SeedState) -> Result<(), ActorError> {
        let from = self.state;
        self.state = transition(from, to)?;
        let SeedParts { layer, seed, .. } = self.parts;
        tracing::info!(%layer, %seed, from = from.as_str(), to = to.as_str(), "seed changes state");
        Ok(())
    }

    fn reply(&self) -> SeedReply {
        SeedReply {
            state: self.state,
            alpha: self.alpha,
            kernel: self.occupant.as_ref().map(|occupant| occupant.id.clone()),
            generation: self.generation,
        }
    }

    /// Ends a load: back to where the seed was, if it still waits for this one.
    fn load_failed(&mut self, epoch: u64, error: &ActorError, graft: &GraftSeed) {
        let SeedParts { layer, seed, .. } = self.parts;
        tracing::warn!(%layer, %seed, kernel = %graft.kernel, %error, "graft failed");
        if self.epoch == epoch && self.state == SeedState::Loading {
            let back = self.step(SeedState::ErrorRecovery).and_then(|()| self.step(SeedState::Dormant));
            debug_assert!(back.is_ok(), "a seed that loads may fail, and one that failed may rest");
        }
    }
}

impl Actor for Seed {
    type Context = Context<Self>;
}

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
struct Prepared {
    live: Arc<LiveSeed>,
    memory: Arc<SharedMemory>,
}

impl SeedParts {
    async fn prepare(&self, graft: &GraftSeed, generation: Generation) -> Result<Prepared, ActorError> {
        let lease = self.cache.ask(GetKernel(graft.kernel.clone())).await??;
        let (kernel, backend, config) = ((**lease).clone(), self.backend.clone(), self.config.clone());
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
        // Planning has made the kernel heavier; a cache that cannot be asked learns of it at the next graft.
        let plan_us = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
        let _ = self.cache.ask(ReweighKernel { kernel: graft.kernel.clone(), plan_us }).await;
        Ok(Prepared { live, memory })
    }
}

impl Handler<GraftSeed> for Seed {
    type Result = ResponseActFuture<Self, Result<Grafted, ActorError>>;

    fn handle(&mut self, graft: GraftSeed, _: &mut Self::Context) -> Self::Result {
        let begun = Alpha::new(graft.alpha).map_err(ActorError::from).and_then(|alpha| {
            // A kernel that runs goes on running while the next one is made ready beside it.
            if self.state != SeedState::Loading && !is_active(self.state) {
                self.step(SeedState::Loading)?;
            }
            Ok(alpha)
        });
        let alpha = match begun {
            Ok(alpha) => alpha,
            Err(error) => return Box::pin(actix::fut::err(error)),
        };
        self.epoch += 1;
        let (epoch, generation) = (self.epoch, Generation(self.epoch));
        let (parts, asked) = (self.parts.clone(), graft.clone());
        let prepared = async move { parts.prepare(&asked, generation).await };
        Box::pin(prepared.into_actor(self).then(move |prepared, seed, _| {
            let wanted = prepared.and_then(|prepared| {
                let superseded = || ActorError::Superseded { kernel: graft.kernel.clone() };
                if seed.epoch == epoch { Ok(prepared) } else { Err(superseded()) }
            });
            let (parts, live) =
                (seed.parts.clone(), wanted.as_ref().ok().map(|prepared| prepared.live.clone()));
            let attached = async move {
                match live {
                    Some(live) => parts.lane.attach(parts.layer, parts.seed, live, alpha).await,
                    None => Ok(()),
                }
            };
            attached.into_actor(seed).map(move |attached, seed, _| {
                let result = wanted.and_then(|prepared| attached.map(|()| prepared));
                match result {
                    Ok(prepared) => seed.settle(&graft, generation, prepared),
                    Err(error) => {
                        seed.load_failed(epoch, &error, &graft);
                        Err(error)
                    }
                }
            })
        }))
    }
}

impl Seed {
    /// Takes note that a prepared kernel runs now.
    fn settle(
        &mut self,
        graft: &GraftSeed,
        generation: Generation,
        prepared: Prepared,
    ) -> Result<Grafted, ActorError> {
        if self.state == SeedState::Loading {
            self.step(SeedState::Holding)?;
        }
        let kernel = prepared.live.kernel().clone();
        let memory_bytes = kernel.memory_bytes() as u64;
        (self.generation, self.alpha, self.failure) = (generation, graft.alpha, None);
        self.occupant = Some(Occupant { id: graft.kernel.clone(), memory_bytes });
        let buffers_offset = kernel.buffers_offset() as u64;
        let entries = |weights: &[crate::engine::Weight],
                       layout: &crate::tensor::PackedLayout,
                       start: u64,
                       buffers: bool| {
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

/// Sets the seed's blend factor.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Result<SeedReply, ActorError>")]
pub struct SetSeedAlpha(
    /// In [0, 1].
    pub f32,
);

impl Handler<SetSeedAlpha> for Seed {
    type Result = ResponseActFuture<Self, Result<SeedReply, ActorError>>;

    fn handle(&mut self, SetSeedAlpha(value): SetSeedAlpha, _: &mut Self::Context) -> Self::Result {
        let SeedParts { layer, seed, .. } = self.parts;
        let alpha = match Alpha::new(value) {
            Ok(_) if self.occupant.is_none() => {
                return Box::pin(actix::fut::err(ActorError::NoKernel { layer, seed }));
            }
            Ok(alpha) => alpha,
            Err(error) => return Box::pin(actix::fut::err(error.into())),
        };
        let lane = self.parts.lane.clone();
        let set = async move { lane.set_alpha(layer, seed, alpha).await };
        Box::pin(set.into_actor(self).map(move |result, seed, _| {
            result?;
            seed.alpha = alpha.get();
            Ok(seed.reply())
        }))
    }
}

/// Takes the kernel out, or gives up loading one. A dormant seed stays as it is.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Result<SeedReply, ActorError>")]
pub struct PruneSeed;

impl Handler<PruneSeed> for Seed {
    type Result = ResponseActFuture<Self, Result<SeedReply, ActorError>>;

    fn handle(&mut self, _: PruneSeed, _: &mut Self::Context) -> Self::Result {
        self.epoch += 1;
        let SeedParts { layer, seed, ref lane, .. } = self.parts;
        let lane = lane.clone();
        let detached = async move { lane.detach(layer, seed).await };
        Box::pin(detached.into_actor(self).map(|result, seed, _| {
            result?;
            match seed.state {
                SeedState::Dormant => {}
                SeedState::ErrorRecovery => seed.step(SeedState::Dormant)?,
                _ => {
                    seed.step(SeedState::Pruned)?;
                    seed.step(SeedState::Dormant)?;
                }
            }
            (seed.occupant, seed.alpha, seed.failure) = (None, 0.0, None);
            Ok(seed.reply())
        }))
    }
}

/// Tells that the lane has taken the kernel out, because too many passes failed in a row.
#[derive(Clone, Debug, Message)]
#[rtype(result = "()")]
pub struct UnloadSeed {
    /// Which of its kernels.
    pub generation: Generation,
    /// Why the last pass failed.
    pub error: EngineError,
}

impl Handler<UnloadSeed> for Seed {
    type Result = ();

    fn handle(&mut self, message: UnloadSeed, _: &mut Self::Context) {
        if message.generation != self.generation || !is_active(self.state) {
            return;
        }
        let kernel = self.occupant.take().map(|occupant| occupant.id);
        self.alpha = 0.0;
        let mut failure = ErrorReply::from_fault(&message.error);
        failure.kernel = kernel.map(String::from);
        self.failure = Some(failure);
        if let Err(error) = self.step(SeedState::ErrorRecovery) {
            tracing::error!(%error, "a seed was unloaded in a state that has no kernel");
        }
    }
}

/// What a seed tells of itself.
#[derive(Clone, Debug)]
pub struct SeedDescription {
    /// State, alpha, kernel, generation.
    pub seed: SeedReply,
    /// Bytes of the seed's memory file.
    pub memory_bytes: u64,
    /// Why the kernel was unloaded, or why the last pass failed.
    pub last_error: Option<ErrorReply>,
}

/// Asks where the seed stands.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "SeedDescription")]
pub struct DescribeSeed;

impl Handler<DescribeSeed> for Seed {
    type Result = MessageResult<DescribeSeed>;

    fn handle(&mut self, _: DescribeSeed, _: &mut Self::Context) -> Self::Result {
        let SeedParts { layer, seed, ref counters, .. } = self.parts;
        let last_error = self.failure.clone().or_else(|| counters.last_error());
        MessageResult(SeedDescription {
            seed: self.reply(),
            memory_bytes: self.occupant.as_ref().map_or(0, |occupant| occupant.memory_bytes),
            last_error: last_error.map(|error| error.at(layer, seed)),
        })
    }
}
