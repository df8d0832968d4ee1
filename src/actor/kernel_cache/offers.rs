//! Kernels that trainers bring along themselves, such as the transforms of their layers.
//!
//! One is judged by the rules of every other, and it is in memory or nowhere: no tier below keeps it, no other node
//! hears of it, and no catalogue is asked for it. Its name says its whole digest, so that a session that has not the
//! bytes cannot graft it.

use std::sync::Arc;

use actix::Message;

use super::{
    KernelCacheParts, loads,
    parts::{Loaded, micros},
};
use crate::{
    actor::{ActorError, JudgeArtifact},
    digest::Digest,
    engine::Kernel,
    failpoint::{self, Failpoint},
    fault::{ErrorClass, Fault as _},
    id::KernelId,
    telemetry::Counter,
    validation::Metadata,
    wire::{Arena, Block, LoadReport, OffersReport},
};

/// Where such a kernel was found, for reports.
const PLACE: &str = "offer";

/// Has an artifact that a trainer has put into its arena judged, and its kernel kept in memory.
#[derive(Debug, Message)]
#[rtype(result = "Result<Digest, ActorError>")]
pub struct OfferKernel {
    /// The arena.
    pub arena: Arc<Arena>,
    /// Where in it; not checked yet.
    pub block: Block,
}

/// What offers have come to.
#[derive(Debug, Default)]
pub struct OfferCounts {
    taken_in: Counter,
    known: Counter,
    refused: Counter,
    failed: Counter,
}

impl OfferCounts {
    fn count(&self, result: &Result<(Digest, bool), ActorError>) {
        let counter = match result {
            Ok((_, true)) => &self.known,
            Ok((_, false)) => &self.taken_in,
            Err(error) if matches!(error.class(), ErrorClass::Invalid | ErrorClass::Corrupt) => &self.refused,
            Err(_) => &self.failed,
        };
        counter.increment();
    }

    pub(super) fn report(&self) -> OffersReport {
        OffersReport {
            taken_in: self.taken_in.get(),
            known: self.known.get(),
            refused: self.refused.get(),
            failed: self.failed.get(),
        }
    }
}

impl KernelCacheParts {
    /// Takes the artifact over; its digest, by which [`KernelId::offered`] names the kernel.
    pub(super) async fn offer(&self, offer: OfferKernel) -> Result<Digest, ActorError> {
        let result = self.consider(offer).await;
        self.offers.count(&result);
        result.map(|(digest, _)| digest)
    }

    /// The same, and whether it was in memory already.
    async fn consider(
        &self,
        OfferKernel { arena, block }: OfferKernel,
    ) -> Result<(Digest, bool), ActorError> {
        let limit = self.max_offer_bytes;
        if block.bytes > limit {
            return Err(ActorError::OfferTooLarge { bytes: block.bytes, limit });
        }
        arena.region(block)?;
        // Kept until the kernel is resident, as of every artifact on its way into memory.
        let _turn = self.fetching.reserve(block.bytes).await?;
        let copying = tokio::task::spawn_blocking(move || copied(&arena, block));
        let (bytes, digest) =
            copying.await.map_err(|_| ActorError::Lost { what: "copying the artifact" })??;
        failpoint::reached(Failpoint::OfferCopied);
        let id = KernelId::offered(&digest);
        // The trainers of one model offer the same, each of its ranks.
        let is_known = self.device.hold(&id).is_some();
        if !is_known {
            let (parts, offered) = (self.clone(), id.clone());
            let judged = self.flights.run(&id, move || async move { parts.take_in(offered, bytes).await });
            self.resident(&id, &judged.await?).await?;
        }
        Ok((digest, is_known))
    }

    async fn take_in(&self, id: KernelId, bytes: Arc<[u8]>) -> Result<Loaded, ActorError> {
        let start = self.clock.now();
        let mut load = loads::begun(id.clone(), self.clock.unix_ms());
        load.place = Some(PLACE.to_owned());
        let result = self.judge_offered(&id, bytes, &mut load).await;
        load.total_us = micros(self.clock.now() - start);
        load.error = result.as_ref().err().map(ToString::to_string);
        match &result {
            Ok(kernel) => {
                let bytes = kernel.resident_bytes();
                tracing::info!(kernel = %id, bytes, us = load.total_us, "offered kernel taken in");
            }
            Err(error) => tracing::warn!(kernel = %id, %error, "offered kernel refused"),
        }
        self.loads.note(load);
        result.map(|kernel| Loaded { kernel: Arc::new(kernel), search: None, is_old: false })
    }

    async fn judge_offered(
        &self,
        id: &KernelId,
        bytes: Arc<[u8]>,
        load: &mut LoadReport,
    ) -> Result<Kernel, ActorError> {
        let metadata = Metadata::bare(id.clone());
        let judge = JudgeArtifact { bytes, metadata: Some(metadata.clone()), earlier: None };
        let judged = self.validator.ask(judge).await??;
        (load.queue_us, load.validate_us) = (judged.queue_us, judged.judge_us);
        let outcome = judged.outcome;
        if let Some(rejection) = outcome.verdict.rejection(id) {
            return Err(rejection.into());
        }
        let module = outcome.module.ok_or(ActorError::Lost { what: "the validation" })?;
        Ok(Kernel::from_module(id.clone(), metadata, outcome.verdict, module)?)
    }
}

/// A copy that the trainer cannot write to any more, and its digest.
fn copied(arena: &Arena, block: Block) -> Result<(Arc<[u8]>, Digest), ActorError> {
    let region = arena.region(block)?;
    let mut bytes: Arc<[u8]> = std::iter::repeat_n(0, region.len_bytes()).collect();
    if !Arc::get_mut(&mut bytes).is_some_and(|bytes| region.read(bytes)) {
        return Err(ActorError::Lost { what: "copying the artifact" });
    }
    let digest = Digest::of(&bytes);
    Ok((bytes, digest))
}
