//! `kasmina status`, `seeds`, `cache`: what a running daemon says of itself.

use std::path::PathBuf;

use serde::Serialize;

use super::{
    CliError, Exit,
    device::device_text,
    table::{self, bytes, micros, say},
};
use crate::{
    client::Operator,
    wire::{
        CacheReport, FetchingReport, FleetReport, LeavingKernel, LoadingReport, LookupReport, RecoveryReport,
        RouteReport, SeedReport, WarmReport,
    },
};

/// Which daemon to ask, and how to print.
#[derive(Debug)]
pub struct OperatorOptions {
    /// The daemon's control socket.
    pub control_socket: PathBuf,
    /// Whether to print JSON.
    pub json: bool,
}

impl OperatorOptions {
    pub(super) fn connect(&self) -> Result<Operator, CliError> {
        Ok(Operator::connect(&self.control_socket)?)
    }

    /// Prints a report as JSON if that is asked for, else by the function.
    pub(super) fn show<T: Serialize>(&self, report: &T, print: impl FnOnce(&T)) -> Result<Exit, CliError> {
        if self.json {
            table::say_json(report)?;
        } else {
            print(report);
        }
        Ok(Exit::Ok)
    }
}

/// Prints how the daemon does.
///
/// # Errors
/// [`CliError::Client`] when it does not answer.
pub fn status(options: &OperatorOptions) -> Result<Exit, CliError> {
    let report = options.connect()?.status()?;
    options.show(&report, |report| {
        say(&format!(
            "kasminad {}, pid {}, {}, up {} s, {} resident\n",
            report.version,
            report.pid,
            report.phase,
            report.uptime_seconds,
            bytes(report.resident_bytes),
        ));
        let warming = &report.warming;
        if warming.planned > 0 || warming.planning {
            say(&format!("{}\n", warming_text(warming)));
        }
        say(&format!("\n{}\n", device_text(&report.device)));
        let rows = report
            .actors
            .iter()
            .map(|a| vec![a.name.clone(), a.state.clone(), a.restarts.to_string()])
            .collect::<Vec<_>>();
        table::print(&["ACTOR", "STATE", " RESTARTS"], &rows);
        say("\n");
        let rows: Vec<_> = report
            .breakers
            .iter()
            .map(|b| {
                let retry = b.retry_after_ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms} ms"));
                vec![
                    b.name.clone(),
                    b.state.clone(),
                    b.failures.to_string(),
                    b.opened.to_string(),
                    b.refused.to_string(),
                    retry,
                    b.cause.clone().unwrap_or_else(|| "-".to_owned()),
                ]
            })
            .collect();
        table::print(&["BREAKER", "STATE", " FAILURES", " OPENED", " REFUSED", " RETRY IN", "WHY"], &rows);
        say("\n");
        let rows: Vec<_> = report
            .sessions
            .iter()
            .map(|s| {
                vec![
                    s.session.to_string(),
                    s.client.clone(),
                    s.pid.to_string(),
                    s.layers.to_string(),
                    s.live_seeds.to_string(),
                    s.tickets.to_string(),
                    bytes(s.saved_bytes),
                    s.passes.to_string(),
                ]
            })
            .collect();
        table::print(
            &[" SESSION", "CLIENT", " PID", " LAYERS", " LIVE", " TICKETS", " SAVED", " PASSES"],
            &rows,
        );
    })
}

fn warming_text(warming: &WarmReport) -> String {
    let state = if warming.done { "warmed" } else { "warming" };
    let WarmReport { planned, loaded, failed, retrying, .. } = warming;
    let mut text = format!("{state}: {loaded} of {planned} kernels, {failed} failed");
    if *retrying > 0 {
        text += &format!(", {retrying} not reached and tried again");
    }
    if warming.planning {
        text += ", what was used most is not known yet";
    }
    text
}

/// Prints every seed of every session.
///
/// # Errors
/// [`CliError::Client`] when the daemon does not answer.
pub fn seeds(options: &OperatorOptions) -> Result<Exit, CliError> {
    let report = options.connect()?.seeds()?;
    options.show(&report, |report| {
        let rows: Vec<_> = report
            .seeds
            .iter()
            .map(|s| {
                vec![
                    format!("{}/{}/{}", s.session, s.layer, s.seed),
                    s.layer_name.clone(),
                    s.state.to_string(),
                    s.kernel.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
                    alpha_text(s),
                    s.stats.executions.to_string(),
                    s.stats.failures.total().to_string(),
                    micros(s.stats.p50_us),
                    micros(s.stats.p99_us),
                ]
            })
            .collect();
        let headings = ["SEED", "LAYER", "STATE", "KERNEL", " ALPHA", " PASSES", " FAILED", " P50", " P99"];
        table::print(&headings, &rows);
        for seed in &report.seeds {
            if let Some(LoadingReport { kernel, stage, .. }) = &seed.loading {
                say(&format!("{}/{}/{}: {stage} {kernel}\n", seed.session, seed.layer, seed.seed));
            }
        }
        for seed in &report.seeds {
            if let Some(recovery) = &seed.recovery {
                say(&format!("{}/{}/{}: {}\n", seed.session, seed.layer, seed.seed, recovery_text(recovery)));
            }
        }
        for seed in report.seeds.iter().filter(|seed| seed.last_error.is_some()) {
            if let Some(error) = &seed.last_error {
                say(&format!("{}/{}/{}: {}\n", seed.session, seed.layer, seed.seed, error));
            }
        }
    })
}

/// A blend factor, and where it goes.
fn alpha_text(seed: &SeedReport) -> String {
    match seed.target {
        Some(target) => format!("{:.3} -> {target:.3} in {}", seed.alpha, seed.steps_left),
        None => format!("{:.3}", seed.alpha),
    }
}

fn recovery_text(recovery: &RecoveryReport) -> String {
    let RecoveryReport { kernel, attempt, attempts, retry_after_ms } = recovery;
    let when = retry_after_ms.map_or_else(|| "under way".to_owned(), |ms| format!("in {ms} ms"));
    format!("{kernel} comes back, attempt {attempt} of {attempts} {when}")
}

/// Prints what the tiers hold and how they did.
///
/// # Errors
/// [`CliError::Client`] when the daemon does not answer.
pub fn cache(options: &OperatorOptions) -> Result<Exit, CliError> {
    let report = options.connect()?.cache()?;
    options.show(&report, |report| {
        let optional = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
        let sized = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), bytes);
        let rows: Vec<_> = report
            .tiers
            .iter()
            .map(|t| {
                vec![
                    t.name.clone(),
                    t.hits.to_string(),
                    t.misses.to_string(),
                    t.errors.to_string(),
                    t.corrupt.to_string(),
                    t.evictions.to_string(),
                    optional(t.entries),
                    sized(t.bytes),
                    sized(t.limit_bytes),
                ]
            })
            .collect();
        let headings =
            ["TIER", " HITS", " MISSES", " ERRORS", " CORRUPT", " EVICTED", " KERNELS", " BYTES", " LIMIT"];
        table::print(&headings, &rows);
        for tier in &report.tiers {
            if let Some(error) = &tier.error {
                say(&format!("{}: {error}\n", tier.name));
            }
        }
        say(&format!("\n{}\n", below_memory(report)));
        for kernel in &report.leaving {
            say(&format!("leaving: {}\n", leaving_text(kernel)));
        }
        if let Some(memory) = report.tiers.first().filter(|tier| tier.overruns > 0) {
            let times = memory.overruns;
            say(&format!("memory has grown past its limit {times} times while all of it was in use\n"));
        }
        let rows: Vec<_> = report
            .kernels
            .iter()
            .map(|k| {
                let digest = k.digest.chars().take(12).collect();
                vec![
                    k.kernel.to_string(),
                    digest,
                    bytes(k.bytes),
                    k.holders.to_string(),
                    if k.pinned { "yes" } else { "no" }.to_owned(),
                    k.hits.to_string(),
                    k.plans.to_string(),
                    table::span(k.age_ms),
                    table::span(k.idle_ms),
                ]
            })
            .collect();
        let headings = ["KERNEL", "SHA256", " BYTES", " HELD", "PINNED", " HITS", " PLANS", " AGE", " IDLE"];
        table::print(&headings, &rows);
        if !report.routes.is_empty() {
            say("\n");
            let row = |r: &RouteReport| {
                let up_to = r.up_to_bytes.map_or_else(|| "larger".to_owned(), bytes);
                let now = if r.passed_by { "passed by" } else { "asked" }.to_owned();
                vec![
                    r.place.clone(),
                    up_to,
                    micros(r.mean_us as f64),
                    r.samples.to_string(),
                    now,
                    r.passes.to_string(),
                ]
            };
            let rows: Vec<_> = report.routes.iter().map(row).collect();
            table::print(&["PLACE", " UP TO", " HIT TAKES", " HITS", "NOW", " PASSED BY"], &rows);
        }
    })
}

/// A kernel that goes when those who use it let go.
pub(super) fn leaving_text(kernel: &LeavingKernel) -> String {
    let LeavingKernel { kernel, bytes: size, holders, leaving_ms } = kernel;
    let (size, since) = (bytes(*size), table::span(*leaving_ms));
    format!("{kernel}, {size}, forgotten {since} ago and still used by {holders}")
}

/// What look-ups below memory came to, and how the node stands in its fleet.
fn below_memory(report: &CacheReport) -> String {
    let LookupReport { found, not_found, joined, in_flight, .. } = report.lookups;
    let (stale, negatives, skipped) = (report.stale, report.negatives, report.writes_skipped);
    let mut text = format!(
        "look-ups below memory: {found} found, {not_found} not, {joined} waited for another's, {in_flight} under way\n\
         old copies served: {stale}; remembered as not to be had: {negatives}; writes left out: {skipped}\n"
    );
    for (place, budget) in [("the origin", &report.fetching), ("tiers", &report.reading)] {
        let FetchingReport { bytes: fetching, limit_bytes, waiting, refused } = *budget;
        text += &format!(
            "on their way from {place}: {} of {}, {waiting} wait, {refused} waited in vain\n",
            bytes(fetching),
            bytes(limit_bytes)
        );
    }
    if let Some(FleetReport { listening, announced, heard, reconnects, gaps }) = report.fleet {
        let ear = if listening { "listening" } else { "not listening" };
        text += &format!(
            "fleet: {ear}, {announced} announced, {heard} heard, {reconnects} times listened anew, {gaps} gaps\n"
        );
    }
    text
}
