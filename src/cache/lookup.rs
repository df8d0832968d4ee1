//! From a kernel's id to its bytes: tier by tier, then the source; once however many ask.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use super::{
    Answer, Negative, SharedFault, SingleFlight, Source, Stored, Tier, TierError, TierStats,
    negatives::Negatives,
};
use crate::{
    clock::Clock,
    config,
    fault::{ErrorClass, Fault},
    id::KernelId,
    telemetry::Counter,
    validation::Verdict,
};

/// How many kernels may be on their way into the tiers beside the look-ups; more wait.
const MAX_FILLS: usize = 8;

/// What a look-up remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LookupOptions {
    /// How long "there is no such kernel" is believed.
    pub not_found_for: Duration,
    /// How long a rejection is believed.
    pub rejected_for: Duration,
    /// How many such results are kept in memory.
    pub max_negatives: usize,
}

impl Default for LookupOptions {
    /// 10 s, 10 min, 4096.
    fn default() -> Self {
        Self {
            not_found_for: Duration::from_secs(10),
            rejected_for: Duration::from_secs(600),
            max_negatives: 4096,
        }
    }
}

impl From<&config::Cache> for LookupOptions {
    fn from(settings: &config::Cache) -> Self {
        Self { not_found_for: settings.negative_ttl, rejected_for: settings.rejected_ttl, ..Self::default() }
    }
}

/// What one place said during a look-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepOutcome {
    /// It had it.
    Hit,
    /// It knew nothing.
    Miss,
    /// Its copy was damaged and has been dropped.
    Corrupt,
    /// It did not answer.
    Failed,
}

/// One place asked during a look-up, and how long it took.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// A tier, or the source's name with `.metadata` or `.artifact`.
    pub place: String,
    /// What it said.
    pub outcome: StepOutcome,
    /// Microseconds.
    pub us: u64,
}

/// An artifact, where it was found, and where the time went.
#[derive(Clone, Debug)]
pub struct Found {
    /// The artifact.
    pub stored: Stored,
    /// The tier or source that had it.
    pub place: String,
    /// Every place asked, in order.
    pub steps: Vec<Step>,
}

/// Why no artifact was found.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LookupError {
    /// It was found out a while ago, and is believed for a while more.
    #[error(
        "{reason} (known for now, asked again in {retry_in_s} s; forget kernel {id} to ask at once)",
        retry_in_s = retry_in_ms.div_ceil(1000)
    )]
    Known {
        /// Which kernel.
        id: KernelId,
        /// The code a client sees.
        code: String,
        /// What was said then.
        reason: String,
        /// When it will be asked again.
        retry_in_ms: u64,
    },
    /// No tier has it and there is no origin to ask.
    #[error("kernel {id} is in no tier and no origin is configured: set origin in the configuration")]
    NoSource {
        /// Which kernel.
        id: KernelId,
    },
    /// The origin failed or refused.
    #[error("{fault}")]
    Source {
        /// Which kernel.
        id: KernelId,
        /// The origin's error.
        fault: SharedFault,
    },
}

impl Fault for LookupError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Known { code, .. } if code == "kernel.not_found" => ErrorClass::NotFound,
            Self::Known { .. } => ErrorClass::Invalid,
            Self::NoSource { .. } => ErrorClass::NotFound,
            Self::Source { fault, .. } => fault.class(),
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Known { code, .. } => known_code(code),
            Self::NoSource { .. } => "kernel.not_found",
            Self::Source { fault, .. } => fault.code(),
        }
    }
}

/// Codes come back from a tier as text; what is not one of ours any more was a rejection.
fn known_code(code: &str) -> &'static str {
    let known = ["kernel.not_found", "kernel.deserialize", "kernel.shape"];
    known.into_iter().find(|&known| known == code).unwrap_or("kernel.rejected")
}

/// Counters of the look-up and of every tier below it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LookupStats {
    /// Where kernels were found.
    pub found: BTreeMap<String, u64>,
    /// Look-ups that found none, the remembered ones included.
    pub not_found: u64,
    /// Look-ups answered from memory with "known not to be had".
    pub negative_hits: u64,
    /// Look-ups that waited for another's instead of running one.
    pub joined: u64,
    /// Kernels being looked for now.
    pub in_flight: u64,
    /// Results remembered in memory now.
    pub negatives: u64,
    /// The tiers in the order they are asked; one that does not answer shows its failure alone.
    pub tiers: Vec<TierStats>,
}

/// Finds artifacts.
///
/// A hit in one tier fills those above it, beside the look-up; a tier that fails is passed by and says so
/// in the log and its counters. Needs a tokio runtime.
#[derive(Debug)]
pub struct Lookup {
    tiers: Vec<Arc<dyn Tier>>,
    source: Option<Arc<dyn Source>>,
    options: LookupOptions,
    clock: Arc<dyn Clock>,
    flights: SingleFlight<KernelId, Result<Arc<Found>, LookupError>>,
    negatives: Mutex<Negatives>,
    found: Mutex<BTreeMap<String, u64>>,
    not_found: Counter,
    negative_hits: Counter,
    fills: tokio::sync::Mutex<JoinSet<()>>,
}

impl Lookup {
    /// Tiers in the order they are asked, the fastest first; without a source, what they hold is all.
    pub fn new(
        tiers: Vec<Arc<dyn Tier>>,
        source: Option<Arc<dyn Source>>,
        options: LookupOptions,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            tiers,
            source,
            options,
            clock,
            flights: SingleFlight::default(),
            negatives: Mutex::new(Negatives::new(options.max_negatives)),
            found: Mutex::default(),
            not_found: Counter::new(),
            negative_hits: Counter::new(),
            fills: tokio::sync::Mutex::default(),
        }
    }

    /// Finds a kernel's bytes.
    ///
    /// Cancel safety: dropping the future leaves the work to others who wait for the same kernel.
    ///
    /// # Errors
    /// [`LookupError`]; "not found" and "rejected" are remembered for a while, failures are not.
    pub async fn find(&self, id: &KernelId) -> Result<Arc<Found>, LookupError> {
        let known = lock(&self.negatives).get(id, self.clock.unix_ms());
        let result = match known {
            Some(negative) => Err(self.known(id, negative)),
            None => self.flights.run(id, || self.search(id)).await,
        };
        match &result {
            Ok(found) => *lock(&self.found).entry(found.place.clone()).or_default() += 1,
            Err(_) => self.not_found.increment(),
        }
        result
    }

    async fn search(&self, id: &KernelId) -> Result<Arc<Found>, LookupError> {
        let mut steps = Vec::new();
        for (depth, tier) in self.tiers.iter().enumerate() {
            let start = self.clock.now();
            let answer = tier.get(id).await;
            let outcome = match &answer {
                Ok(Answer::Hit(_)) => StepOutcome::Hit,
                Ok(Answer::Miss | Answer::Negative(_)) => StepOutcome::Miss,
                Ok(Answer::Corrupt) => StepOutcome::Corrupt,
                Err(_) => StepOutcome::Failed,
            };
            let us = u64::try_from((self.clock.now() - start).as_micros()).unwrap_or(u64::MAX);
            steps.push(Step { place: tier.name().to_owned(), outcome, us });
            match answer {
                Ok(Answer::Hit(stored)) => {
                    self.fill(depth, &stored).await;
                    return Ok(Arc::new(Found { stored, place: tier.name().to_owned(), steps }));
                }
                Ok(Answer::Negative(negative)) => {
                    lock(&self.negatives).insert(id.clone(), negative.clone(), self.clock.unix_ms());
                    return Err(self.known(id, negative));
                }
                Ok(Answer::Miss) => {}
                Ok(Answer::Corrupt) => {
                    tracing::warn!(kernel = %id, tier = tier.name(), "damaged copy dropped, asking further");
                }
                Err(error) => warn(tier.as_ref(), id, &error),
            }
        }
        self.fetch(id, steps).await
    }

    async fn fetch(&self, id: &KernelId, mut steps: Vec<Step>) -> Result<Arc<Found>, LookupError> {
        let Some(source) = &self.source else {
            return Err(LookupError::NoSource { id: id.clone() });
        };
        match source.fetch(id).await {
            Ok(fetched) => {
                let place = source.name().to_owned();
                let parts = [("metadata", fetched.metadata_us), ("artifact", fetched.artifact_us)];
                steps.extend(parts.map(|(part, us)| Step {
                    place: format!("{place}.{part}"),
                    outcome: StepOutcome::Hit,
                    us,
                }));
                self.fill(self.tiers.len(), &fetched.stored).await;
                Ok(Arc::new(Found { stored: fetched.stored, place, steps }))
            }
            Err(fault) => {
                let lifetime = match fault.class() {
                    ErrorClass::NotFound => Some(self.options.not_found_for),
                    ErrorClass::Invalid => Some(self.options.rejected_for),
                    _ => None,
                };
                if let Some(lifetime) = lifetime {
                    self.remember(id, fault.code(), fault.to_string(), lifetime).await;
                }
                Err(LookupError::Source { id: id.clone(), fault })
            }
        }
    }

    fn known(&self, id: &KernelId, negative: Negative) -> LookupError {
        self.negative_hits.increment();
        let retry_in_ms = negative.until_unix_ms.saturating_sub(self.clock.unix_ms()).max(0).unsigned_abs();
        LookupError::Known { id: id.clone(), code: negative.code, reason: negative.reason, retry_in_ms }
    }

    /// Starts putting an artifact into the tiers above `depth`, and waits only where many are under way.
    async fn fill(&self, depth: usize, stored: &Stored) {
        let above: Vec<_> = self.tiers[..depth].to_vec();
        if above.is_empty() {
            return;
        }
        let mut fills = self.fills.lock().await;
        while fills.try_join_next().is_some() {}
        if fills.len() >= MAX_FILLS {
            fills.join_next().await;
        }
        let stored = stored.clone();
        fills.spawn(async move {
            for tier in above {
                match tier.put(&stored).await {
                    Ok(true) => {}
                    Ok(false) => {
                        tracing::debug!(kernel = %stored.id(), tier = tier.name(), "larger than the tier, not kept");
                    }
                    Err(error) => warn(tier.as_ref(), stored.id(), &error),
                }
            }
        });
    }

    /// Waits until what was found has reached the tiers it was to fill.
    pub async fn settle(&self) {
        // Under the lock, so that no one who settles passes by fills that another is waiting for.
        let mut fills = self.fills.lock().await;
        while fills.join_next().await.is_some() {}
    }

    /// Passes the validator's verdict on to the tiers; a rejected kernel's bytes are dropped there, and the
    /// rejection is believed for a while.
    pub async fn note_verdict(&self, id: &KernelId, verdict: &Verdict) {
        self.settle().await;
        if let Some(rejection) = verdict.rejection(id) {
            let lifetime = self.options.rejected_for;
            return self.remember(id, rejection.code(), rejection.to_string(), lifetime).await;
        }
        for tier in &self.tiers {
            if let Err(error) = tier.put_verdict(id, verdict.digest, verdict).await {
                warn(tier.as_ref(), id, &error);
            }
        }
    }

    async fn remember(&self, id: &KernelId, code: &str, reason: String, lifetime: Duration) {
        let lifetime_ms = i64::try_from(lifetime.as_millis()).unwrap_or(i64::MAX);
        let until_unix_ms = self.clock.unix_ms().saturating_add(lifetime_ms);
        let negative = Negative { code: code.to_owned(), reason, until_unix_ms };
        for tier in &self.tiers {
            if let Err(error) = tier.put_negative(id, &negative).await {
                warn(tier.as_ref(), id, &error);
            }
        }
        lock(&self.negatives).insert(id.clone(), negative, self.clock.unix_ms());
    }

    /// Forgets all that is known of a kernel, so that the next look-up asks the source; `false` where
    /// nothing was known.
    ///
    /// # Errors
    /// The first tier's that failed, when the others have been asked.
    pub async fn forget(&self, id: &KernelId) -> Result<bool, TierError> {
        self.settle().await;
        let mut any = lock(&self.negatives).remove(id);
        let mut failure = None;
        for tier in &self.tiers {
            match tier.remove(id).await {
                Ok(removed) => any |= removed,
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        failure.map_or(Ok(any), Err)
    }

    /// Forgets everything in every tier, and says how many kernels that were.
    ///
    /// # Errors
    /// The first tier's that failed, when the others have been cleared.
    pub async fn clear(&self) -> Result<u64, TierError> {
        self.settle().await;
        lock(&self.negatives).clear();
        let (mut count, mut failure) = (0, None);
        for tier in &self.tiers {
            match tier.clear().await {
                Ok(cleared) => count += cleared,
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        failure.map_or(Ok(count), Err)
    }

    /// The ids most used since a time in milliseconds since 1970, by the first tier that answers with any.
    pub async fn most_used(&self, since_unix_ms: i64, limit: u32) -> Vec<KernelId> {
        for tier in &self.tiers {
            match tier.most_used(since_unix_ms, limit).await {
                Ok(ids) if !ids.is_empty() => return ids,
                Ok(_) => {}
                Err(error) => tracing::warn!(tier = tier.name(), %error, "cache tier failed"),
            }
        }
        Vec::new()
    }

    /// Counters of the look-up and of every tier.
    pub async fn stats(&self) -> LookupStats {
        let mut tiers = Vec::with_capacity(self.tiers.len());
        for tier in &self.tiers {
            let failed = || TierStats { tier: tier.name().to_owned(), failures: 1, ..TierStats::default() };
            tiers.push(tier.stats().await.unwrap_or_else(|_| failed()));
        }
        LookupStats {
            found: lock(&self.found).clone(),
            not_found: self.not_found.get(),
            negative_hits: self.negative_hits.get(),
            joined: self.flights.counts().1,
            in_flight: self.flights.in_flight() as u64,
            negatives: lock(&self.negatives).len() as u64,
            tiers,
        }
    }
}

fn warn(tier: &dyn Tier, id: &KernelId, error: &TierError) {
    tracing::warn!(kernel = %id, tier = tier.name(), %error, "cache tier passed by");
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
