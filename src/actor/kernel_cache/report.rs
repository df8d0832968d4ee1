//! What the cache tells an operator.

use std::time::Duration;

use super::KernelCacheParts;
use crate::{
    cache::{
        EntryStats, Eviction, FetchBudgetStats, FleetStats, InTier, LeavingStats, LookupStats, Negative,
        RouteStats, TierStats,
    },
    id::KernelId,
    wire::{
        CacheReport, CachedKernel, CopyReport, EvictionReport, FetchingReport, FleetReport, HolderReport,
        LeavingKernel, LookupReport, NegativeReport, RouteReport, RuleReport, TierReport, WhyReport,
    },
};

/// How many loads and evictions of a kernel are told.
const TOLD: usize = 8;

impl KernelCacheParts {
    pub(super) async fn report(&self) -> CacheReport {
        let mut report = self.numbers(self.lookup.stats().await);
        let mut entries = self.device.entries();
        entries.sort_by_key(|entry| entry.idle_ms);
        report.kernels = entries.into_iter().filter_map(|entry| self.cached(entry)).collect();
        report.leaving = self.device.leaving().into_iter().map(leaving_report).collect();
        report
    }

    pub(super) async fn measure(&self, patience: Duration) -> CacheReport {
        self.numbers(self.lookup.stats_within(patience).await)
    }

    fn numbers(&self, below: LookupStats) -> CacheReport {
        let mut tiers = vec![tier_report(self.device.stats())];
        let below_names: Vec<String> = below.tiers.iter().map(|stats| stats.tier.clone()).collect();
        tiers.extend(below.tiers.into_iter().map(tier_report));
        let from_origin = below.found.iter().filter(|(place, _)| !below_names.contains(place));
        tiers.push(TierReport {
            name: self.lookup.source_name().unwrap_or("origin").to_owned(),
            hits: from_origin.map(|(_, count)| count).sum(),
            misses: below.source_absences,
            errors: below.source_failures,
            ..TierReport::default()
        });
        CacheReport {
            tiers,
            kernels: Vec::new(),
            leaving: Vec::new(),
            fetching: fetching_report(self.fetching.stats()),
            reading: fetching_report(below.reading),
            routes: below.routes.into_iter().map(route_report).collect(),
            lookups: LookupReport {
                found: below.found.values().sum(),
                not_found: below.not_found,
                negative_hits: below.negative_hits,
                joined: self.flights.counts().1,
                in_flight: self.flights.in_flight() as u64,
                confirmations: below.confirmations,
            },
            fleet: self.fleet.as_ref().map(|fleet| fleet_report(fleet.stats())),
            offers: self.offers.report(),
            stale: below.stale,
            negatives: below.negatives,
            writes_skipped: below.writes_skipped,
        }
    }

    fn cached(&self, entry: EntryStats) -> Option<CachedKernel> {
        let kernel = self.device.peek(&entry.id)?;
        Some(CachedKernel {
            kernel: entry.id,
            digest: kernel.digest().to_string(),
            bytes: entry.bytes,
            holders: entry.holders,
            pinned: entry.pinned,
            age_ms: entry.age_ms,
            idle_ms: entry.idle_ms,
            hits: entry.hits,
            plans: kernel.plan_count(),
        })
    }

    pub(super) async fn explain(&self, id: KernelId) -> WhyReport {
        let now_unix_ms = self.clock.unix_ms();
        let entry = self.device.entries().into_iter().find(|entry| entry.id == id);
        let kernel = self.device.peek(&id);
        let known = self.lookup.about(&id).await;
        let resident = kernel.as_ref().and_then(|kernel| kernel.verdict());
        let stored =
            || known.iter().find_map(|(_, known)| known.as_ref().ok()?.held.as_ref()?.verdict.as_deref());
        let rules = resident.or_else(stored).map(|verdict| verdict.rules.clone()).unwrap_or_default();
        let rule = |rule: crate::validation::RuleResult| RuleReport {
            rule: rule.name,
            passed: rule.passed,
            detail: Some(rule.detail).filter(|detail| !detail.is_empty()),
        };
        let negative_report = |negative: Negative| NegativeReport {
            code: negative.code,
            reason: negative.reason,
            retry_in_ms: negative.until_unix_ms.saturating_sub(now_unix_ms).max(0).unsigned_abs(),
        };
        let copies = known.into_iter().map(|(tier, known)| match known {
            Ok(InTier { held: Some(held), .. }) => CopyReport {
                tier,
                bytes: Some(held.bytes),
                digest: Some(held.digest.to_string()),
                stored_unix_ms: Some(held.stored_unix_ms),
                used_unix_ms: held.used_unix_ms,
                confirmed_unix_ms: Some(held.confirmed_unix_ms),
                negative: None,
                error: None,
            },
            Ok(InTier { negative, .. }) => {
                CopyReport { tier, negative: negative.map(negative_report), ..CopyReport::default() }
            }
            Err(error) => CopyReport { tier, error: Some(error.to_string()), ..CopyReport::default() },
        });
        let negative = self.lookup.negative(&id).map(negative_report);
        let leaving = self.device.leaving().into_iter().filter(|leaving| leaving.id == id);
        let holders = self.holders.of(&id).into_iter().map(|(digest, holder)| HolderReport {
            session: holder.session,
            layer: holder.layer,
            seed: holder.seed,
            generation: holder.generation,
            digest: digest.to_string(),
            // The seeds know better, whom others ask.
            stage: "tickets".to_owned(),
        });
        let evictions = self.device.evictions().into_iter().rev().filter(|eviction| eviction.id == id);
        WhyReport {
            now_unix_ms,
            resident: entry.and_then(|entry| self.cached(entry)),
            leaving: leaving.map(leaving_report).collect(),
            seeds: Vec::new(),
            holders: holders.collect(),
            copies: copies.collect(),
            negative,
            loads: self.loads.of(&id, TOLD),
            evictions: evictions.take(TOLD).map(eviction_report).collect(),
            breakers: Vec::new(),
            rules: rules.into_iter().map(rule).collect(),
            kernel: id,
        }
    }
}

fn tier_report(stats: TierStats) -> TierReport {
    let answers = stats.error.is_none();
    TierReport {
        hits: stats.hits,
        misses: stats.misses + stats.negative_hits,
        errors: stats.failures + stats.corrupt,
        corrupt: stats.corrupt,
        negative_hits: stats.negative_hits,
        admissions: stats.admissions,
        passed_over: stats.passed_over,
        evictions: stats.evictions,
        overruns: stats.overruns,
        entries: answers.then_some(stats.entries),
        bytes: answers.then_some(stats.bytes),
        limit_bytes: answers.then_some(stats.max_bytes).filter(|&limit| limit > 0),
        error: stats.error,
        name: stats.tier,
    }
}

fn leaving_report(stats: LeavingStats) -> LeavingKernel {
    let LeavingStats { id, bytes, leaving_ms, holders } = stats;
    LeavingKernel { kernel: id, bytes, holders, leaving_ms }
}

fn fetching_report(stats: FetchBudgetStats) -> FetchingReport {
    let FetchBudgetStats { bytes, limit_bytes, waiting, refused } = stats;
    FetchingReport { bytes, limit_bytes, waiting, refused }
}

fn fleet_report(stats: FleetStats) -> FleetReport {
    let FleetStats { listening, announced, heard, reconnects, gaps } = stats;
    FleetReport { listening, announced, heard, reconnects, gaps }
}

fn route_report(stats: RouteStats) -> RouteReport {
    let RouteStats { place, up_to_bytes, mean_us, samples, miss_us, misses, passed_by, passes } = stats;
    RouteReport { place, up_to_bytes, mean_us, samples, miss_us, misses, passed_by, passes }
}

fn eviction_report(eviction: Eviction) -> EvictionReport {
    EvictionReport {
        reason: eviction.reason.as_str().to_owned(),
        evictor: eviction.reason.newcomer().cloned(),
        by: eviction.reason.by().map(ToString::to_string),
        kernel: eviction.id,
        bytes: eviction.bytes,
        idle_ms: eviction.idle_ms,
        at_unix_ms: eviction.at_unix_ms,
    }
}
