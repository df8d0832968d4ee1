//! An origin as the look-up asks it: in time, again after a failure, and not at all while it is down.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;

use super::{Blob, Origin, OriginError, blobs::held, service::Service};
use crate::{
    backoff::{Backoff, Jitter},
    cache::{FetchBudget, Fetched, Reservation, SharedFault, Source, Stored},
    clock::Clock,
    config,
    guard::{BreakerPolicy, BreakerStatus, RetryPolicy},
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

/// An origin behind time limits, retries and circuit breakers.
///
/// Retries stand within a breaker: a call counts once, by how it ended.
#[derive(Debug)]
pub struct Guarded {
    origin: Arc<dyn Origin>,
    /// Before the whole, for an origin that is a single thing.
    service: Option<Service>,
    timeout: Duration,
    clock: Arc<dyn Clock>,
    /// What the bytes take their share of, and the most that one artifact may have; where the origin does not see to
    /// that itself.
    budget: Option<(Arc<FetchBudget>, u64)>,
}

impl Guarded {
    /// Guards an origin as a whole; `jitter` decides the delays between attempts.
    pub fn new(origin: Arc<dyn Origin>, policy: GuardPolicy, jitter: Jitter, clock: Arc<dyn Clock>) -> Self {
        let service = Service::with_jitter(origin.name(), &policy, jitter, clock.clone());
        Self { origin, service: Some(service), timeout: policy.timeout, clock, budget: None }
    }

    /// Takes an origin that guards each of its parts by itself.
    pub fn by_parts(origin: Arc<dyn Origin>, clock: Arc<dyn Clock>) -> Self {
        Self { origin, service: None, timeout: Duration::MAX, clock, budget: None }
    }

    /// The same, but an artifact's bytes take of a budget before they are asked for: the most that it may have, and
    /// then what it has.
    #[must_use]
    pub fn within(self, budget: Arc<FetchBudget>, most_bytes: u64) -> Self {
        Self { budget: Some((budget, most_bytes)), ..self }
    }

    /// The state of every breaker.
    pub fn breakers(&self) -> Vec<BreakerStatus> {
        self.service.iter().map(Service::status).chain(self.origin.breakers()).collect()
    }

    /// Fetches a kernel: catalogue entry, then bytes.
    ///
    /// # Errors
    /// The origin's, or [`OriginError::BreakerOpen`] at once while it is not asked.
    pub async fn fetch(&self, id: &KernelId) -> Result<Fetched, OriginError> {
        match &self.service {
            Some(service) => {
                let permit = service.admit()?;
                let result = self.attempt(id).await;
                permit.record(result.as_ref().map(|_| ()));
                result
            }
            None => self.attempt(id).await,
        }
    }

    /// Fetches a kernel's catalogue entry alone.
    ///
    /// # Errors
    /// As [`fetch`](Self::fetch).
    pub async fn entry(&self, id: &KernelId) -> Result<Metadata, OriginError> {
        match &self.service {
            Some(service) => {
                let permit = service.admit()?;
                let result = self.metadata(id).await;
                permit.record(result.as_ref().map(|_| ()));
                result
            }
            None => self.metadata(id).await,
        }
    }

    async fn attempt(&self, id: &KernelId) -> Result<Fetched, OriginError> {
        let start = self.clock.now();
        let metadata = self.metadata(id).await?;
        let hold = self.reserve(id).await?;
        let between = self.clock.now();
        let blob = self.artifact(&metadata).await?;
        let blob = if hold.is_some() { held(blob, hold) } else { blob };
        let us = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let took = self.clock.now().saturating_duration_since(between);
        let now = self.clock.unix_ms();
        Ok(Fetched {
            stored: Stored::hashed(metadata, blob.bytes, blob.digest, now),
            metadata_us: us(between.saturating_duration_since(start)),
            artifact_us: us(took.saturating_sub(blob.hashing)),
            checksum_us: us(blob.hashing),
            hold: blob.hold,
        })
    }

    async fn reserve(&self, id: &KernelId) -> Result<Option<Reservation>, OriginError> {
        let Some((budget, most_bytes)) = &self.budget else { return Ok(None) };
        let reserved = budget.reserve(*most_bytes).await;
        reserved.map(Some).map_err(|source| OriginError::Budget { id: id.clone(), source })
    }

    async fn metadata(&self, id: &KernelId) -> Result<Metadata, OriginError> {
        let Some(service) = &self.service else { return self.origin.metadata(id).await };
        let attempt =
            || Box::pin(service.in_time(self.timeout, self.origin.metadata(id))) as BoxFuture<'_, _>;
        service.retry().run(attempt).await
    }

    async fn artifact(&self, metadata: &Metadata) -> Result<Blob, OriginError> {
        let Some(service) = &self.service else { return self.origin.artifact(metadata).await };
        let attempt =
            || Box::pin(service.in_time(self.timeout, self.origin.artifact(metadata))) as BoxFuture<'_, _>;
        service.retry().run(attempt).await
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
