//! One seed: its state, its kernel, its blend factor. Loads kernels and puts them into its slot of the lane.

mod graft;
mod memory;

use std::sync::Arc;

use actix::{
    Actor, ActorFutureExt as _, Context, Handler, Message, MessageResult, ResponseActFuture, WrapFuture as _,
};

use self::graft::Background;
pub use self::graft::{BeginGraft, FinishGraft, GraftSeed, Grafted};
pub(super) use self::memory::MemoryBudget;
use super::{ActorError, Kernels, LaneLink};
use crate::{
    backend::Backend,
    engine::{Alpha, EngineConfig, EngineError, SeedCounters, is_active, transition},
    id::{Generation, KernelId, LayerId, SeedIndex, SessionId},
    wire::{ErrorReply, LoadingReport, SeedReply, SeedState},
};

/// What a seed is made with.
#[derive(Clone, Debug)]
pub struct SeedParts {
    /// Its session.
    pub session: SessionId,
    /// Its layer.
    pub layer: LayerId,
    /// Its place there.
    pub seed: SeedIndex,
    /// Its session's lane.
    pub lane: LaneLink,
    /// Where its kernels come from.
    pub kernels: Kernels,
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
    /// The kernel that is being made ready, with the epoch that asked for it.
    load: Option<(KernelId, u64)>,
    /// A graft that nobody waits for.
    background: Option<Background>,
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
            load: None,
            background: None,
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

    fn loading(&self) -> Option<LoadingReport> {
        let (kernel, epoch) = self.load.clone()?;
        let ready = matches!(self.background, Some(Background::Ready(_)));
        let stage = if ready { "ready" } else { "loading" };
        Some(LoadingReport { kernel, generation: Generation(epoch), stage: stage.to_owned() })
    }

    fn reply(&self) -> SeedReply {
        SeedReply {
            state: self.state,
            alpha: self.alpha,
            kernel: self.occupant.as_ref().map(|occupant| occupant.id.clone()),
            generation: self.generation,
        }
    }
}

impl Actor for Seed {
    type Context = Context<Self>;
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
        (self.load, self.background) = (None, None);
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
    /// The kernel that is on its way into it.
    pub loading: Option<LoadingReport>,
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
            loading: self.loading(),
            memory_bytes: self.occupant.as_ref().map_or(0, |occupant| occupant.memory_bytes),
            last_error: last_error.map(|error| error.at(layer, seed)),
        })
    }
}
