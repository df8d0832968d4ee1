//! A trainer's requests that move a seed along its life.

use std::time::Duration;

use actix::{Context, Handler, Message, dev::ToEnvelope};

use super::{
    Session,
    layers::dormant,
    requests::{Served, answered},
};
use crate::{
    actor::{ActorError, BlendSeed, FossilizeSeed, HoldSeed, PruneSeed, Seed},
    engine::EngineError,
    id::{LayerId, SeedIndex},
    wire::{ErrorReply, Fossilize, Prune, SeedRef, SeedReply, SeedState, StartBlend},
};

impl Session {
    pub(super) fn blend(&mut self, blend: StartBlend) -> Result<Served, ActorError> {
        let StartBlend { layer, seed, schedule, alpha } = blend;
        self.move_seed(layer, seed, SeedState::Blending, BlendSeed { schedule, alpha })
    }

    pub(super) fn hold(&mut self, SeedRef { layer, seed }: SeedRef) -> Result<Served, ActorError> {
        self.move_seed(layer, seed, SeedState::Holding, HoldSeed)
    }

    pub(super) fn fossilize(&mut self, fossilize: Fossilize) -> Result<Served, ActorError> {
        let Fossilize { layer, seed, freeze } = fossilize;
        self.move_seed(layer, seed, SeedState::Fossilized, FossilizeSeed { freeze })
    }

    pub(super) fn prune(&mut self, prune: Prune) -> Result<Served, ActorError> {
        let Prune { layer, seed, embargo_ms } = prune;
        let embargo = embargo_ms.map(Duration::from_millis);
        match self.layers.slot(layer, seed)?.actor {
            Some(_) => self.ask_seed(layer, seed, PruneSeed { embargo }),
            None => Ok(answered(Ok(dormant()))),
        }
    }

    /// Asks a seed to go to another state. One that never had a kernel has no actor that could refuse it.
    fn move_seed<M>(
        &mut self,
        layer: LayerId,
        seed: SeedIndex,
        to: SeedState,
        message: M,
    ) -> Result<Served, ActorError>
    where
        Seed: Handler<M>,
        M: Message<Result = Result<SeedReply, ActorError>> + Send + 'static,
        Context<Seed>: ToEnvelope<Seed, M>,
    {
        if self.layers.slot(layer, seed)?.actor.is_some() {
            return self.ask_seed(layer, seed, message);
        }
        let refused = EngineError::Transition { from: SeedState::Dormant, to };
        Ok(answered(Err::<SeedReply, _>(ErrorReply::from_fault(&refused).at(layer, seed))))
    }
}
