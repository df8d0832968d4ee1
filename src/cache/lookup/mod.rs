//! From a kernel's id to its bytes: tier by tier, then the source.

mod error;
mod forgotten;
mod keep;
mod report;
mod routes;
mod upkeep;
mod writes;

#[cfg(test)]
mod sharing_tests;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

pub use error::{LookupError, Unfound};
use forgotten::Forgotten;
pub use forgotten::Search;
pub use report::{Found, InTier, LookupStats, RouteStats, Step, StepOutcome};
use routes::Routes;
use writes::Writes;

use super::{
    Answer, FetchBudget, FetchBudgetSpent, Fetched, Negative, Reservation, SharedFault, Source, Stored, Tier,
    TierError, negatives::Negatives,
};
use crate::{
    clock::Clock,
    config::Config,
    digest::Digest,
    fault::{ErrorClass, Fault as _},
    id::KernelId,
    telemetry::{Counter, step_path},
    validation::Metadata,
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
    /// How many bytes the artifacts may have that wait to be written to tiers.
    pub max_write_bytes: u64,
    /// A digest of all by which this node refuses a kernel: its settings and its version. A refusal by another
    /// measure is not believed.
    pub policy: Digest,
}

impl Default for LookupOptions {
    /// As the configuration's defaults, and 4096 results.
    fn default() -> Self {
        Self::from(&Config::default())
    }
}

impl From<&Config> for LookupOptions {
    fn from(settings: &Config) -> Self {
        let Config { cache, origin, validator, .. } = settings;
        // More than decides: what is asked for once too often costs one fetch.
        let measure = format!("{} {origin:?} {validator:?}", env!("CARGO_PKG_VERSION"));
        Self {
            not_found_for: cache.negative_ttl,
            rejected_for: cache.rejected_ttl,
            max_negatives: 4096,
            fresh_for: cache.fresh_for,
            serve_stale: cache.serve_stale,
            bypass_slow_tiers: cache.bypass_slow_tiers,
            max_write_bytes: cache.max_fetch_bytes.0,
            policy: Digest::of(measure.as_bytes()),
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
    forgotten: Arc<Forgotten>,
    negatives: Mutex<Negatives>,
    counters: Counters,
    writes: Writes,
    reading: Option<ReadLimit>,
}

/// What bounds the bytes that tiers give at a time.
#[derive(Debug)]
struct ReadLimit {
    budget: Arc<FetchBudget>,
    /// The most that one can give.
    most_bytes: u64,
}

/// The bytes' share of a budget, where there is one.
type Hold = Option<Arc<Reservation>>;

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
#[derive(Debug, Default)]
struct Trail {
    steps: Vec<Step>,
    /// Tiers that were asked.
    asked: Vec<usize>,
    /// Tiers that were passed by.
    passed: Vec<usize>,
    /// Tiers without a copy.
    wanting: Vec<usize>,
    /// What it took them to say so, in microseconds; how large the artifact is shows later.
    misses: Vec<(usize, u64)>,
    /// Tiers with a copy that the origin has not vouched for of late.
    old: Vec<usize>,
    /// The newest of these copies that may serve while the origin does not answer.
    fallback: Option<(usize, Stored, Hold)>,
    /// What the origin said when it was asked about such a copy: once is enough.
    entry: Option<Arc<Metadata>>,
    /// Why it did not answer.
    down: Option<SharedFault>,
}

/// What came of asking a tier.
enum Asked {
    Found(Box<Found>),
    /// Ask the next.
    Next,
    /// The origin has other bytes, or may have: no tier behind is newer than it is.
    Outdated,
}

/// What the origin says of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// It has the same.
    Same,
    /// It has another, or none any more.
    Other,
}

/// What a copy is worth.
enum Worth {
    /// It is the kernel.
    Current(Stored),
    /// It is, says the origin, which was asked about it.
    Confirmed(Stored),
    /// The origin has another, or may have.
    Outdated(Stored),
    /// The origin does not answer.
    Unconfirmed(Stored),
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
            forgotten: Arc::new(Forgotten::new(options.fresh_for, clock.clone())),
            tiers,
            source,
            options,
            clock,
            negatives: Mutex::new(Negatives::new(options.max_negatives)),
            counters: Counters::default(),
            writes: Writes::new(options.max_write_bytes),
            reading: None,
        }
    }

    /// The same, but what tiers give takes of a budget before they are asked: the most that one can give, and then
    /// what it gave.
    #[must_use]
    pub fn within(self, budget: Arc<FetchBudget>, most_bytes: u64) -> Self {
        Self { reading: Some(ReadLimit { budget, most_bytes }), ..self }
    }

    /// Finds a kernel's bytes. Who asks for one kernel many times at once sees to it that it is looked for once.
    ///
    /// Cancel safety: nothing is left half done.
    ///
    /// # Errors
    /// [`Unfound`]; "not found" and "rejected" are remembered for a while, failures are not.
    pub async fn find(&self, id: &KernelId) -> Result<Found, Unfound> {
        step_path::may_wait();
        let (search, mut trail) = (self.forgotten.search(), Trail::default());
        let known = lock(&self.negatives).get(id, self.clock.as_ref());
        let result = match known {
            Some(negative) => {
                trail.note("memory", StepOutcome::Negative, 0);
                Err(self.known(id, negative))
            }
            None => self.search(id, search, &mut trail).await,
        };
        match &result {
            Ok(found) => *lock(&self.counters.found).entry(found.place.clone()).or_default() += 1,
            Err(_) => self.counters.not_found.increment(),
        }
        result.map_err(|error| Unfound { error, steps: trail.steps })
    }

    async fn search(&self, id: &KernelId, search: Search, trail: &mut Trail) -> Result<Found, LookupError> {
        let plan = self.routes.plan(id);
        for &tier in plan.before_source.iter().chain(&plan.last_resort) {
            trail.note(self.tiers[tier].name(), StepOutcome::PassedBy, 0);
            trail.passed.push(tier);
        }
        let mut outdated = false;
        for tier in plan.first.into_iter().chain(plan.before_source) {
            match self.ask(tier, id, search, trail).await? {
                Asked::Found(found) => return Ok(*found),
                Asked::Next => {}
                Asked::Outdated => {
                    outdated = true;
                    break;
                }
            }
        }
        let error = match trail.down.clone() {
            // It was asked just now.
            Some(fault) => LookupError::Source { id: id.clone(), fault },
            None => match self.fetch(id, search, outdated, trail).await {
                Ok(found) => return Ok(found),
                Err(error) => error,
            },
        };
        if !matches!(error.class(), ErrorClass::Unavailable | ErrorClass::Overloaded) && trail.down.is_none()
        {
            return Err(error);
        }
        // The tiers that were left out, each of which may have a newer copy than those before.
        for tier in (0..self.tiers.len()).filter(|tier| !trail.asked.contains(tier)).collect::<Vec<_>>() {
            if let Asked::Found(found) = self.ask(tier, id, search, trail).await? {
                return Ok(*found);
            }
        }
        let Some((tier, stored, hold)) = trail.fallback.take() else { return Err(error) };
        self.counters.stale.increment();
        let place = self.tiers[tier].name();
        tracing::warn!(kernel = %id, place, %error, "the origin does not answer, an old copy serves");
        Ok(Found { stale: true, hold, ..self.found(stored, Some(tier), search, trail) })
    }

    async fn ask(
        &self,
        tier: usize,
        id: &KernelId,
        search: Search,
        trail: &mut Trail,
    ) -> Result<Asked, LookupError> {
        let place = self.tiers[tier].as_ref();
        if let Some((_, _, hold)) = &mut trail.fallback {
            // Whoever keeps a share while he waits for another may wait for himself.
            *hold = None;
        }
        let Ok(mut hold) = self.reserve(place, id).await else {
            trail.note(place.name(), StepOutcome::NoRoom, 0);
            trail.passed.push(tier);
            return Ok(Asked::Next);
        };
        trail.asked.push(tier);
        let start = self.clock.now();
        let answer = place.get(id).await;
        let us = micros(self.clock.now() - start);
        match answer {
            Ok(Answer::Hit(stored)) => {
                self.routes.record_hit(tier, id, stored.bytes.len(), us);
                hold.iter_mut().for_each(|hold| hold.shrink_to(stored.bytes.len() as u64));
                let hold = hold.map(Arc::new);
                let step = trail.note(place.name(), StepOutcome::Hit, us);
                match self.judge(id, stored, search, trail).await? {
                    Worth::Current(stored) => {
                        let found = self.found(stored, Some(tier), search, trail);
                        Ok(Asked::Found(Box::new(Found { hold, ..found })))
                    }
                    Worth::Confirmed(stored) => {
                        // Its copy has the old date: it is to be written anew.
                        trail.wanting.push(tier);
                        let found = self.found(stored, Some(tier), search, trail);
                        Ok(Asked::Found(Box::new(Found { holder: None, hold, ..found })))
                    }
                    Worth::Outdated(stored) => {
                        trail.steps[step].outcome = StepOutcome::Outdated;
                        self.fall_back_on(tier, id, stored, hold, trail);
                        Ok(Asked::Outdated)
                    }
                    Worth::Unconfirmed(stored) => {
                        trail.steps[step].outcome = StepOutcome::Outdated;
                        self.fall_back_on(tier, id, stored, hold, trail);
                        Ok(Asked::Next)
                    }
                }
            }
            Ok(Answer::Negative(negative)) if self.believes(&negative) => {
                trail.note(place.name(), StepOutcome::Negative, us);
                self.remember_here(id, search, negative.clone());
                Err(self.known(id, negative))
            }
            Ok(Answer::Negative(_)) => {
                trail.note(place.name(), StepOutcome::Outdated, us);
                trail.wanting.push(tier);
                Ok(Asked::Next)
            }
            Ok(Answer::Miss) => {
                trail.note(place.name(), StepOutcome::Miss, us);
                trail.wanting.push(tier);
                trail.misses.push((tier, us));
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

    /// Room for what a tier may give, where that is bounded.
    async fn reserve(&self, tier: &dyn Tier, id: &KernelId) -> Result<Option<Reservation>, FetchBudgetSpent> {
        let Some(ReadLimit { budget, most_bytes }) = &self.reading else { return Ok(None) };
        let reserved =
            budget.reserve(tier.largest_bytes().map_or(*most_bytes, |own| own.min(*most_bytes))).await;
        let reserved = reserved.inspect_err(
            |error| tracing::warn!(kernel = %id, tier = tier.name(), %error, "cache tier passed by"),
        );
        reserved.map(Some)
    }

    /// What was found, and who is to be told.
    fn found(&self, stored: Stored, holder: Option<usize>, search: Search, trail: &Trail) -> Found {
        for &(tier, us) in &trail.misses {
            self.routes.record_miss(tier, stored.bytes.len(), us);
        }
        let mut wanting = trail.wanting.clone();
        wanting
            .extend(trail.old.iter().filter(|tier| Some(**tier) != holder && !trail.wanting.contains(tier)));
        // Where one that nodes share had it, the node's own are to have it too; and whoever was passed by, or it
        // would have nothing when it is tried again.
        let shared = holder.is_some_and(|holder| self.tiers[holder].shared());
        let unasked = |tier: &usize| {
            let wanted = trail.passed.contains(tier) || (shared && !self.tiers[*tier].shared());
            wanted && !trail.asked.contains(tier) && !wanting.contains(tier)
        };
        Found {
            place: holder.map(|holder| self.tiers[holder].name().to_owned()).unwrap_or_default(),
            steps: trail.steps.clone(),
            stale: false,
            unasked: (0..self.tiers.len()).filter(unasked).collect(),
            wanting,
            holder,
            search,
            stored,
            hold: None,
        }
    }

    /// Keeps a copy in mind for the case that nobody has a better one.
    fn fall_back_on(&self, tier: usize, id: &KernelId, stored: Stored, hold: Hold, trail: &mut Trail) {
        trail.old.push(tier);
        let known = trail.entry.as_ref().and_then(|entry| entry.checksum);
        let is_other = known.is_some_and(|checksum| checksum != stored.digest);
        if !self.options.serve_stale || is_other || self.forgotten.is_older(id, stored.confirmed_unix_ms) {
            return;
        }
        let newer =
            |(_, other, _): &(usize, Stored, Hold)| stored.confirmed_unix_ms > other.confirmed_unix_ms;
        if trail.fallback.as_ref().is_none_or(newer) {
            trail.fallback = Some((tier, stored, hold));
        }
    }

    /// Whether the origin's word on a copy is recent, and no older than what was forgotten; a date in the future,
    /// after the clock was set back, counts by its distance too.
    fn is_fresh(&self, id: &KernelId, stored: &Stored) -> bool {
        let age_ms = self.clock.unix_ms().abs_diff(stored.confirmed_unix_ms);
        u128::from(age_ms) <= self.options.fresh_for.as_millis()
            && !self.forgotten.is_older(id, stored.confirmed_unix_ms)
            && !self.forgotten.is_doubted(stored.confirmed_unix_ms)
    }

    /// Says what a copy is worth; for an old one the origin is asked, unless it has been.
    async fn judge(
        &self,
        id: &KernelId,
        stored: Stored,
        search: Search,
        trail: &mut Trail,
    ) -> Result<Worth, LookupError> {
        let Some(source) = &self.source else { return Ok(Worth::Current(stored)) };
        let is_told = trail.entry.as_ref().is_some_and(|entry| entry.checksum.is_some());
        if !is_told && self.is_fresh(id, &stored) {
            return Ok(Worth::Current(stored));
        }
        let entry = match trail.entry.clone() {
            Some(entry) => entry,
            None if trail.down.is_some() => return Ok(Worth::Unconfirmed(stored)),
            None => {
                self.counters.confirmations.increment();
                let start = self.clock.now();
                let entry = source.entry(id).await;
                let outcome = if entry.is_ok() { StepOutcome::Hit } else { StepOutcome::Failed };
                trail.note(&format!("{}.metadata", source.name()), outcome, micros(self.clock.now() - start));
                match entry {
                    Ok(entry) => trail.entry.insert(Arc::new(entry)).clone(),
                    Err(fault) if fault.is_withdrawal() => {
                        self.counters.source_absences.increment();
                        self.remember(id, search, fault.as_ref());
                        return Err(LookupError::Source { id: id.clone(), fault });
                    }
                    Err(fault) => {
                        self.counters.source_failures.increment();
                        trail.down = Some(fault);
                        return Ok(Worth::Unconfirmed(stored));
                    }
                }
            }
        };
        Ok(match entry.checksum {
            Some(checksum) if checksum == stored.digest => {
                let confirmed_unix_ms = self.clock.unix_ms();
                Worth::Confirmed(Stored { metadata: entry, confirmed_unix_ms, ..stored })
            }
            // Where an entry says nothing of the bytes, only the bytes themselves can tell.
            _ => Worth::Outdated(stored),
        })
    }

    /// Asks the origin about a kernel that serves from an old copy. Who asks does not look it up: nothing of it counts
    /// as a use.
    ///
    /// # Errors
    /// Why the origin does not say.
    pub async fn confirm(&self, id: &KernelId, digest: Digest) -> Result<Word, SharedFault> {
        let Some(source) = &self.source else { return Ok(Word::Same) };
        self.counters.confirmations.increment();
        let known = match source.entry(id).await {
            // Where the entry says nothing of the bytes, only the bytes themselves can tell.
            Ok(Metadata { checksum: None, .. }) => {
                source.fetch(id).await.map(|fetched| fetched.stored.digest)
            }
            Ok(Metadata { checksum: Some(checksum), .. }) => Ok(checksum),
            Err(fault) => Err(fault),
        };
        match known {
            Ok(known) if known == digest => Ok(Word::Same),
            Ok(_) => Ok(Word::Other),
            Err(fault) if fault.is_withdrawal() => Ok(Word::Other),
            Err(fault) => Err(fault),
        }
    }

    /// `outdated` says that no tier has what the origin has.
    async fn fetch(
        &self,
        id: &KernelId,
        search: Search,
        outdated: bool,
        trail: &mut Trail,
    ) -> Result<Found, LookupError> {
        let Some(source) = &self.source else {
            return Err(LookupError::NoSource { id: id.clone() });
        };
        let start = self.clock.now();
        match source.fetch(id).await {
            Ok(fetched) => {
                let us = micros(self.clock.now() - start);
                self.routes.record_hit(self.routes.source(), id, fetched.stored.bytes.len(), us);
                let place = source.name().to_owned();
                let Fetched { stored, metadata_us, artifact_us, checksum_us, hold } = fetched;
                for (part, us) in
                    [("metadata", metadata_us), ("artifact", artifact_us), ("checksum", checksum_us)]
                {
                    trail.note(&format!("{place}.{part}"), StepOutcome::Hit, us);
                }
                if outdated {
                    trail.wanting = (0..self.tiers.len()).collect();
                }
                Ok(Found { place, hold, ..self.found(stored, None, search, trail) })
            }
            Err(fault) => {
                let absent = fault.class() == ErrorClass::NotFound;
                if absent { &self.counters.source_absences } else { &self.counters.source_failures }
                    .increment();
                trail.note(source.name(), StepOutcome::Failed, micros(self.clock.now() - start));
                self.remember(id, search, fault.as_ref());
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
    /// Notes a step and says where it stands.
    fn note(&mut self, place: &str, outcome: StepOutcome, us: u64) -> usize {
        self.steps.push(Step { place: place.to_owned(), outcome, us });
        self.steps.len() - 1
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
