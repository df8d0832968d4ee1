//! A seed's blend factor: set, sent on its way, held, fixed.

use actix::{ActorFutureExt as _, Handler, Message, ResponseActFuture, WrapFuture as _};

use super::{Recovery, Seed, SeedParts, Way};
use crate::{
    actor::ActorError,
    engine::{Alpha, EngineError, transition},
    failpoint::{self, Failpoint},
    id::Generation,
    wire::{EventKind, ScheduleSpec, SeedReply, SeedState},
};

type Moved = ResponseActFuture<Seed, Result<SeedReply, ActorError>>;

fn refused(error: impl Into<ActorError>) -> Moved {
    Box::pin(actix::fut::err(error.into()))
}

impl Seed {
    fn no_kernel(&self) -> ActorError {
        let SeedParts { layer, seed, .. } = self.parts;
        ActorError::NoKernel { layer, seed }
    }

    /// The blend factor stays where it is from now on.
    fn stays(&mut self, alpha: Alpha, reason: &str) -> Result<SeedReply, ActorError> {
        (self.alpha, self.way) = (alpha.get(), None);
        if self.state == SeedState::Blending {
            self.step(SeedState::Holding, reason)?;
        }
        Ok(self.reply())
    }

    /// The schedule of a blend factor has ended; so has its blending.
    fn reached(&mut self, alpha: Alpha) -> Result<(), ActorError> {
        (self.alpha, self.way) = (alpha.get(), None);
        self.tell(EventKind::AlphaReached);
        self.step(SeedState::Holding, "its blend factor has reached its target")
    }

    /// Takes note of an end that was told before the beginning was answered.
    pub(super) fn settle_early(&mut self) -> Result<(), ActorError> {
        let early = self.early.take();
        match self.way {
            Some(way) if early == Some(way.number) && self.state == SeedState::Blending => {
                self.reached(Alpha::new(way.target)?)
            }
            _ => Ok(()),
        }
    }
}

/// Sets the seed's blend factor, and ends the schedule that it follows. Of a seed whose kernel is on its way back, it
/// is what that comes back with.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Result<SeedReply, ActorError>")]
pub struct SetSeedAlpha(
    /// In [0, 1].
    pub f32,
);

impl Handler<SetSeedAlpha> for Seed {
    type Result = Moved;

    fn handle(&mut self, SetSeedAlpha(value): SetSeedAlpha, _: &mut Self::Context) -> Self::Result {
        let SeedParts { layer, seed, .. } = self.parts;
        let alpha = match Alpha::new(value) {
            Ok(alpha) => alpha,
            Err(error) => return refused(error),
        };
        let is_fossil = self.recovery.as_ref().is_some_and(Recovery::is_fossil);
        if is_fossil || self.state == SeedState::Fossilized {
            let (from, to) = (SeedState::Fossilized, SeedState::Holding);
            return refused(EngineError::Transition { from, to });
        }
        if let Some(recovery) = &mut self.recovery {
            recovery.come_back_with(alpha);
            // What it was to come back with may be on its way to the lane already; this goes after it.
            if !recovery.is_attaching() {
                return Box::pin(actix::fut::ok(self.reply()));
            }
        } else if self.occupant.is_none() {
            return refused(self.no_kernel());
        }
        let lane = self.parts.lane.clone();
        let set = async move { lane.set_alpha(layer, seed, alpha).await };
        Box::pin(set.into_actor(self).map(move |result, seed, _| {
            result?;
            // Unloaded meanwhile, it comes back as it was when it was unloaded: then with this.
            if let Some(recovery) = &mut seed.recovery {
                recovery.come_back_with(alpha);
                return Ok(seed.reply());
            }
            seed.stays(alpha, "its blend factor was set")
        }))
    }
}

/// Has the blend factor go by a schedule. A seed in training goes into the blend.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Result<SeedReply, ActorError>")]
pub struct BlendSeed {
    /// How it goes.
    pub schedule: ScheduleSpec,
    /// Where it starts; where nothing is said, where it is, and at 0 for a seed in training.
    pub alpha: Option<f32>,
}

impl Handler<BlendSeed> for Seed {
    type Result = Moved;

    fn handle(&mut self, BlendSeed { schedule, alpha }: BlendSeed, _: &mut Self::Context) -> Self::Result {
        let SeedParts { layer, seed, .. } = self.parts;
        if self.state != SeedState::Blending
            && let Err(error) = transition(self.state, SeedState::Blending)
        {
            return refused(error);
        }
        if self.occupant.is_none() {
            return refused(self.no_kernel());
        }
        let in_training = (self.state == SeedState::Training).then_some(Alpha::ZERO);
        let from = match alpha.map(Alpha::new).transpose() {
            Ok(from) => from.or(in_training),
            Err(error) => return refused(error),
        };
        let (parts, number) = (self.parts.clone(), self.number());
        let begun = async move {
            if in_training.is_some() {
                parts.plan_for_blending().await?;
            }
            parts.lane.blend(layer, seed, schedule, number, from).await
        };
        Box::pin(begun.into_actor(self).map(move |begun, seed, _| {
            seed.alpha = begun?.get();
            seed.way = Some(Way { number, target: schedule.target });
            if seed.state != SeedState::Blending {
                seed.step(SeedState::Blending, "its trainer blends it")?;
            }
            seed.settle_early()?;
            Ok(seed.reply())
        }))
    }
}

/// Leaves the blend factor where its schedule has brought it. A seed that holds already stays as it is: schedules end
/// by themselves, and nobody can know when.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Result<SeedReply, ActorError>")]
pub struct HoldSeed;

impl Handler<HoldSeed> for Seed {
    type Result = Moved;

    fn handle(&mut self, _: HoldSeed, _: &mut Self::Context) -> Self::Result {
        let SeedParts { layer, seed, ref lane, .. } = self.parts;
        match self.state {
            SeedState::Holding => return Box::pin(actix::fut::ok(self.reply())),
            SeedState::Blending => {}
            from => return refused(EngineError::Transition { from, to: SeedState::Holding }),
        }
        let lane = lane.clone();
        let held = async move { lane.hold(layer, seed).await };
        Box::pin(held.into_actor(self).map(|held, seed, _| seed.stays(held?, "its trainer holds it")))
    }
}

/// Makes the kernel part of its layer: its blend factor is 1 from now on, and nothing but a prune changes that.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Result<SeedReply, ActorError>")]
pub struct FossilizeSeed {
    /// Whether its trainer trains its parameters no more.
    pub freeze: bool,
}

impl Handler<FossilizeSeed> for Seed {
    type Result = Moved;

    fn handle(&mut self, FossilizeSeed { freeze }: FossilizeSeed, _: &mut Self::Context) -> Self::Result {
        let SeedParts { layer, seed, ref lane, .. } = self.parts;
        if let Err(error) = transition(self.state, SeedState::Fossilized) {
            return refused(error);
        }
        let whole = match Alpha::new(1.0) {
            Ok(whole) => whole,
            Err(error) => return refused(error),
        };
        let lane = lane.clone();
        let fixed = async move { lane.set_alpha(layer, seed, whole).await };
        Box::pin(fixed.into_actor(self).map(move |fixed, seed, _| {
            fixed?;
            failpoint::reached(Failpoint::Fossilized);
            // Where it was unloaded meanwhile, this fails and names both states.
            seed.step(SeedState::Fossilized, "its trainer fossilizes it")?;
            (seed.alpha, seed.frozen) = (whole.get(), freeze);
            seed.tell(EventKind::Fossilized { frozen: freeze });
            Ok(seed.reply())
        }))
    }
}

/// Tells that the blend factor has reached the target of a schedule.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct SeedReached {
    /// The number of the schedule.
    pub number: u64,
    /// Where it has ended.
    pub alpha: Alpha,
    /// Of which of its kernels.
    pub generation: Generation,
}

impl Handler<SeedReached> for Seed {
    type Result = ();

    fn handle(&mut self, message: SeedReached, _: &mut Self::Context) {
        let SeedReached { number, alpha, generation } = message;
        match self.way {
            Some(way) if way.number == number && generation == self.generation => {
                if self.state == SeedState::Blending
                    && let Err(error) = self.reached(alpha)
                {
                    tracing::error!(%error, "a seed that blended cannot hold");
                }
            }
            // Numbers rise: one that is higher is of a schedule whose beginning is about to be answered.
            way if way.is_none_or(|way| way.number < number) => self.early = Some(number),
            _ => {}
        }
    }
}
