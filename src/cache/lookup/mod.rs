//! From a kernel's id to its bytes: tier by tier, then the source; once however many ask.

mod error;
mod report;
mod routes;
mod writes;

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

pub use error::LookupError;
pub use report::{Found, LookupStats, RouteStats, Step, StepOutcome};
use routes::Routes;
use writes::Writes;

use super::{
    Answer, Fetched, Held, Negative, SingleFlight, Source, Stored, Tier, TierError, TierStats,
    negatives::Negatives,
};
use crate::{
    clock::Clock,
    config,
    fault::{ErrorClass, Fault},
    guard::BreakerStatus,
    id::KernelId,
    telemetry::Counter,
    validation::Verdict,
};

/// What a look-up remembers and believes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LookupOptions {
    /// How long "there is no such kernel" is believed.
    pub not_found_for: Duration,
    /// How long a rejection is believed.
    pub rejected_for: Duration,
    /// How many such results are kept in memory.
    pub max_negatives: usize,
    /// How old the origin's word on a copy may be; for older ones it is asked again.
    pub fresh_for: Duration,
    /// Whether an older copy is given where the origin does not answer.
    pub serve_stale: bool,
    /// Whether tiers that are slower than the next place are passed by.
    pub bypass_slow_tiers: bool,
}

impl Default for LookupOptions {
    /// As the configuration's defaults, and 4096 results.
    fn default() -> Self {
        Self::from(&config::Cache::default())
    }
}

impl From<&config::Cache> for LookupOptions {
    fn from(settings: &config::Cache) -> Self {
        Self {
            not_found_for: settings.negative_ttl,
            rejected_for: settings.rejected_ttl,
            max_negatives: 4096,
            fresh_for: settings.fresh_for,
            serve_stale: settings.serve_stale,
            bypass_slow_tiers: settings.bypass_slow_tiers,
        }
    }
}

/// Finds artifacts.
///
/// What is found is told to the tiers by [`keep`](Lookup::keep) once it has been judged, or
/// [`reject`](Lookup::reject); both return at once and write beside whatever goes on. A tier that fails is
/// passed by and says so in the log and its counters. Needs a tokio runtime.
#[derive(Debug)]
pub struct Lookup {
    tiers: Vec<Arc<dyn Tier>>,
    source: Option<Arc<dyn Source>>,
    options: LookupOptions,
    clock: Arc<dyn Clock>,
    routes: Routes,
    flights: SingleFlight<KernelId, Result<Arc<Found>, LookupError>>,
    negatives: Mutex<Negatives>,
    counters: Counters,
    writes: Writes,
}

#[derive(Debug, Default)]
struct Counters {
    found: Mutex<BTreeMap<String, u64>>,
    not_found: Counter,
    negative_hits: Counter,
    source_absences: Counter,
    source_failures: Counter,
    confirmations: Counter,
    stale: Counter,
}

/// What a look-up has done so far.
#[derive(Default)]
struct Trail {
    steps: Vec<Step>,
    /// Tiers without a copy.
    wanting: Vec<usize>,
}

/// What came of asking a tier.
enum Asked {
    Found(Arc<Found>),
    /// Ask the next.
    Next,
    /// The copy may not be what the origin has now; where the origin does not answer, it may serve.
    Outdated(Option<Box<Found>>),
}

/// What the origin says of an old copy.
enum Confirmed {
    Fresh(Stored),
    Stale(Stored),
    Outdated { usable: Option<Stored> },
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
            routes: Routes::new(tiers.len(), options.bypass_slow_tiers, clock.clone()),
            tiers,
            source,
            options,
            clock,
            flights: SingleFlight::default(),
            negatives: Mutex::new(Negatives::new(options.max_negatives)),
            counters: Counters::default(),
            writes: Writes::default(),
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
            Ok(found) => *lock(&self.counters.found).entry(found.place.clone()).or_default() += 1,
            Err(_) => self.counters.not_found.increment(),
        }
        result
    }

    async fn search(&self, id: &KernelId) -> Result<Arc<Found>, LookupError> {
        let mut trail = Trail::default();
        let plan = self.routes.plan(id);
        for &tier in plan.before_source.iter().chain(&plan.last_resort) {
            trail.note(self.tiers[tier].name(), StepOutcome::PassedBy, 0);
        }
        let mut fallback = None;
        for tier in plan.first.into_iter().chain(plan.before_source) {
            match self.ask(tier, id, &mut trail).await? {
                Asked::Found(found) => return Ok(found),
                Asked::Next => {}
                Asked::Outdated(copy) => {
                    // The tiers behind it are no newer than the origin, and the origin gets to write them all.
                    fallback = copy;
                    trail.wanting = (0..self.tiers.len()).collect();
                    break;
                }
            }
        }
        let error = match self.fetch(id, &mut trail).await {
            Ok(found) => return Ok(found),
            Err(error) => error,
        };
        if matches!(error.class(), ErrorClass::Unavailable | ErrorClass::Overloaded) {
            if let Some(copy) = fallback {
                self.counters.stale.increment();
                tracing::warn!(kernel = %id, place = copy.place, %error, "the origin does not answer, an old copy serves");
                return Ok(Arc::new(Found { steps: trail.steps, ..*copy }));
            }
            for tier in plan.last_resort {
                if let Asked::Found(found) = self.ask(tier, id, &mut trail).await? {
                    return Ok(found);
                }
            }
        }
        Err(error)
    }

    async fn ask(&self, tier: usize, id: &KernelId, trail: &mut Trail) -> Result<Asked, LookupError> {
        let place = self.tiers[tier].as_ref();
        let start = self.clock.now();
        let answer = place.get(id).await;
        let us = micros(self.clock.now() - start);
        match answer {
            Ok(Answer::Hit(stored)) => {
                self.routes.record(tier, id, stored.bytes.len(), us);
                let (name, stale) = (place.name().to_owned(), StepOutcome::Outdated);
                let held = |stored, stale, trail: &Trail| Found {
                    stored,
                    place: name.clone(),
                    steps: trail.steps.clone(),
                    stale,
                    wanting: trail.wanting.clone(),
                    holder: Some(tier),
                };
                if self.is_fresh(&stored) {
                    trail.note(place.name(), StepOutcome::Hit, us);
                    return Ok(Asked::Found(Arc::new(held(stored, false, trail))));
                }
                match self.confirm(id, stored).await? {
                    Confirmed::Fresh(stored) => {
                        trail.note(place.name(), StepOutcome::Hit, us);
                        // Its copy has the old date: it is to be written anew.
                        trail.wanting.push(tier);
                        let found = Found { holder: None, ..held(stored, false, trail) };
                        Ok(Asked::Found(Arc::new(found)))
                    }
                    Confirmed::Stale(stored) => {
                        trail.note(place.name(), StepOutcome::Hit, us);
                        Ok(Asked::Found(Arc::new(held(stored, true, trail))))
                    }
                    Confirmed::Outdated { usable } => {
                        trail.note(place.name(), stale, us);
                        Ok(Asked::Outdated(usable.map(|stored| Box::new(held(stored, true, trail)))))
                    }
                }
            }
            Ok(Answer::Negative(negative)) => {
                trail.note(place.name(), StepOutcome::Negative, us);
                lock(&self.negatives).insert(id.clone(), negative.clone(), self.clock.unix_ms());
                Err(self.known(id, negative))
            }
            Ok(Answer::Miss) => {
                trail.note(place.name(), StepOutcome::Miss, us);
                trail.wanting.push(tier);
                Ok(Asked::Next)
            }
            Ok(Answer::Corrupt) => {
                trail.note(place.name(), StepOutcome::Corrupt, us);
                trail.wanting.push(tier);
                tracing::warn!(kernel = %id, tier = place.name(), "damaged copy dropped, asking further");
                Ok(Asked::Next)
            }
            Err(error) => {
                trail.note(place.name(), StepOutcome::Failed, us);
                warn(place, id, &error);
                Ok(Asked::Next)
            }
        }
    }

    /// Whether the origin's word on a copy is recent; a date in the future, after the clock was set back,
    /// counts by its distance too.
    fn is_fresh(&self, stored: &Stored) -> bool {
        let age_ms = self.clock.unix_ms().abs_diff(stored.confirmed_unix_ms);
        self.source.is_none() || u128::from(age_ms) <= self.options.fresh_for.as_millis()
    }

    /// Asks the origin whether an old copy is still the kernel.
    async fn confirm(&self, id: &KernelId, stored: Stored) -> Result<Confirmed, LookupError> {
        let Some(source) = &self.source else {
            return Ok(Confirmed::Fresh(stored));
        };
        self.counters.confirmations.increment();
        match source.entry(id).await {
            Ok(entry) => Ok(match entry.checksum {
                Some(checksum) if checksum == stored.digest => {
                    let confirmed_unix_ms = self.clock.unix_ms();
                    Confirmed::Fresh(Stored { metadata: Arc::new(entry), confirmed_unix_ms, ..stored })
                }
                Some(_) => Confirmed::Outdated { usable: None },
                // An entry that says nothing of the bytes: only the bytes themselves can tell.
                None => Confirmed::Outdated { usable: self.options.serve_stale.then_some(stored) },
            }),
            Err(fault) if matches!(fault.class(), ErrorClass::NotFound | ErrorClass::Invalid) => {
                // It was withdrawn.
                self.remember_fault(id, fault.as_ref());
                Err(LookupError::Source { id: id.clone(), fault })
            }
            Err(fault) if self.options.serve_stale => {
                self.counters.stale.increment();
                tracing::warn!(kernel = %id, error = %fault, "the origin does not answer, an old copy serves");
                Ok(Confirmed::Stale(stored))
            }
            Err(fault) => Err(LookupError::Source { id: id.clone(), fault }),
        }
    }

    async fn fetch(&self, id: &KernelId, trail: &mut Trail) -> Result<Arc<Found>, LookupError> {
        let Some(source) = &self.source else {
            return Err(LookupError::NoSource { id: id.clone() });
        };
        let start = self.clock.now();
        match source.fetch(id).await {
            Ok(fetched) => {
                let us = micros(self.clock.now() - start);
                self.routes.record(self.routes.source(), id, fetched.stored.bytes.len(), us);
                let place = source.name().to_owned();
                let Fetched { metadata_us, artifact_us, checksum_us, .. } = fetched;
                for (part, us) in
                    [("metadata", metadata_us), ("artifact", artifact_us), ("checksum", checksum_us)]
                {
                    trail.note(&format!("{place}.{part}"), StepOutcome::Hit, us);
                }
                Ok(Arc::new(Found {
                    stored: fetched.stored,
                    place,
                    steps: trail.steps.clone(),
                    stale: false,
                    wanting: trail.wanting.clone(),
                    holder: None,
                }))
            }
            Err(fault) => {
                let absent = fault.class() == ErrorClass::NotFound;
                if absent { &self.counters.source_absences } else { &self.counters.source_failures }
                    .increment();
                trail.note(source.name(), StepOutcome::Failed, micros(self.clock.now() - start));
                self.remember_fault(id, fault.as_ref());
                Err(LookupError::Source { id: id.clone(), fault })
            }
        }
    }

    fn known(&self, id: &KernelId, negative: Negative) -> LookupError {
        self.counters.negative_hits.increment();
        let retry_in_ms = negative.until_unix_ms.saturating_sub(self.clock.unix_ms()).max(0).unsigned_abs();
        LookupError::Known { id: id.clone(), code: negative.code, reason: negative.reason, retry_in_ms }
    }

    /// Tells the tiers that want it of an artifact that was accepted, and by which verdict.
    pub fn keep(&self, found: &Found, verdict: Arc<Verdict>) {
        let id = found.stored.id();
        let known = found.stored.verdict.as_ref().map(|verdict| &verdict.policy);
        if let Some(holder) = found.holder.filter(|_| known != Some(&verdict.policy)) {
            let (tier, id, verdict) = (self.tiers[holder].clone(), id.clone(), verdict.clone());
            self.writes.begin(async move {
                if let Err(error) = tier.put_verdict(&id, verdict.digest, &verdict).await {
                    warn(tier.as_ref(), &id, &error);
                }
            });
        }
        let stored = Arc::new(Stored { verdict: Some(verdict), ..found.stored.clone() });
        for &place in &found.wanting {
            if self.routes.is_passed_by(place, stored.bytes.len()) {
                continue;
            }
            let (tier, stored) = (self.tiers[place].clone(), stored.clone());
            self.writes.begin(async move {
                match tier.put(&stored).await {
                    Ok(true) => {}
                    Ok(false) => {
                        tracing::debug!(kernel = %stored.id(), tier = tier.name(), "larger than the tier, not kept");
                    }
                    Err(error) => warn(tier.as_ref(), stored.id(), &error),
                }
            });
        }
    }

    /// Tells the tiers of a rejection, which is believed for a while; what they hold of the kernel goes.
    pub fn reject(&self, id: &KernelId, rejection: &dyn Fault) {
        self.remember(id, rejection.code(), rejection.to_string(), self.options.rejected_for);
    }

    fn remember_fault(&self, id: &KernelId, fault: &dyn Fault) {
        let lifetime = match fault.class() {
            ErrorClass::NotFound => self.options.not_found_for,
            ErrorClass::Invalid => self.options.rejected_for,
            _ => return,
        };
        self.remember(id, fault.code(), fault.to_string(), lifetime);
    }

    fn remember(&self, id: &KernelId, code: &str, reason: String, lifetime: Duration) {
        let lifetime_ms = i64::try_from(lifetime.as_millis()).unwrap_or(i64::MAX);
        let until_unix_ms = self.clock.unix_ms().saturating_add(lifetime_ms);
        let negative = Negative { code: code.to_owned(), reason, until_unix_ms };
        lock(&self.negatives).insert(id.clone(), negative.clone(), self.clock.unix_ms());
        for tier in &self.tiers {
            let (tier, id, negative) = (tier.clone(), id.clone(), negative.clone());
            self.writes.begin(async move {
                if let Err(error) = tier.put_negative(&id, &negative).await {
                    warn(tier.as_ref(), &id, &error);
                }
            });
        }
    }

    /// Waits until the tiers have been told of everything.
    pub async fn settle(&self) {
        self.writes.settle().await;
    }

    /// Forgets all that is known of a kernel, so that the next look-up asks the source; `false` where
    /// nothing was known.
    ///
    /// # Errors
    /// The first tier's that failed, when the others have been asked.
    pub async fn forget(&self, id: &KernelId) -> Result<bool, TierError> {
        self.settle().await;
        let mut any = self.forget_negative(id);
        let mut failure = None;
        for tier in &self.tiers {
            match tier.remove(id).await {
                Ok(removed) => any |= removed,
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        failure.map_or(Ok(any), Err)
    }

    /// Forgets all that this node alone knows of a kernel: who had it forgotten everywhere has seen to what
    /// nodes share. `false` where nothing was known.
    ///
    /// # Errors
    /// The first tier's that failed, when the others have been asked.
    pub async fn forget_here(&self, id: &KernelId) -> Result<bool, TierError> {
        self.settle().await;
        let mut any = self.forget_negative(id);
        let mut failure = None;
        for tier in self.tiers.iter().filter(|tier| !tier.shared()) {
            match tier.remove(id).await {
                Ok(removed) => any |= removed,
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        failure.map_or(Ok(any), Err)
    }

    /// Forgets what is remembered in memory of a kernel that was not to be had.
    pub fn forget_negative(&self, id: &KernelId) -> bool {
        lock(&self.negatives).remove(id)
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

    /// The ids most used since a time in milliseconds since 1970, by the last tier that answers with any:
    /// the last is the one that outlives the others.
    pub async fn most_used(&self, since_unix_ms: i64, limit: u32) -> Vec<KernelId> {
        for tier in self.tiers.iter().rev() {
            match tier.most_used(since_unix_ms, limit).await {
                Ok(ids) if !ids.is_empty() => return ids,
                Ok(_) => {}
                Err(error) => tracing::warn!(tier = tier.name(), %error, "cache tier failed"),
            }
        }
        Vec::new()
    }

    /// What every tier holds of a kernel, by the tiers' names, and what is remembered of its absence.
    pub async fn about(&self, id: &KernelId) -> Vec<(String, Result<Option<Held>, TierError>)> {
        let mut places = Vec::with_capacity(self.tiers.len());
        for tier in &self.tiers {
            places.push((tier.name().to_owned(), tier.about(id).await));
        }
        places
    }

    /// Tells the tiers of uses that they did not see.
    pub async fn note_uses(&self, uses: &[(KernelId, u64)]) {
        for tier in &self.tiers {
            if let Err(error) = tier.note_uses(uses).await {
                tracing::debug!(tier = tier.name(), %error, "uses of kernels not noted");
            }
        }
    }

    /// The breakers before the tiers.
    pub fn breakers(&self) -> Vec<BreakerStatus> {
        self.tiers.iter().filter_map(|tier| tier.breaker()).collect()
    }

    /// The source's name, where there is one.
    pub fn source_name(&self) -> Option<&str> {
        self.source.as_ref().map(|source| source.name())
    }

    /// Why a kernel is known not to be had.
    pub fn negative(&self, id: &KernelId) -> Option<Negative> {
        lock(&self.negatives).get(id, self.clock.unix_ms())
    }

    /// The tiers in the order they are asked.
    pub fn tiers(&self) -> &[Arc<dyn Tier>] {
        &self.tiers
    }

    /// Counters of the look-up and of every tier.
    pub async fn stats(&self) -> LookupStats {
        let mut tiers = Vec::with_capacity(self.tiers.len());
        for tier in &self.tiers {
            let failed = || TierStats { tier: tier.name().to_owned(), failures: 1, ..TierStats::default() };
            tiers.push(tier.stats().await.unwrap_or_else(|_| failed()));
        }
        let names = self.tiers.iter().map(|tier| tier.name().to_owned());
        let names: Vec<_> = names.chain(self.source.iter().map(|source| source.name().to_owned())).collect();
        LookupStats {
            found: lock(&self.counters.found).clone(),
            not_found: self.counters.not_found.get(),
            negative_hits: self.counters.negative_hits.get(),
            source_absences: self.counters.source_absences.get(),
            source_failures: self.counters.source_failures.get(),
            confirmations: self.counters.confirmations.get(),
            stale: self.counters.stale.get(),
            joined: self.flights.counts().1,
            in_flight: self.flights.in_flight() as u64,
            negatives: lock(&self.negatives).len() as u64,
            writes_skipped: self.writes.skipped(),
            tiers,
            routes: self.routes.stats(&names),
        }
    }
}

impl Trail {
    fn note(&mut self, place: &str, outcome: StepOutcome, us: u64) {
        self.steps.push(Step { place: place.to_owned(), outcome, us });
    }
}

fn warn(tier: &dyn Tier, id: &KernelId, error: &TierError) {
    tracing::warn!(kernel = %id, tier = tier.name(), %error, "cache tier passed by");
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
