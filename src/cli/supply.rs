//! `kasmina evict`, `clear`, `warm`, `pin`, `unpin` and `why`: the supply of kernels, in an operator's hands.

use std::fmt::Write as _;

use super::{
    CliError, Exit, OperatorOptions,
    operator::leaving_text,
    table::{bytes, complain, micros, say, span},
};
use crate::{
    id::KernelId,
    wire::{CopyReport, EvictReport, EvictionReport, HolderReport, LoadReport, WhyReport},
};

/// Drops a kernel from memory and the tiers.
///
/// # Errors
/// [`CliError::Client`] when the daemon does not answer or refuses.
pub fn evict(options: &OperatorOptions, kernels: &[KernelId], fleet: bool) -> Result<Exit, CliError> {
    let mut operator = options.connect()?;
    let mut total = EvictReport::default();
    for kernel in kernels {
        match operator.evict(kernel.clone(), fleet) {
            Ok(report) => {
                total.evicted.extend(report.evicted);
                total.in_use.extend(report.in_use);
                total.condemned.extend(report.condemned);
                total.freed_bytes += report.freed_bytes;
                total.failures.extend(report.failures.iter().map(|failure| format!("{kernel}: {failure}")));
            }
            // Those before it are gone, with --fleet everywhere: what became of them is said all the same.
            Err(error) if kernels.len() > 1 => total.failures.push(format!("{kernel}: {error}")),
            Err(error) => return Err(error.into()),
        }
    }
    show_evicted(options, &total)
}

/// Drops every kernel that no seed uses; that others stay is no failure.
///
/// # Errors
/// [`CliError::Client`] when the daemon does not answer or refuses.
pub fn clear(options: &OperatorOptions, tiers: bool) -> Result<Exit, CliError> {
    let report = options.connect()?.clear(tiers)?;
    show_evicted(options, &report)?;
    Ok(if report.failures.is_empty() { Exit::Ok } else { Exit::No })
}

fn show_evicted(options: &OperatorOptions, report: &EvictReport) -> Result<Exit, CliError> {
    options.show(report, |report| {
        report.evicted.iter().for_each(|kernel| say(&format!("dropped  {kernel}\n")));
        let goes = |kernel| format!("in use   {kernel}, dropped when the last seed here leaves it\n");
        report.condemned.iter().for_each(|kernel| say(&goes(kernel)));
        let stays = |kernel| format!("in use   {kernel}, by a seed or pinned: kasmina why {kernel}\n");
        report.in_use.iter().for_each(|kernel| say(&stays(kernel)));
        let again =
            |failure| format!("failed   {failure}: a copy may be left, say it again when that is mended\n");
        report.failures.iter().for_each(|failure| say(&again(failure)));
        let EvictReport { evicted, in_use, condemned, failures, freed_bytes } = report;
        if evicted.is_empty() && in_use.is_empty() && condemned.is_empty() && failures.is_empty() {
            say("nothing was here\n");
        } else {
            say(&format!("{} freed\n", bytes(*freed_bytes)));
        }
    })?;
    Ok(if report.in_use.is_empty() && report.failures.is_empty() { Exit::Ok } else { Exit::No })
}

/// Begins to load kernels.
///
/// # Errors
/// [`CliError::Client`] when the daemon does not answer or refuses.
pub fn warm(options: &OperatorOptions, kernels: Vec<KernelId>) -> Result<Exit, CliError> {
    let asked = kernels.len();
    let report = options.connect()?.warm(kernels)?;
    options.show(&report, |_| {
        let what = if asked == 1 { "1 kernel".to_owned() } else { format!("{asked} kernels") };
        say(&format!("loading {what}; kasmina status tells how it goes on\n"));
    })
}

/// Loads a kernel and keeps it in memory, or lets it go.
///
/// # Errors
/// [`CliError::Client`] when the daemon does not answer or refuses.
pub fn pin(options: &OperatorOptions, kernels: &[KernelId], pinned: bool) -> Result<Exit, CliError> {
    let mut operator = options.connect()?;
    let mut exit = Exit::Ok;
    for kernel in kernels {
        let done = if pinned { operator.pin(kernel.clone()) } else { operator.unpin(kernel.clone()) };
        match done {
            Ok(()) => {}
            Err(error) if kernels.len() > 1 => {
                complain(&format!("{kernel}: {error}"));
                exit = Exit::Daemon;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(exit)
}

/// Prints all that is known of a kernel's supply.
///
/// # Errors
/// [`CliError::Client`] when the daemon does not answer or refuses.
pub fn why(options: &OperatorOptions, subject: &str) -> Result<Exit, CliError> {
    let report = options.connect()?.why(subject)?;
    options.show(&report, |report| say(&page(report)))
}

/// The report as one page.
fn page(report: &WhyReport) -> String {
    let mut page = format!("kernel {}\n", report.kernel);
    let mut line = |text: String| {
        // Writing to a text does not fail.
        let _ = writeln!(page, "{text}");
    };
    let ago = |unix_ms: i64| span(report.now_unix_ms.saturating_sub(unix_ms).max(0).unsigned_abs());
    match &report.resident {
        Some(kernel) => line(format!(
            "in memory   {}, {} plans, loaded {} ago, looked up {} times, last {} ago, {} holders{}",
            bytes(kernel.bytes),
            kernel.plans,
            span(kernel.age_ms),
            kernel.hits,
            span(kernel.idle_ms),
            kernel.holders,
            if kernel.pinned { ", pinned" } else { "" },
        )),
        None => line("in memory   no".to_owned()),
    }
    for leaving in &report.leaving {
        line(format!("leaving     {}", leaving_text(leaving)));
    }
    for seed in &report.seeds {
        let place = format!("{}/{}/{}", seed.session, seed.layer, seed.seed);
        let loading = seed.loading.as_ref().map(|loading| format!(", {} {}", loading.stage, loading.kernel));
        let state = format!("{}{}", seed.state, loading.unwrap_or_default());
        line(format!("held by     seed {place} of layer {}, {state}", seed.layer_name));
    }
    for holder in &report.holders {
        let HolderReport { session, layer, seed, generation, stage, .. } = holder;
        line(format!("lease       seed {session}/{layer}/{seed}, its kernel number {generation}: {stage}"));
    }
    for copy in &report.copies {
        line(format!("{:<12}{}", copy.tier, copy_text(copy, ago)));
    }
    if let Some(negative) = &report.negative {
        let retry = span(negative.retry_in_ms);
        line(format!("not to be had: {}, asked again in {retry}: {}", negative.code, negative.reason));
    }
    if report.loads.is_empty() {
        line("loads       none since the daemon started".to_owned());
    }
    for load in &report.loads {
        line(format!("load        {} ago, {}", ago(load.at_unix_ms), load_text(load)));
    }
    for eviction in &report.evictions {
        line(format!("eviction    {} ago, {}", ago(eviction.at_unix_ms), eviction_text(eviction)));
    }
    for breaker in &report.breakers {
        let retry = breaker.retry_after_ms.map(|ms| format!(", tried again in {}", span(ms)));
        let cause = breaker.cause.as_ref().map(|cause| format!(": {cause}"));
        let rest = format!("{}{}", retry.unwrap_or_default(), cause.unwrap_or_default());
        line(format!("breaker     {} is {}{rest}", breaker.name, breaker.state));
    }
    for rule in &report.rules {
        let detail = rule.detail.as_deref().unwrap_or_default();
        line(format!("{}        {:<20} {detail}", if rule.passed { "pass" } else { "FAIL" }, rule.rule));
    }
    page
}

fn copy_text(copy: &CopyReport, ago: impl Fn(i64) -> String) -> String {
    if let Some(error) = &copy.error {
        return format!("does not answer: {error}");
    }
    if let Some(negative) = &copy.negative {
        let retry = span(negative.retry_in_ms);
        return format!("no copy; {}, believed for {retry}: {}", negative.code, negative.reason);
    }
    let (Some(size), Some(stored), Some(confirmed)) =
        (copy.bytes, copy.stored_unix_ms, copy.confirmed_unix_ms)
    else {
        return "no copy".to_owned();
    };
    let used = copy.used_unix_ms.map(|used| format!(", used {} ago", ago(used))).unwrap_or_default();
    let (stored, confirmed) = (ago(stored), ago(confirmed));
    format!("{}, stored {stored} ago{used}, the origin's word is {confirmed} old", bytes(size))
}

fn load_text(load: &LoadReport) -> String {
    let step = |step: &crate::wire::StepReport| {
        format!("{} {} {}", step.place, step.outcome.replace('_', " "), micros(step.us as f64))
    };
    let steps: Vec<String> = load.steps.iter().map(step).collect();
    let from = match &load.place {
        Some(place) => format!("from {place}{}", if load.stale { " (old copy)" } else { "" }),
        None => "not found".to_owned(),
    };
    let mut text = format!("{from} in {}", micros(load.total_us as f64));
    if !steps.is_empty() {
        let _ = write!(text, ": {}", steps.join(", "));
    }
    let rest = [("look-up", Some(load.look_up_us)), ("queue", Some(load.queue_us))];
    let rest = rest.into_iter().chain([("validate", Some(load.validate_us)), ("plan", load.plan_us)]);
    for (part, us) in rest.filter_map(|(part, us)| Some((part, us?))) {
        let _ = write!(text, "; {part} {}", micros(us as f64));
    }
    if let Some(error) = &load.error {
        let _ = write!(text, "; failed: {error}");
    }
    text
}

fn eviction_text(eviction: &EvictionReport) -> String {
    let reason = match &eviction.evictor {
        Some(evictor) => format!("to make room for {evictor}"),
        None => eviction.reason.clone(),
    };
    let reason = match &eviction.by {
        Some(by) => format!("{reason} by {by}"),
        None => reason,
    };
    format!("{reason}, {} unused for {}", bytes(eviction.bytes), span(eviction.idle_ms))
}
