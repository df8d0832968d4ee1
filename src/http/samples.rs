//! From the daemon's reports to numbers.

use std::collections::BTreeMap;

use super::metric::Metric;
use crate::{
    config::ByteSize,
    guard::BreakerState,
    wire::{BreakerReport, CacheReport, FleetReport, RouteReport, StatusReport, TierReport},
};

/// A number as it is written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Number {
    Whole(u64),
    Real(f64),
}

impl From<u64> for Number {
    fn from(number: u64) -> Self {
        Self::Whole(number)
    }
}

impl From<u32> for Number {
    fn from(number: u32) -> Self {
        Self::Whole(number.into())
    }
}

impl From<bool> for Number {
    fn from(holds: bool) -> Self {
        Self::Whole(holds.into())
    }
}

impl From<f64> for Number {
    fn from(number: f64) -> Self {
        Self::Real(number)
    }
}

/// The numbers of one scrape, by metric and by the values of its labels.
#[derive(Debug, Default)]
pub(super) struct Samples(BTreeMap<Metric, BTreeMap<Vec<String>, Number>>);

impl Samples {
    /// All that the reports say. Without the cache's, its metrics are missing.
    pub(super) fn of(status: &StatusReport, cache: Option<&CacheReport>, ready: bool) -> Self {
        let mut samples = Self::default();
        samples.put(Metric::BuildInfo, &[&status.version], 1_u64);
        samples.put(Metric::Ready, &[], ready);
        samples.put(Metric::Uptime, &[], status.uptime_seconds);
        samples.put(Metric::ResidentBytes, &[], status.resident_bytes);
        samples.put(Metric::ScrapeComplete, &[], cache.is_some());
        for gpu in &status.device.gpus {
            samples.put(Metric::DeviceMemory, &[&gpu.name, "budget"], gpu.budget_bytes);
            if let Some(used_bytes) = gpu.used_bytes {
                samples.put(Metric::DeviceMemory, &[&gpu.name, "used"], used_bytes);
            }
            samples.put(Metric::DeviceSessions, &[&gpu.name], gpu.sessions);
        }
        samples.sessions(status);
        for actor in &status.actors {
            samples.put(Metric::ActorRunning, &[&actor.name], actor.state == "running");
            samples.put(Metric::ActorRestarts, &[&actor.name], actor.restarts);
        }
        status.breakers.iter().for_each(|breaker| samples.breaker(breaker));
        samples.put(Metric::WarmingPlanned, &[], status.warming.planned);
        samples.put(Metric::WarmingLoaded, &[], status.warming.loaded);
        samples.put(Metric::WarmingFailed, &[], status.warming.failed);
        samples.put(Metric::WarmingDone, &[], status.warming.done);
        if let Some(cache) = cache {
            samples.cache(cache);
        }
        samples
    }

    /// The numbers of a metric by the values of its labels; none where there are none.
    pub(super) fn get(&self, metric: Metric) -> Option<&BTreeMap<Vec<String>, Number>> {
        self.0.get(&metric)
    }

    /// Notes a number. The first of one name and the same labels stands: a series must not come twice, and two
    /// endpoints written alike in the configuration are one dependency.
    fn put(&mut self, metric: Metric, labels: &[&str], number: impl Into<Number>) {
        debug_assert_eq!(labels.len(), metric.family().labels.len(), "{metric:?}");
        let labels = labels.iter().map(|value| (*value).to_owned()).collect();
        self.0.entry(metric).or_default().entry(labels).or_insert(number.into());
    }

    fn sessions(&mut self, status: &StatusReport) {
        let sum =
            |number: fn(&crate::wire::SessionReport) -> u64| status.sessions.iter().map(number).sum::<u64>();
        self.put(Metric::Sessions, &[], status.sessions.len() as u64);
        self.put(Metric::Layers, &[], sum(|session| session.layers.into()));
        self.put(Metric::LiveSeeds, &[], sum(|session| session.live_seeds.into()));
        self.put(Metric::Tickets, &[], sum(|session| session.tickets.into()));
        self.put(Metric::SavedBytes, &[], sum(|session| session.saved_bytes));
        self.put(Metric::ArenaBytes, &[], sum(|session| session.arena_bytes));
        self.put(Metric::SessionsOpened, &[], status.totals.sessions);
        self.put(Metric::Passes, &["forward"], status.totals.forward_passes);
        self.put(Metric::Passes, &["backward"], status.totals.backward_passes);
        for step in &status.events.transitions {
            self.put(Metric::SeedTransitions, &[step.from.as_str(), step.to.as_str()], step.count);
        }
        self.put(Metric::EventsTold, &[], status.events.told);
        self.put(Metric::EventsLost, &[], status.events.lost);
        self.put(Metric::Watchers, &[], status.events.watchers);
        self.put(Metric::RefusedPasses, &[], status.totals.refused_passes);
        self.put(Metric::ComputeSeconds, &[], status.totals.compute_us as f64 / 1e6);
        self.put(Metric::TurnWaitSeconds, &[], status.totals.turn_wait_us as f64 / 1e6);
        self.put(Metric::TurnPlaces, &[], status.turns.places);
        self.put(Metric::PassesRunning, &[], status.turns.running);
        self.put(Metric::PassesWaiting, &[], status.turns.waiting);
        self.put(Metric::SupplyWaits, &[], status.totals.supply_waits);
        self.put(Metric::PassPlans, &[], status.totals.pass_plans);
        if let Some(records) = &status.records {
            self.put(Metric::FailureRecords, &[], records.written);
            for (reason, count) in &records.dropped {
                self.put(Metric::FailureRecordsDropped, &[reason], *count);
            }
        }
    }

    fn breaker(&mut self, breaker: &BreakerReport) {
        let name = breaker.name.as_str();
        for (state, transitions) in [
            (BreakerState::Closed, breaker.closed),
            (BreakerState::Open, breaker.opened),
            (BreakerState::HalfOpen, breaker.half_opened),
        ] {
            let state = state.as_str();
            self.put(Metric::BreakerState, &[name, state], breaker.state == state);
            self.put(Metric::BreakerTransitions, &[name, state], transitions);
        }
        self.put(Metric::BreakerRefused, &[name], breaker.refused);
        let retry_after_ms = breaker.retry_after_ms.unwrap_or(0);
        self.put(Metric::BreakerRetryAfter, &[name], retry_after_ms as f64 / 1e3);
        self.put(Metric::BreakerFailures, &[name], breaker.failures);
    }

    fn cache(&mut self, cache: &CacheReport) {
        cache.tiers.iter().for_each(|tier| self.tier(tier));
        cache.routes.iter().for_each(|route| self.route(route));
        if let Some(fleet) = &cache.fleet {
            self.fleet(fleet);
        }
        for (from, budget) in [("origin", &cache.fetching), ("tiers", &cache.reading)] {
            self.put(Metric::FetchingBytes, &[from], budget.bytes);
            self.put(Metric::FetchingLimitBytes, &[from], budget.limit_bytes);
            self.put(Metric::FetchesWaiting, &[from], budget.waiting);
            self.put(Metric::FetchesRefused, &[from], budget.refused);
        }
        // Memory's alone: it comes first.
        self.put(Metric::CacheOverruns, &[], cache.tiers.first().map_or(0, |memory| memory.overruns));
        let lookups = &cache.lookups;
        self.put(Metric::CacheLookups, &["found"], lookups.found);
        self.put(Metric::CacheLookups, &["not_found"], lookups.not_found);
        self.put(Metric::CacheLookups, &["joined"], lookups.joined);
        self.put(Metric::CacheLookupNegativeHits, &[], lookups.negative_hits);
        self.put(Metric::CacheLookupsInFlight, &[], lookups.in_flight);
        self.put(Metric::CacheConfirmations, &[], lookups.confirmations);
        let offers = &cache.offers;
        for (result, count) in [
            ("taken_in", offers.taken_in),
            ("known", offers.known),
            ("refused", offers.refused),
            ("failed", offers.failed),
        ] {
            self.put(Metric::Offers, &[result], count);
        }
        self.put(Metric::CacheStale, &[], cache.stale);
        self.put(Metric::CacheNegatives, &[], cache.negatives);
        self.put(Metric::CacheWritesSkipped, &[], cache.writes_skipped);
    }

    fn tier(&mut self, tier: &TierReport) {
        let name = tier.name.as_str();
        for (metric, count) in [
            (Metric::CacheHits, tier.hits),
            (Metric::CacheMisses, tier.misses),
            (Metric::CacheErrors, tier.errors),
            (Metric::CacheCorrupt, tier.corrupt),
            (Metric::CacheNegativeHits, tier.negative_hits),
            (Metric::CacheAdmissions, tier.admissions),
            (Metric::CacheEvictions, tier.evictions),
            (Metric::CachePassedOver, tier.passed_over),
        ] {
            self.put(metric, &[name], count);
        }
        for (metric, held) in [
            (Metric::CacheEntries, tier.entries),
            (Metric::CacheBytes, tier.bytes),
            (Metric::CacheLimitBytes, tier.limit_bytes),
        ] {
            if let Some(held) = held {
                self.put(metric, &[name], held);
            }
        }
    }

    fn route(&mut self, route: &RouteReport) {
        let class =
            route.up_to_bytes.map_or_else(|| "larger".to_owned(), |bytes| ByteSize(bytes).to_string());
        let labels = [route.place.as_str(), class.as_str()];
        self.put(Metric::RouteBypassed, &labels, route.passed_by);
        self.put(Metric::RouteBypasses, &labels, route.passes);
        self.put(Metric::RouteSeconds, &labels, route.mean_us as f64 / 1e6);
    }

    fn fleet(&mut self, fleet: &FleetReport) {
        self.put(Metric::FleetListening, &[], fleet.listening);
        self.put(Metric::FleetAnnounced, &[], fleet.announced);
        self.put(Metric::FleetHeard, &[], fleet.heard);
        self.put(Metric::FleetReconnects, &[], fleet.reconnects);
        self.put(Metric::FleetGaps, &[], fleet.gaps);
    }
}
