//! Every metric there is: name, kind, labels, help.

/// What Prometheus does with a metric's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Only rises, and begins at zero when the daemon starts.
    Counter,
    /// Rises and falls.
    Gauge,
    /// Is always 1, for the sake of its labels.
    Info,
}

impl Kind {
    /// For the page and for tests: the encoder has words of its own.
    #[cfg(test)]
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Info => "info",
        }
    }
}

/// What is known of a metric without any number.
#[derive(Clone, Copy, Debug)]
pub(super) struct Family {
    /// As it is scraped, its suffix included.
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    /// Each has a bounded set of values: none is a kernel, a session, a layer or a user.
    pub(super) labels: &'static [&'static str],
    pub(super) help: &'static str,
}

macro_rules! metrics {
    ($($metric:ident: $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        /// A metric.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub(super) enum Metric {
            $($metric,)*
        }

        impl Metric {
            /// In the order they are scraped.
            pub(super) const ALL: &[Self] = &[$(Self::$metric,)*];

            pub(super) fn family(self) -> &'static Family {
                match self {
                    $(Self::$metric => &Family {
                        name: $name,
                        kind: Kind::$kind,
                        labels: &[$($label),*],
                        help: $help,
                    },)*
                }
            }
        }
    };
}

metrics! {
    BuildInfo: Info "kasmina_build_info" ["version"]
        "The version of the daemon.";
    Ready: Gauge "kasmina_ready" []
        "1 while the daemon takes new work, 0 while it starts or drains.";
    Uptime: Gauge "kasmina_uptime_seconds" []
        "Seconds since the daemon started.";
    ResidentBytes: Gauge "kasmina_resident_bytes" []
        "Resident memory of the daemon.";
    ScrapeComplete: Gauge "kasmina_scrape_complete" []
        "0 where the kernel cache did not answer this scrape, so that its metrics are missing.";

    BreakerState: Gauge "kasmina_breaker_state" ["dependency", "state"]
        "1 for the state the circuit breaker is in, 0 for the others.";
    BreakerTransitions: Counter "kasmina_breaker_transitions_total" ["dependency", "to"]
        "How often the circuit breaker went into a state.";
    BreakerRefused: Counter "kasmina_breaker_refused_total" ["dependency"]
        "Calls that the circuit breaker refused.";
    BreakerRetryAfter: Gauge "kasmina_breaker_retry_after_seconds" ["dependency"]
        "Seconds until an open circuit breaker lets a trial call through; 0 while it is not open.";
    BreakerFailures: Gauge "kasmina_breaker_consecutive_failures" ["dependency"]
        "Failures in a row until now.";

    CacheHits: Counter "kasmina_cache_hits_total" ["tier"]
        "Look-ups that found the kernel in the tier.";
    CacheMisses: Counter "kasmina_cache_misses_total" ["tier"]
        "Look-ups that did not find the kernel in the tier.";
    CacheErrors: Counter "kasmina_cache_errors_total" ["tier"]
        "Requests that the tier failed, corrupt copies included.";
    CacheCorrupt: Counter "kasmina_cache_corrupt_total" ["tier"]
        "Corrupt copies, which were dropped.";
    CacheNegativeHits: Counter "kasmina_cache_negative_hits_total" ["tier"]
        "Look-ups that the tier answered with: known not to be had. They are among the misses.";
    CacheAdmissions: Counter "kasmina_cache_admissions_total" ["tier"]
        "Kernels that the tier took in.";
    CacheEvictions: Counter "kasmina_cache_evictions_total" ["tier"]
        "Kernels that the tier put out.";
    CachePassedOver: Counter "kasmina_cache_passed_over_total" ["tier"]
        "Kernels too large for the tier, which it did not take in.";
    CacheOverruns: Counter "kasmina_cache_overruns_total" []
        "How often a kernel in memory grew past the limit while all else was in use.";
    CacheEntries: Gauge "kasmina_cache_entries" ["tier"]
        "Kernels that the tier holds; missing while it does not say.";
    CacheBytes: Gauge "kasmina_cache_bytes" ["tier"]
        "Bytes that the tier holds; missing while it does not say.";
    CacheLimitBytes: Gauge "kasmina_cache_limit_bytes" ["tier"]
        "The most bytes that the tier may hold; missing where it has no limit or does not say.";

    CacheLookups: Counter "kasmina_cache_lookups_total" ["outcome"]
        "Look-ups below memory, by what they came to.";
    CacheLookupNegativeHits: Counter "kasmina_cache_lookup_negative_hits_total" []
        "Look-ups below memory that were answered from memory with: known not to be had. They are among not_found.";
    CacheLookupsInFlight: Gauge "kasmina_cache_lookups_in_flight" []
        "Look-ups below memory that are under way.";
    CacheConfirmations: Counter "kasmina_cache_confirmations_total" []
        "Old copies that the origin was asked about.";
    CacheStale: Counter "kasmina_cache_stale_total" []
        "Old copies given although the origin, asked about them, did not answer.";
    CacheNegatives: Gauge "kasmina_cache_negatives" []
        "Kernels known not to be had, remembered in memory.";
    CacheWritesSkipped: Counter "kasmina_cache_writes_skipped_total" []
        "Writes to tiers that were left out because too many were under way.";

    FetchingBytes: Gauge "kasmina_cache_fetching_bytes" ["from"]
        "Bytes of artifacts that are on their way into memory, from the origin or from tiers.";
    FetchingLimitBytes: Gauge "kasmina_cache_fetching_limit_bytes" ["from"]
        "The most such bytes.";
    FetchesWaiting: Gauge "kasmina_cache_fetches_waiting" ["from"]
        "Fetches that wait for others to end.";
    FetchesRefused: Counter "kasmina_cache_fetches_refused_total" ["from"]
        "Fetches that have waited for others in vain.";

    Offers: Counter "kasmina_offers_total" ["result"]
        "Artifacts that trainers have offered, by what became of them: taken_in, known (in memory already), refused, failed.";

    RouteBypassed: Gauge "kasmina_route_bypassed" ["tier", "size_class"]
        "1 while the tier is passed by for artifacts of this size, as slower than the next place.";
    RouteBypasses: Counter "kasmina_route_bypasses_total" ["tier", "size_class"]
        "Look-ups that passed the tier by.";
    RouteSeconds: Gauge "kasmina_route_hit_mean_seconds" ["tier", "size_class"]
        "What a hit takes, as a mean of the last ones.";

    FleetListening: Gauge "kasmina_fleet_listening" []
        "1 while the node hears what is to be forgotten everywhere; missing without a Redis.";
    FleetAnnounced: Counter "kasmina_fleet_announced_total" []
        "Kernels that the node has told the others to forget.";
    FleetHeard: Counter "kasmina_fleet_heard_total" []
        "Kernels that the node was told to forget.";
    FleetReconnects: Counter "kasmina_fleet_reconnects_total" []
        "How often the node began to listen anew.";
    FleetGaps: Counter "kasmina_fleet_gaps_total" []
        "How often the node may have missed something.";

    WarmingPlanned: Gauge "kasmina_warming_planned" []
        "Kernels to be warmed.";
    WarmingLoaded: Gauge "kasmina_warming_loaded" []
        "Kernels of them that are loaded.";
    WarmingFailed: Gauge "kasmina_warming_failed" []
        "Kernels of them that could not be loaded.";
    WarmingDone: Gauge "kasmina_warming_done" []
        "1 when warming is over.";

    DeviceMemory: Gauge "kasmina_device_memory_bytes" ["device", "state"]
        "Memory of a GPU that kernels, plans and sessions may take (budget) and have taken (used, missing while nobody counts it); missing on the processor.";
    DeviceSessions: Gauge "kasmina_device_sessions" ["device"]
        "Sessions whose kernels run on a GPU; missing on the processor.";

    Sessions: Gauge "kasmina_sessions" []
        "Sessions that are connected.";
    SessionsOpened: Counter "kasmina_sessions_opened_total" []
        "Sessions that were opened.";
    Layers: Gauge "kasmina_layers" []
        "Layers of all sessions.";
    LiveSeeds: Gauge "kasmina_live_seeds" []
        "Seeds with a kernel, of all sessions.";
    Tickets: Gauge "kasmina_tickets" []
        "Forward passes that await their backward.";
    SavedBytes: Gauge "kasmina_saved_bytes" []
        "Bytes that tickets hold.";
    ArenaBytes: Gauge "kasmina_arena_bytes" []
        "Bytes of the sessions' shared memory; pages never touched take none.";
    Passes: Counter "kasmina_passes_total" ["direction"]
        "Passes that were answered with a result, of ended sessions too.";
    SeedTransitions: Counter "kasmina_seed_transitions_total" ["from", "to"]
        "How often a seed went from one state to another; steps that none has taken are missing.";
    EventsTold: Counter "kasmina_events_total" []
        "Events of seeds, layers and sessions, whether or not anybody watched.";
    EventsLost: Counter "kasmina_events_lost_total" []
        "Events that a watcher did not get because it was too slow, over all watchers.";
    Watchers: Gauge "kasmina_watchers" []
        "Connections that watch events.";
    RefusedPasses: Counter "kasmina_refused_passes_total" []
        "Passes and releases that were refused, for want of room for a ticket mostly; of ended sessions too.";
    ComputeSeconds: Counter "kasmina_compute_seconds_total" []
        "The time that passes took from their turn to their end, of ended sessions too.";
    TurnWaitSeconds: Counter "kasmina_turn_wait_seconds_total" []
        "The time that passes have waited for their turn, of ended sessions too.";
    TurnPlaces: Gauge "kasmina_turn_places" []
        "Passes that may run at a time; as many again may run beside them.";
    PassesRunning: Gauge "kasmina_passes_running" []
        "Passes that run: those that have a place, and those of users without one that run beside.";
    PassesWaiting: Gauge "kasmina_passes_waiting" []
        "Passes that wait for a place.";
    SupplyWaits: Counter "kasmina_supply_waits_total" []
        "How often a pass came to the supply of kernels, where it might have waited. More than 0 is a defect.";
    PassPlans: Counter "kasmina_pass_plans_total" []
        "Plans that passes had to make or to wait for: for shapes that their layer has not had lately. A hot swap adds none.";

    FailureRecords: Counter "kasmina_failure_records_total" []
        "Failing passes that were recorded; missing where engine.record_failures is empty.";
    FailureRecordsDropped: Counter "kasmina_failure_records_dropped_total" ["reason"]
        "Failing passes that were not recorded, by reason; missing where engine.record_failures is empty.";

    ActorRunning: Gauge "kasmina_actor_running" ["actor"]
        "1 while the actor runs, 0 while it is down.";
    ActorRestarts: Counter "kasmina_actor_restarts_total" ["actor"]
        "How often the actor was started again after a panic.";
}
