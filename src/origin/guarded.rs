//! An origin as the look-up asks it: in time, again after a failure, and not at all while it is down.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;

use super::{Origin, OriginError};
use crate::{
    backoff::{Backoff, Jitter},
    cache::{Fetched, SharedFault, Source, Stored},
    clock::Clock,
    config,
    guard::{Breaker, BreakerPolicy, BreakerStatus, Retry, RetryPolicy},
    id::KernelId,
    validation::Metadata,
};

/// How patient the daemon is with an origin.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GuardPolicy {
    /// How long one attempt at the catalogue entry or at the bytes may take.
    pub timeout: Duration,
    /// Attempts within one fetch.
    pub retry: RetryPolicy,
    /// When not to ask for a while.
    pub breaker: BreakerPolicy,
}

impl Default for GuardPolicy {
    /// 10 s an attempt.
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(10),
            retry: RetryPolicy::default(),
            breaker: BreakerPolicy::default(),
        }
    }
}

impl From<&config::Origin> for GuardPolicy {
    fn from(settings: &config::Origin) -> Self {
        let config::OriginRetry { attempts, base_delay, max_delay, .. } = settings.retry;
        let backoff = Backoff { first: base_delay, max: max_delay, ..Backoff::default() };
        Self {
            timeout: settings.timeout,
            retry: RetryPolicy { attempts, backoff },
            breaker: BreakerPolicy::from(&settings.breaker),
        }
    }
}

/// An origin behind its time limit, its retries and its circuit breaker.
///
/// Retries stand within the breaker: a fetch counts once, by how it ended.
#[derive(Debug)]
pub struct Guarded {
    origin: Arc<dyn Origin>,
    timeout: Duration,
    retry: Retry,
    breaker: Breaker,
    clock: Arc<dyn Clock>,
}

impl Guarded {
    /// Guards an origin; `jitter` decides the delays between attempts.
    pub fn new(origin: Arc<dyn Origin>, policy: GuardPolicy, jitter: Jitter, clock: Arc<dyn Clock>) -> Self {
        let breaker = Breaker::new(origin.name(), policy.breaker, clock.clone());
        Self { origin, timeout: policy.timeout, retry: Retry::new(policy.retry, jitter), breaker, clock }
    }

    /// The breaker's state.
    pub fn breaker_status(&self) -> BreakerStatus {
        self.breaker.status()
    }

    /// Fetches a kernel: catalogue entry, then bytes.
    ///
    /// # Errors
    /// The origin's, or [`OriginError::BreakerOpen`] at once while it is not asked.
    pub async fn fetch(&self, id: &KernelId) -> Result<Fetched, OriginError> {
        let permit = self.breaker.admit()?;
        let result = self.attempt(id).await;
        permit.record(result.as_ref().map(|_| ()));
        result
    }

    /// Fetches a kernel's catalogue entry alone.
    ///
    /// # Errors
    /// As [`fetch`](Self::fetch).
    pub async fn entry(&self, id: &KernelId) -> Result<Metadata, OriginError> {
        let permit = self.breaker.admit()?;
        let result = self.retry.run(|| Box::pin(self.in_time(self.origin.metadata(id)))).await;
        permit.record(result.as_ref().map(|_| ()));
        result
    }

    async fn attempt(&self, id: &KernelId) -> Result<Fetched, OriginError> {
        let start = self.clock.now();
        let metadata = self.retry.run(|| Box::pin(self.in_time(self.origin.metadata(id)))).await?;
        let between = self.clock.now();
        let bytes = self.retry.run(|| Box::pin(self.in_time(self.origin.artifact(&metadata)))).await?;
        // Hashing some megabytes would hold up every task of this thread.
        let now = self.clock.unix_ms();
        let hashed = tokio::task::spawn_blocking(move || Stored::new(metadata, bytes, now)).await;
        let stored = hashed.map_err(|error| OriginError::Unavailable {
            origin: self.origin.name().to_owned(),
            place: id.as_str().into(),
            reason: error.to_string(),
        })?;
        let us = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let (metadata_us, artifact_us) = (us(between - start), us(self.clock.now() - between));
        Ok(Fetched { stored, metadata_us, artifact_us })
    }

    async fn in_time<T>(&self, call: impl Future<Output = Result<T, OriginError>>) -> Result<T, OriginError> {
        let limit = self.timeout;
        let timed_out = || OriginError::TimedOut { origin: self.origin.name().to_owned(), limit };
        tokio::time::timeout(limit, call).await.unwrap_or_else(|_| Err(timed_out()))
    }
}

impl Source for Guarded {
    fn name(&self) -> &str {
        self.origin.name()
    }

    fn entry<'a>(&'a self, id: &'a KernelId) -> BoxFuture<'a, Result<Metadata, SharedFault>> {
        Box::pin(async move { self.entry(id).await.map_err(|error| Arc::new(error) as SharedFault) })
    }

    fn fetch<'a>(&'a self, id: &'a KernelId) -> BoxFuture<'a, Result<Fetched, SharedFault>> {
        Box::pin(async move { self.fetch(id).await.map_err(|error| Arc::new(error) as SharedFault) })
    }
}
