//! Artifacts that the trainer has offered, and how many of them may lie idle.

use std::collections::VecDeque;

use actix::{ActorFutureExt as _, WrapFuture as _};
use tokio::sync::oneshot;

use super::{
    Session,
    requests::{Answer, Served, refusal},
};
use crate::{
    actor::{ActorError, OfferKernel},
    failpoint::{self, Failpoint},
    id::KernelId,
    wire::{Block, Offer, OfferReply},
};

/// How many kernels that a session has offered may be in memory without being used. What is used has been grafted, and
/// is bounded as grafts are.
const MAX_IDLE: usize = 64;

/// A session's latest offers, the earliest first.
#[derive(Debug, Default)]
pub(super) struct Offers(VecDeque<KernelId>);

impl Offers {
    /// Notes an offer; the one that has to go for it.
    fn enter(&mut self, id: KernelId) -> Option<KernelId> {
        self.0.retain(|other| *other != id);
        self.0.push_back(id);
        if self.0.len() > MAX_IDLE { self.0.pop_front() } else { None }
    }
}

impl Session {
    /// Has an artifact judged and kept. Its kernel may be put out before it is grafted; then the graft says so.
    pub(super) fn offer(&mut self, offer: Offer) -> Result<Served, ActorError> {
        let arena = self.arena.clone().ok_or(ActorError::Greeting { verb: "offer" })?;
        let Offer { offset, bytes } = offer;
        let (kernels, id) = (self.parts.kernels.clone(), self.parts.id);
        let (told, offered) = oneshot::channel();
        let (noted, is_noted) = oneshot::channel::<()>();
        // On its own, because it comes to an end where the session does so first; nobody then knows of the kernel.
        actix::spawn(async move {
            let offer = OfferKernel { arena, block: Block { offset, bytes } };
            let result = kernels.cache().ask(offer).await.map_err(ActorError::from).and_then(|digest| digest);
            let kept = result.as_ref().ok().map(KernelId::offered);
            // A session that is gone is told nothing.
            let _ = told.send(result);
            if let Some(kernel) = kept
                && is_noted.await.is_err()
            {
                kernels.withdraw_late(&kernel, id).await;
            }
        });
        Ok(Box::pin(offered.into_actor(self).map(|result, session, _| {
            let result = result.unwrap_or(Err(ActorError::Lost { what: "the offer" }));
            let reply = result.map(|digest| {
                failpoint::reached(Failpoint::OfferKept);
                let kernel = KernelId::offered(&digest);
                if let Some(earliest) = session.offers.enter(kernel.clone()) {
                    session.parts.kernels.withdraw(&earliest, session.parts.id);
                }
                // Withdrawn with the session from now on.
                let _ = noted.send(());
                OfferReply { kernel, digest }
            });
            Answer::plain(reply.map_err(|error| refusal(&error)))
        })))
    }

    /// Has what nobody uses leave memory: with the session nobody is left who knows its names.
    pub(super) fn withdraw_offers(&mut self) {
        let (offers, kernels, session) =
            (std::mem::take(&mut self.offers).0, self.parts.kernels.clone(), self.parts.id);
        actix::spawn(async move {
            for id in offers {
                kernels.withdraw_late(&id, session).await;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    #[test]
    fn the_earliest_goes_for_one_too_many() {
        let id = |n: usize| KernelId::offered(&Digest::of(&n.to_le_bytes()));
        let mut offers = Offers::default();
        for n in 0..MAX_IDLE {
            assert_eq!(offers.enter(id(n)), None);
        }
        assert_eq!(offers.enter(id(0)), None, "it was offered again, and is the latest");
        assert_eq!(offers.enter(id(MAX_IDLE)), Some(id(1)));
        assert_eq!(offers.enter(id(MAX_IDLE + 1)), Some(id(2)));
        assert_eq!(offers.0.len(), MAX_IDLE);
    }
}
