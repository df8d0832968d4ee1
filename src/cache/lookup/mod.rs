//! From a kernel's id to its bytes: tier by tier, then the source; once however many ask.

mod error;
mod keep;
mod report;
mod routes;
mod upkeep;
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

use super::{Answer, Fetched, Negative, SingleFlight, Source, Stored, Tier, TierError, negatives::Negatives};
use crate::{
    clock::Clock,
    config,
    fault::{ErrorClass, Fault as _},
    id::KernelId,
    telemetry::{Counter, step_path},
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
    /// Tiers that were asked.
    asked: Vec<usize>,
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
        step_path::may_wait();
        let known = lock(&self.negatives).get(id, self.clock.as_ref());
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
        trail.asked.push(tier);
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
                    behind: self.behind(tier, trail),
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
                lock(&self.negatives).insert(id.clone(), negative.clone(), self.clock.as_ref());
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

    /// The node's own tiers that were not asked, because one that nodes share had the kernel.
    fn behind(&self, holder: usize, trail: &Trail) -> Vec<usize> {
        let own = |tier: &usize| !self.tiers[*tier].shared() && !trail.asked.contains(tier);
        if self.tiers[holder].shared() { (0..self.tiers.len()).filter(own).collect() } else { Vec::new() }
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
                    behind: Vec::new(),
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
