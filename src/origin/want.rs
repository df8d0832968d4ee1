//! What a blob store is asked for, and the errors it answers with.

use std::time::Duration;

use super::{OriginError, web::Asker};
use crate::{
    cache::{FETCH_PATIENCE, FetchBudget, Reservation},
    fault::shortened,
    id::KernelId,
};

/// One blob as it is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Want<'a> {
    pub(super) origin: &'a str,
    pub(super) id: &'a KernelId,
    pub(super) reference: &'a str,
    pub(super) limit_bytes: u64,
    /// How long no byte may come.
    pub(super) stall: Duration,
    /// What the bytes take their share of, where that is bounded, and how long they may wait for it.
    pub(super) budget: Option<(&'a FetchBudget, Duration)>,
}

/// How long bytes may wait for their share within a call that may take `total`: a call that runs out of time would
/// count as the service's failure.
pub(super) fn patience(total: Duration) -> Duration {
    FETCH_PATIENCE.min(total / 2)
}

impl<'a> Want<'a> {
    pub(super) fn refused(&self, reason: impl Into<String>) -> OriginError {
        OriginError::Reference {
            id: self.id.clone(),
            reference: self.reference.into(),
            reason: shortened(&reason.into()),
        }
    }

    /// What a store says that has no such blob; `here_only` where another machine may have it.
    pub(super) fn absent(&self, reason: &'static str, here_only: bool) -> OriginError {
        OriginError::NoBlob { id: self.id.clone(), reference: self.reference.into(), reason, here_only }
    }

    pub(super) fn too_large(&self) -> OriginError {
        let (what, limit_bytes) = ("the artifact", self.limit_bytes);
        OriginError::TooLarge { id: self.id.clone(), what, limit_bytes }
    }

    pub(super) fn failed(&self, reason: impl Into<String>) -> OriginError {
        OriginError::Unavailable {
            origin: self.origin.to_owned(),
            place: self.reference.into(),
            reason: shortened(&reason.into()),
        }
    }

    pub(super) fn asker(&self, advice: &'static str) -> Asker<'a> {
        Asker { origin: self.origin, id: self.id, advice }
    }

    /// Room for so many bytes, to be had before there is memory for them.
    pub(super) async fn reserve(&self, bytes: u64) -> Result<Option<Reservation>, OriginError> {
        let Some((budget, patience)) = self.budget else { return Ok(None) };
        let reserved = budget.reserve_within(bytes, patience).await;
        reserved.map(Some).map_err(|source| OriginError::Budget { id: self.id.clone(), source })
    }

    /// Waits for the next bytes, no longer than the stall limit.
    pub(super) async fn in_time<T>(&self, next: impl Future<Output = T>) -> Result<T, OriginError> {
        let stalled = || self.failed(format!("no byte came for {} ms", self.stall.as_millis()));
        tokio::time::timeout(self.stall, next).await.map_err(|_| stalled())
    }
}
