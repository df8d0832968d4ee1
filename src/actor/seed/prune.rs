//! Pruning: a kernel is taken out, and the seed may refuse it for a while.

use std::time::Duration;

use actix::{ActorFutureExt as _, Handler, Message, ResponseActFuture, WrapFuture as _};

use super::{Seed, SeedParts, recovery::Recovery};
use crate::{
    actor::ActorError,
    clock::whole_ms,
    id::KernelId,
    wire::{EventKind, SeedReply, SeedState},
};

/// Takes the kernel out, gives up loading one, and gives up bringing one back. A dormant seed stays as it is.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Result<SeedReply, ActorError>")]
pub struct PruneSeed {
    /// For how long the seed then refuses what was taken out; where nothing is said, as the configuration has it.
    pub embargo: Option<Duration>,
}

impl Handler<PruneSeed> for Seed {
    type Result = ResponseActFuture<Self, Result<SeedReply, ActorError>>;

    fn handle(&mut self, PruneSeed { embargo }: PruneSeed, _: &mut Self::Context) -> Self::Result {
        let embargo = embargo.unwrap_or(self.parts.config.embargo);
        let (loading, returning) = (self.load.as_ref(), self.recovery.as_ref());
        let all = [self.kernel(), loading.map(|(kernel, _)| kernel), returning.map(Recovery::kernel)];
        let mut pruned: Vec<KernelId> = Vec::new();
        for kernel in all.into_iter().flatten() {
            if !pruned.contains(kernel) {
                pruned.push(kernel.clone());
            }
        }
        self.epoch = self.number();
        (self.load, self.background, self.recovery) = (None, None, None);
        let SeedParts { layer, seed, ref lane, .. } = self.parts;
        let lane = lane.clone();
        self.takeovers += 1;
        let detached = async move { lane.detach(layer, seed).await };
        Box::pin(detached.into_actor(self).map(move |result, seed, _| {
            seed.takeovers -= 1;
            result?;
            seed.pruned(&pruned, embargo)?;
            Ok(seed.reply())
        }))
    }
}

impl Seed {
    /// Takes note that the slot is empty.
    fn pruned(&mut self, kernels: &[KernelId], embargo: Duration) -> Result<(), ActorError> {
        // The lane may have taken it out itself, just before.
        (self.way, self.recovery) = (None, None);
        let kernel = kernels.first().cloned();
        match self.state {
            SeedState::Dormant => {}
            SeedState::ErrorRecovery => {
                self.tell_of(kernel, EventKind::Pruned);
                self.step(SeedState::Dormant, "it was pruned")?;
            }
            _ => {
                self.step(SeedState::Pruned, "its trainer prunes it")?;
                self.tell_of(kernel, EventKind::Pruned);
                self.step(SeedState::Dormant, "it was pruned")?;
            }
        }
        (self.occupant, self.alpha, self.failure, self.frozen) = (None, 0.0, None, false);
        if !embargo.is_zero() {
            for kernel in kernels {
                self.embargoes.set(kernel, self.parts.clock.now(), embargo);
                self.tell_of(Some(kernel.clone()), EventKind::Embargoed { embargo_ms: whole_ms(embargo) });
            }
        }
        Ok(())
    }
}
