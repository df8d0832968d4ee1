//! One dependency as an origin asks it: in time, again after a failure, and not at all while it is down.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;

use super::{GuardPolicy, OriginError};
use crate::{
    backoff::Jitter,
    clock::Clock,
    guard::{Breaker, BreakerOpen, BreakerStatus, Permit, Retry},
};

/// A dependency with its circuit breaker and its retries.
///
/// Retries stand within the breaker: a call counts once, by how it ended.
#[derive(Debug)]
pub(super) struct Service {
    breaker: Breaker,
    retry: Retry,
    /// The setting that bounds a call, for messages.
    limited_by: &'static str,
}

impl Service {
    pub(super) fn new(name: &str, policy: &GuardPolicy, clock: Arc<dyn Clock>) -> Self {
        Self::with_jitter(name, policy, Jitter::from_process(), clock)
    }

    pub(super) fn with_jitter(
        name: &str,
        policy: &GuardPolicy,
        jitter: Jitter,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let (breaker, retry) = (Breaker::new(name, policy.breaker, clock), Retry::new(policy.retry, jitter));
        Self { breaker, retry, limited_by: "origin.timeout" }
    }

    /// The same for blobs, whose time has a setting of its own.
    pub(super) fn of_blobs(name: &str, policy: &GuardPolicy, clock: Arc<dyn Clock>) -> Self {
        Self { limited_by: "origin.blob.timeout", ..Self::new(name, policy, clock) }
    }

    pub(super) fn name(&self) -> &str {
        self.breaker.dependency()
    }

    pub(super) fn status(&self) -> BreakerStatus {
        self.breaker.status()
    }

    pub(super) fn retry(&self) -> &Retry {
        &self.retry
    }

    pub(super) fn admit(&self) -> Result<Permit<'_>, BreakerOpen> {
        self.breaker.admit()
    }

    /// One call, of as many attempts as the policy allows, within `limit` altogether.
    pub(super) async fn call<'a, T>(
        &'a self,
        limit: Duration,
        attempt: impl FnMut() -> BoxFuture<'a, Result<T, OriginError>>,
    ) -> Result<T, OriginError> {
        self.once(limit, self.retry.run(attempt)).await
    }

    /// One call of one attempt.
    pub(super) async fn once<T>(
        &self,
        limit: Duration,
        call: impl Future<Output = Result<T, OriginError>>,
    ) -> Result<T, OriginError> {
        let permit = self.breaker.admit()?;
        let result = self.in_time(limit, call).await;
        permit.record(result.as_ref().map(|_| ()));
        result
    }

    /// Waits no longer than `limit`.
    pub(super) async fn in_time<T>(
        &self,
        limit: Duration,
        call: impl Future<Output = Result<T, OriginError>>,
    ) -> Result<T, OriginError> {
        let (origin, setting) = (self.name().to_owned(), self.limited_by);
        let timed_out = || OriginError::TimedOut { origin, limit, setting };
        tokio::time::timeout(limit, call).await.unwrap_or_else(|_| Err(timed_out()))
    }
}
