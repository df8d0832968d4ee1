//! Handing a seed's artifact to the trainer.

use actix::{ActorFutureExt as _, WrapFuture as _};

use super::{
    Session,
    requests::{Answer, Served, refusal},
};
use crate::{
    actor::{ActorError, ExportSeed},
    wire::{Block, Export},
};

impl Session {
    /// Has a seed write its artifact into the session's arena.
    pub(super) fn export(&mut self, export: Export) -> Result<Served, ActorError> {
        let Export { layer, seed, offset, bytes } = export;
        let arena = self.arena.clone().ok_or(ActorError::Greeting { verb: "export" })?;
        let actor = self.layers.slot(layer, seed)?.actor.clone();
        let actor = actor.ok_or(ActorError::NoKernel { layer, seed })?;
        let exported = async move { actor.send(ExportSeed { arena, block: Block { offset, bytes } }).await };
        Ok(Box::pin(exported.into_actor(self).map(move |result, _, _| {
            let result = result.unwrap_or(Err(ActorError::Lost { what: "exporting the seed" }));
            Answer::plain(result.map_err(|error| refusal(&error).at(layer, seed)))
        })))
    }
}
