//! One seed: its state, its kernel, its blend factor. Loads kernels and puts them into its slot of the lane, and
//! moves along the life that `docs/lifecycle.md` describes.

mod ahead;
mod blend;
mod embargo;
mod export;
mod graft;
mod memory;
mod prune;
mod recovery;
mod tables;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Weak};

use actix::{Actor, ActorContext as _, Context, Handler, Message, MessageResult};

pub(super) use self::blend::SeedReached;
pub use self::{
    blend::{BlendSeed, FossilizeSeed, HoldSeed, SetSeedAlpha},
    export::ExportSeed,
    graft::{BeginGraft, FinishGraft, GraftSeed, Grafted},
    memory::SeedFile,
    prune::PruneSeed,
};
use self::{
    embargo::Embargoes,
    graft::Background,
    memory::KeptMemory,
    recovery::{Attempts, Recovery},
    tables::Tables,
};
use super::{ActorError, Kernels, LaneLink, Teller, base::StopActor};
use crate::{
    backend::Backend,
    clock::Clock,
    digest::Digest,
    engine::{EngineConfig, Kernel, SeedCounters, SessionLedger, transition},
    id::{Generation, KernelId, LayerId, SeedIndex, SessionId},
    wire::{ErrorReply, Event, EventKind, LoadingReport, RecoveryReport, SeedReply, SeedState},
};
pub use recovery::UnloadSeed;

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
    /// Whether the trainer's tensors lie there too.
    pub on_device: bool,
    /// How they run.
    pub config: Arc<EngineConfig>,
    /// Where its passes are counted.
    pub counters: Arc<SeedCounters>,
    /// What its session holds.
    pub ledger: Arc<SessionLedger>,
    /// Where what happens to it is told.
    pub teller: Teller,
    /// The time.
    pub clock: Arc<dyn Clock>,
}

/// A kernel in the seed.
#[derive(Debug)]
struct Occupant {
    /// How it was asked for.
    graft: GraftSeed,
    /// The kernel itself, as long as something runs it.
    kernel: Weak<Kernel>,
    /// SHA-256 of its artifact.
    digest: Digest,
    /// Its memory file, which outlives an unloading.
    memory: KeptMemory,
    /// What lies in it.
    tables: Tables,
    memory_bytes: u64,
}

/// A schedule that the lane follows.
#[derive(Clone, Copy, Debug)]
struct Way {
    number: u64,
    target: f32,
}

/// One slot of a layer.
#[derive(Debug)]
pub struct Seed {
    parts: SeedParts,
    state: SeedState,
    /// The blend factor where no schedule moves it.
    alpha: f32,
    way: Option<Way>,
    /// A schedule whose end was told before its beginning was answered.
    early: Option<u64>,
    frozen: bool,
    occupant: Option<Occupant>,
    generation: Generation,
    /// The last number that was given to anything of this seed: a load, a schedule, an attempt.
    last: u64,
    /// The number of what the trainer asked for last, so that a load that comes late can tell it is not wanted any
    /// more.
    epoch: u64,
    /// The kernel that is being made ready, with the epoch that asked for it.
    load: Option<(KernelId, u64)>,
    /// A graft that nobody waits for.
    background: Option<Background>,
    /// Why the kernel was unloaded.
    failure: Option<ErrorReply>,
    embargoes: Embargoes,
    recovery: Option<Recovery>,
    attempts: Attempts,
    /// Commands that give the slot in the lane to somebody else and are not answered yet. Until they are, nothing that
    /// comes back may be put there: it would come after what the trainer asked for.
    takeovers: u32,
    /// What ran before, which the lane may have taken out before it was replaced.
    before: Option<(Generation, KernelId)>,
}

impl Seed {
    /// A dormant seed.
    pub fn new(parts: SeedParts) -> Self {
        Self {
            parts,
            state: SeedState::Dormant,
            alpha: 0.0,
            way: None,
            early: None,
            frozen: false,
            occupant: None,
            generation: Generation(0),
            last: 0,
            epoch: 0,
            load: None,
            background: None,
            failure: None,
            embargoes: Embargoes::default(),
            recovery: None,
            attempts: Attempts::default(),
            takeovers: 0,
            before: None,
        }
    }

    /// A number that nothing of this seed has had.
    fn number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    fn step(&mut self, to: SeedState, reason: &str) -> Result<(), ActorError> {
        let from = self.state;
        self.state = transition(from, to)?;
        let SeedParts { layer, seed, .. } = self.parts;
        tracing::info!(%layer, %seed, from = from.as_str(), to = to.as_str(), reason, "seed changes state");
        self.tell(EventKind::StateChanged { from, to, reason: reason.to_owned() });
        Ok(())
    }

    /// Tells of something that happened to the seed as it is now.
    fn tell(&self, kind: EventKind) {
        let kernel = self.kernel().or_else(|| self.coming());
        self.tell_of(kernel.cloned(), kind);
    }

    fn tell_of(&self, kernel: Option<KernelId>, kind: EventKind) {
        self.parts.teller.tell(Event {
            seed: Some(self.parts.seed),
            kernel,
            generation: Some(self.generation),
            alpha: Some(self.reply().alpha),
            ..kind.into()
        });
    }

    /// The kernel that is there.
    fn kernel(&self) -> Option<&KernelId> {
        self.occupant.as_ref().map(|occupant| &occupant.graft.kernel)
    }

    /// The kernel that is on its way in, or on its way back.
    fn coming(&self) -> Option<&KernelId> {
        let loading = self.load.as_ref().map(|(kernel, _)| kernel);
        loading.or_else(|| self.recovery.as_ref().map(Recovery::kernel))
    }

    fn loading(&self) -> Option<LoadingReport> {
        let (kernel, epoch) = self.load.clone()?;
        let ready = matches!(self.background, Some(Background::Ready(_)));
        let stage = if ready { "ready" } else { "loading" };
        Some(LoadingReport { kernel, generation: Generation(epoch), stage: stage.to_owned() })
    }

    fn reply(&self) -> SeedReply {
        let moving = self.way.filter(|_| self.state == SeedState::Blending);
        let (alpha, steps_left) =
            if moving.is_some() { self.parts.counters.alpha() } else { (self.alpha, 0) };
        SeedReply {
            state: self.state,
            alpha,
            kernel: self.kernel().cloned(),
            generation: self.generation,
            target: moving.map(|way| way.target),
            steps_left,
            frozen: self.frozen,
        }
    }
}

impl Actor for Seed {
    type Context = Context<Self>;
}

impl Handler<StopActor> for Seed {
    type Result = ();

    /// Its layer is gone: whatever it waits for, it is not wanted any more.
    fn handle(&mut self, _: StopActor, context: &mut Self::Context) {
        context.stop();
    }
}

/// What a seed tells of itself.
#[derive(Clone, Debug)]
pub struct SeedDescription {
    /// State, alpha, kernel, generation.
    pub seed: SeedReply,
    /// The kernel that is on its way into it.
    pub loading: Option<LoadingReport>,
    /// How it comes back after its kernel was unloaded.
    pub recovery: Option<RecoveryReport>,
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
            recovery: self.recovery_report(),
            memory_bytes: self.occupant.as_ref().map_or(0, |occupant| occupant.memory_bytes),
            last_error: last_error.map(|error| error.at(layer, seed)),
        })
    }
}
