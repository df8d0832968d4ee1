//! From settings to actors.

use std::sync::{Arc, Mutex};

use tokio::sync::mpsc;

use super::{
    DaemonError,
    device::ChosenDevice,
    tiers::{Tiers, listen_to_others, tiers},
};
use crate::{
    actor::{
        Events, FetcherSource, Holders, KernelCache, KernelCacheParts, Kernels, Supervisor, SupervisorParts,
        UrzaFetcher, Validator, WarmPlan, Warming,
        base::{Child, Handle, RestartPolicy, Supervised},
    },
    backoff::{Backoff, Jitter},
    cache::{Budget, DeviceCache, FetchBudget, Lookup, LookupOptions, SingleFlight, Source},
    clock::{Clock, SystemClock},
    config::{Config, OriginKind},
    engine::{EngineConfig, Holdings, Kernel, Ledgers, QuotaLimits, RecoveryPolicy, Turns, TurnsSettings},
    id::KernelId,
    origin::{DirectoryOptions, DirectoryOrigin, GuardPolicy, Guarded, UrzaOptions, UrzaOrigin},
    record::{Recorder, RecorderOptions},
    validation::Policy,
    wire::SessionLimits,
};

/// Requests that each actor takes at a time.
const UNDER_WAY: usize = 512;

/// Handles to everything that runs.
#[derive(Debug)]
pub(super) struct Wiring {
    pub(super) supervisor: Handle<Supervisor>,
    pub(super) cache: Handle<KernelCache>,
    pub(super) validator: Handle<Validator>,
    pub(super) events: Events,
    pub(super) recorder: Option<Arc<Recorder>>,
    pub(super) parts: SupervisorParts,
}

/// Makes every part by the settings. Nothing runs yet.
pub(super) async fn wire(
    config: &Config,
    device: ChosenDevice,
    panic_in: Option<KernelId>,
) -> Result<Wiring, DaemonError> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let (exits_in, exits) = mpsc::unbounded_channel();
    let policy = restart_policy(config);
    let supervisor = Handle::new("supervisor", UNDER_WAY);
    let (cache, fetcher, validator) = (
        Handle::new("kernel_cache", UNDER_WAY),
        Handle::new("urza_fetcher", UNDER_WAY),
        Handle::new("validator", UNDER_WAY),
    );

    let reporter = device.reporter();
    let devices = device.devices;
    let engine = Arc::new(engine_config(config, panic_in));
    let recorder = recorder(config, &clock)?;

    let fetching = FetchBudget::new(config.cache.max_fetch_bytes.0);
    let guarded = Arc::new(origin(config, &fetching, &clock)?);
    let source: Arc<dyn Source> = Arc::new(FetcherSource::new(Source::name(&*guarded), fetcher.clone()));
    let Tiers { tiers, databases, fleet } = tiers(config, &clock);
    if let Some(fleet) = &fleet {
        listen_to_others(fleet.clone(), cache.clone());
    }
    // Budgets of their own: a slow origin must not keep back what a tier has.
    let reading = FetchBudget::new(config.cache.max_fetch_bytes.0);
    let lookup = Lookup::new(tiers, Some(source), LookupOptions::from(config), clock.clone())
        .within(reading, config.validator.max_artifact_bytes.0);
    let device = DeviceCache::new(Budget::from(&config.cache), weigh, clock.clone());
    let holders = Arc::new(Holders::default());
    let kernels = Kernels::new(device.clone(), holders.clone(), cache.clone());
    let warm_plan = WarmPlan {
        listed: config.cache.pinned.iter().chain(&config.cache.warm).cloned().collect(),
        most_used: config.cache.warm_most_used,
        window: config.cache.warm_window,
    };
    let cache_parts = KernelCacheParts {
        device,
        holders,
        lookup: Arc::new(lookup),
        fetching: fetching.clone(),
        databases,
        fleet,
        validator: validator.clone(),
        max_offer_bytes: config.validator.max_artifact_bytes.0,
        pinned: Arc::new(Mutex::new(config.cache.pinned.iter().cloned().collect())),
        flights: Arc::new(SingleFlight::default()),
        loads: Arc::default(),
        offers: Arc::default(),
        unconfirmed: Arc::default(),
        warming: Arc::new(Warming::of(&warm_plan)),
        warm_plan: Arc::new(warm_plan),
        clock: clock.clone(),
    };

    let rules = Arc::new(Policy::from(&config.validator));
    let places = config.device.thread_count();
    let fetcher_origin = guarded.clone();
    let children: Vec<Box<dyn Child>> = vec![
        Box::new(Supervised::new(validator.clone(), policy, exits_in.clone(), move |life| {
            Validator::new(rules.clone(), places, life)
        })),
        Box::new(Supervised::new(fetcher.clone(), policy, exits_in.clone(), move |life| {
            UrzaFetcher::new(fetcher_origin.clone(), life)
        })),
        Box::new(Supervised::new(cache.clone(), policy, exits_in, move |life| {
            KernelCache::new(cache_parts.clone(), life)
        })),
    ];
    let events = Events::new(clock.clone());
    let parts = SupervisorParts {
        children,
        exits,
        handle: supervisor.clone(),
        kernels,
        fetcher,
        devices,
        device: reporter,
        engine,
        limits: session_limits(config),
        ledgers: Arc::new(Ledgers::new(quota_limits(config))),
        turns: Turns::new(turns_settings(config)),
        recorder: recorder.clone(),
        max_sessions: config.limits.max_sessions,
        spin_us: config.data_plane.spin_us(),
        clock,
        events: events.clone(),
    };
    Ok(Wiring { supervisor, cache, validator, events, recorder, parts })
}

/// The origin that the settings name, behind its breakers.
fn origin(
    config: &Config,
    fetching: &Arc<FetchBudget>,
    clock: &Arc<dyn Clock>,
) -> Result<Guarded, DaemonError> {
    match config.origin.kind {
        OriginKind::Directory => {
            let directory = Arc::new(DirectoryOrigin::new(DirectoryOptions::from(config)));
            let policy = GuardPolicy::from(&config.origin);
            let guarded = Guarded::new(directory, policy, Jitter::from_process(), clock.clone());
            Ok(guarded.within(fetching.clone(), config.validator.max_artifact_bytes.0))
        }
        OriginKind::Urza => {
            let urza = UrzaOrigin::new(UrzaOptions::from(config), clock.clone())?.within(fetching.clone());
            Ok(Guarded::by_parts(Arc::new(urza), clock.clone()))
        }
    }
}

/// Who records failing passes, where the settings name a folder for them.
fn recorder(config: &Config, clock: &Arc<dyn Clock>) -> Result<Option<Arc<Recorder>>, DaemonError> {
    let folder = &config.engine.record_failures;
    if folder.as_os_str().is_empty() {
        return Ok(None);
    }
    let max_bytes = config.engine.record_failures_max_bytes.0;
    let options = RecorderOptions { folder: folder.clone(), max_bytes };
    Ok(Some(Recorder::start(options, clock.clone())?))
}

fn restart_policy(config: &Config) -> RestartPolicy {
    RestartPolicy {
        max_restarts: config.daemon.restart_budget,
        window: config.daemon.restart_window,
        ..RestartPolicy::default()
    }
}

fn engine_config(config: &Config, panic_in: Option<KernelId>) -> EngineConfig {
    EngineConfig {
        error_threshold: config.engine.error_threshold,
        time_limit: config.engine.time_limit,
        plan_time_limit: config.validator.time_limit,
        non_finite_guard: config.engine.non_finite_guard,
        max_tickets_per_layer: config.engine.max_tickets_per_layer,
        max_plan_bytes: config.validator.max_plan_bytes.as_usize(),
        max_flops: config.validator.max_flops,
        threads: config.device.thread_count(),
        winograd: config.device.winograd,
        recovery: RecoveryPolicy {
            attempts: config.engine.recovery_attempts,
            backoff: Backoff {
                first: config.engine.recovery_backoff,
                max: config.engine.recovery_backoff_max,
                ..Backoff::default()
            },
        },
        embargo: config.engine.embargo,
        series_length: config.engine.series_length,
        series_every: config.engine.series_every,
        gradient_norm_every: config.engine.gradient_norm_every,
        panic_in,
        ..EngineConfig::default()
    }
}

fn session_limits(config: &Config) -> SessionLimits {
    let tickets = config.engine.max_tickets_per_layer.saturating_mul(config.limits.max_layers_per_session);
    SessionLimits {
        max_arena_bytes: config.data_plane.arena_bytes.0,
        max_layers: u32::try_from(config.limits.max_layers_per_session).unwrap_or(u32::MAX),
        max_seeds_per_layer: u16::try_from(config.limits.max_seeds_per_layer).unwrap_or(u16::MAX),
        max_tickets: u32::try_from(tickets).unwrap_or(u32::MAX),
        max_saved_bytes: config.limits.max_bytes_per_session.0,
    }
}

fn quota_limits(config: &Config) -> QuotaLimits {
    let limits = &config.limits;
    let tickets = config.engine.max_tickets_per_layer.saturating_mul(limits.max_layers_per_session);
    QuotaLimits {
        session: Holdings {
            sessions: 0,
            layers: limits.max_layers_per_session as u64,
            seeds: limits.max_seeds_per_session,
            tickets: tickets as u64,
            bytes: limits.max_bytes_per_session.0,
        },
        user: Holdings {
            sessions: limits.max_sessions_per_uid,
            layers: limits.max_layers_per_uid,
            seeds: limits.max_seeds_per_uid,
            tickets: limits.max_tickets_per_uid,
            bytes: limits.max_bytes_per_uid.0,
        },
    }
}

fn turns_settings(config: &Config) -> TurnsSettings {
    let places = match config.engine.concurrent_passes {
        0 => config.device.thread_count(),
        passes => passes,
    };
    let weights = config.limits.shares.iter().map(|share| (share.uid, share.weight)).collect();
    TurnsSettings { places, quantum: config.engine.turn_quantum, weights }
}

fn weigh(kernel: &Arc<Kernel>) -> u64 {
    kernel.resident_bytes() as u64
}
