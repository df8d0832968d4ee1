//! `kasmina replay`: runs a recorded pass again, without a daemon.

use std::{path::PathBuf, sync::Arc, time::Duration};

use serde::Serialize;

use super::{CliError, Exit, table};
use crate::{
    artifact::{self, ReadLimits},
    engine::{Activations, Range, Replay, ReplayError, Rerun, Trace, Traced},
    fault::Fault as _,
    origin::read_file,
    record::{self, Header, Record},
    tensor::HostTensor,
};

/// Files in an artifact, as many as a zip archive has: what the daemon that recorded it accepted is read here.
const MAX_ARCHIVE_FILES: usize = 65_535;

/// Operations that are printed of the way that what is not finite took.
const SHOWN_CULPRITS: usize = 8;

/// What to run, and what to show of it.
#[derive(Debug)]
pub struct ReplayOptions {
    /// The record.
    pub file: PathBuf,
    /// Whether to print JSON.
    pub json: bool,
    /// Whether to show what every operation gave.
    pub trace: bool,
    /// A time limit instead of the record's.
    pub time_limit: Option<Duration>,
}

/// How the pass ended now beside how it ended then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    /// With the same error.
    Reproduced,
    /// With another one.
    AnotherError,
    /// With none.
    NoError,
}

/// All that is said of a replay.
#[derive(Debug, Serialize)]
struct Report<'a> {
    file: String,
    record: &'a Header,
    tensors: Vec<TensorReport>,
    answer: Answer,
    error: Option<ErrorReport>,
    planning_ms: f64,
    pass_ms: Option<f64>,
    /// Of a backward: whether its forward now leaves what it ran on then.
    activations: Option<&'static str>,
    trace: Option<Trace>,
}

#[derive(Debug, Serialize)]
struct TensorReport {
    name: String,
    tensor: String,
    range: Option<Range>,
}

#[derive(Debug, Serialize)]
struct ErrorReport {
    code: &'static str,
    message: String,
}

/// Runs a recorded pass: 0 it fails as it did, 1 it does not fail, 4 it fails in another way.
///
/// # Errors
/// [`CliError`] when the file is no record, or its artifact cannot be read.
pub fn replay(options: &ReplayOptions) -> Result<Exit, CliError> {
    let file = std::fs::File::open(&options.file).map_err(CliError::file(&options.file))?;
    let bytes = read_file(file, record::MAX_FILE_BYTES).map_err(CliError::file(&options.file))?;
    let path = || options.file.clone();
    let unusable = |source: ReplayError| CliError::Replay { path: path(), source };
    let record = Record::read(&bytes).map_err(|source| CliError::Record { path: path(), source })?;
    let module = artifact::read(record.artifact.clone(), &limits(&record.header))
        .map_err(|error| unusable(error.into()))?;
    let replay = Replay::new(record, Arc::new(module), options.time_limit).map_err(unusable)?;
    let rerun = replay.run().map_err(unusable)?;
    let error = rerun.outcome.as_ref().err();
    let header = &replay.record().header;
    let answer = match error {
        None => Answer::NoError,
        Some(error) if error.code() == header.code => Answer::Reproduced,
        Some(_) => Answer::AnotherError,
    };
    let is_non_finite = error.is_some_and(|error| error.code() == "kernel.non_finite");
    // What cannot be planned has no operations to show.
    let is_planned = rerun.time.is_some();
    let is_traced = is_planned && (is_non_finite || options.trace);
    let trace = if is_traced { Some(replay.trace().map_err(unusable)?) } else { None };
    let report = Report {
        file: options.file.display().to_string(),
        record: header,
        tensors: tensors(replay.record()),
        answer,
        error: error.map(|error| ErrorReport { code: error.code(), message: error.to_string() }),
        planning_ms: milliseconds(rerun.planning),
        pass_ms: rerun.time.map(milliseconds),
        activations: rerun.activations.as_ref().map(|activations| match activations {
            Activations::Same => "same",
            Activations::Differ => "differ",
            Activations::Unknown { .. } => "unknown",
            Activations::Made => "made",
        }),
        trace,
    };
    if options.json {
        table::say_json(&report)?;
    } else {
        table::say(&text(&report, &rerun, replay.time_limit(), options.trace));
    }
    Ok(match answer {
        Answer::Reproduced => Exit::Ok,
        Answer::NoError => Exit::No,
        Answer::AnotherError => Exit::Another,
    })
}

/// No narrower than those of any daemon whose records are read.
fn limits(header: &Header) -> ReadLimits {
    let bytes = usize::try_from(record::MAX_BYTES).unwrap_or(usize::MAX);
    let known = ReadLimits::default();
    ReadLimits {
        archive_bytes: bytes,
        entry_bytes: bytes,
        entries: MAX_ARCHIVE_FILES,
        // The same setting of the daemon bounds how long a plan and a reading may take.
        time_limit: known.time_limit.max(Duration::from_nanos(header.settings.plan_time_limit_ns)),
        ..known
    }
}

fn tensors(record: &Record) -> Vec<TensorReport> {
    let raw = |name: &str, bytes: &[u8]| TensorReport {
        name: name.to_owned(),
        tensor: table::bytes(bytes.len() as u64),
        range: None,
    };
    let of = |name: String, tensor: &HostTensor| TensorReport {
        name,
        tensor: format!("{}{}", tensor.dtype(), tensor.shape()),
        range: Some(Range::of(tensor)),
    };
    let mut all = vec![raw("artifact", &record.artifact), of("input".to_owned(), &record.input)];
    all.extend(record.grad_output.iter().map(|tensor| of("grad_output".to_owned(), tensor)));
    if !record.saved.is_empty() {
        all.push(raw("saved", &record.saved));
    }
    for (kind, list) in [("parameter", &record.parameters), ("buffer", &record.buffers)] {
        all.extend(list.iter().map(|(name, tensor)| of(format!("{kind}.{name}"), tensor)));
    }
    all
}

/// The report as a person reads it.
fn text(report: &Report<'_>, rerun: &Rerun, limit: Duration, shows_operations: bool) -> String {
    let mut text = format!("{}\n{}\n", report.file, about(report.record));
    let rows: Vec<Vec<String>> = report
        .tensors
        .iter()
        .map(|tensor| {
            let range = tensor.range.as_ref().map(numbers).unwrap_or_default();
            vec![tensor.name.clone(), tensor.tensor.clone(), range]
        })
        .collect();
    text.push_str(&indented(&table::render(&["tensor", "type and shape", "numbers"], &rows)));
    text.push('\n');
    let error = report.error.as_ref().map(|error| format!("{}: {}", error.code, error.message));
    text.push_str(&match (report.answer, error.unwrap_or_default()) {
        (Answer::Reproduced, error) => format!("reproduced: {error}\n"),
        (Answer::AnotherError, error) => {
            format!("another error: {error}\n  then it was {}\n", report.record.code)
        }
        (Answer::NoError, _) => format!("no error; then it was {}\n", report.record.code),
    });
    let planned = duration(rerun.planning);
    text.push_str(&match rerun.time {
        None => format!("  planning took {planned}, the pass was not run\n"),
        Some(time) => {
            format!("  planning took {planned}, the pass {} of {} allowed\n", duration(time), duration(limit))
        }
    });
    text.push_str(&match &rerun.activations {
        None => String::new(),
        Some(Activations::Same) => "  its forward leaves the same activations again\n".to_owned(),
        Some(Activations::Differ) => {
            let causes = "parameters, buffers or the input differ from the forward's, or another machine rounds otherwise";
            format!("  its forward leaves other activations here: {causes}\n")
        }
        Some(Activations::Unknown { error }) => {
            format!("  it ran on the recorded activations, with nothing to compare: its forward fails here: {error}\n")
        }
        Some(Activations::Made) => {
            "  it ran on activations made now: the recorded ones are another version's or device's\n".to_owned()
        }
    });
    if let Some(trace) = &report.trace {
        text.push_str(&culprits(trace));
        if shows_operations {
            text.push_str("\noperations\n");
            trace.operations.iter().for_each(|operation| text.push_str(&traced(operation)));
        }
    }
    text
}

/// Who failed in which pass, and how.
fn about(header: &Header) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| text.push_str(&format!("  {name:<9} {value}\n"));
    line("kernel", format!("{}, sha256 {}", header.kernel, header.digest));
    let (session, layer, seed, generation) = (header.session, header.layer, header.seed, header.generation);
    let who = format!("seed {seed} of layer {layer} of session {session}, user {}", header.uid);
    line("seed", format!("{who}, kernel number {generation}, {}, alpha {}", header.role, header.alpha));
    let mode = if header.train { "training" } else { "eval" };
    let again = if header.again { ", run again for its backward" } else { "" };
    let (direction, dtype, input, output) =
        (header.direction, header.dtype, &header.input_shape, &header.output_shape);
    line("pass", format!("{direction} in {mode} mode{again}, {dtype} {input} to {output}"));
    line("", format!("after {} training steps, dropout by {}", header.step, header.rng_seed));
    line("failed", format!("{}: {}", header.code, header.message));
    let nanoseconds = |ns: u64| duration(Duration::from_nanos(ns));
    let left = header.allowed_ns.map(|ns| format!(" of {} left", nanoseconds(ns))).unwrap_or_default();
    let after = header.elapsed_ns.map(|ns| format!(", after {}{left}", nanoseconds(ns)));
    let (stamp, version) = (record::stamp(header.time_unix_ms), &header.version);
    line(
        "recorded",
        format!("{stamp} by kasmina {version} on {}{}", header.device, after.unwrap_or_default()),
    );
    let settings = &header.settings;
    let guard = if settings.non_finite_guard { "on" } else { "off" };
    let limit = nanoseconds(settings.time_limit_ns);
    let threads = settings.threads;
    line(
        "settings",
        format!("time limit {limit}, guard against non-finite output {guard}, {threads} threads"),
    );
    text
}

/// Where what is not finite came from.
fn culprits(trace: &Trace) -> String {
    let Some(first) = trace.first_culprit() else { return String::new() };
    let mut text = format!("\nfirst operation whose result is not finite\n{}", traced(first));
    let further: Vec<&Traced> =
        trace.culprits.iter().skip(1).filter_map(|&n| trace.operations.get(n)).collect();
    if !further.is_empty() {
        text.push_str("from there it went on through\n");
    }
    for operation in further.iter().take(SHOWN_CULPRITS) {
        text.push_str(&format!("  {}\n", operation.operation));
    }
    if further.len() > SHOWN_CULPRITS {
        text.push_str(&format!("  and {} more\n", further.len() - SHOWN_CULPRITS));
    }
    text
}

fn traced(operation: &Traced) -> String {
    let results: Vec<String> = operation.results.iter().map(numbers).collect();
    let mut text = format!("  {}\n    gives {}\n", operation.operation, results.join("; "));
    for (name, range) in &operation.operands {
        text.push_str(&format!("    of {name}: {}\n", numbers(range)));
    }
    text
}

/// A range as a person reads it.
fn numbers(range: &Range) -> String {
    let mut text = match range.elements - range.nans - range.infinities {
        0 if range.elements == 0 => "none".to_owned(),
        0 => "none that is finite".to_owned(),
        _ => format!("{} to {}", short(range.min), short(range.max)),
    };
    for (count, what) in [(range.nans, "NaN"), (range.infinities, "infinite")] {
        if count > 0 {
            text.push_str(&format!(", {count} {what}"));
        }
    }
    text
}

/// A number with as many digits as help.
fn short(number: f64) -> String {
    let size = number.abs();
    if number == 0.0 || (1e-3..1e6).contains(&size) {
        let text = format!("{number:.4}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        format!("{number:.3e}")
    }
}

fn duration(time: Duration) -> String {
    let ms = milliseconds(time);
    if ms >= 1000.0 { format!("{} s", short(ms / 1000.0)) } else { table::micros(ms * 1000.0) }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn indented(table: &str) -> String {
    table.lines().map(|line| format!("  {line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_read_well() {
        let range =
            |min, max, nans, infinities, elements| numbers(&Range { min, max, nans, infinities, elements });
        assert_eq!(range(-1.5, 2.0, 0, 0, 4), "-1.5 to 2");
        assert_eq!(range(1e-9, 3e38, 1, 2, 9), "1.000e-9 to 3.000e38, 1 NaN, 2 infinite");
        assert_eq!(range(0.0, 0.0, 4, 0, 4), "none that is finite, 4 NaN");
        assert_eq!(range(0.0, 0.0, 0, 0, 0), "none");
        assert_eq!(duration(Duration::from_secs(5)), "5 s");
        assert_eq!(duration(Duration::from_micros(75)), "75 us");
    }
}
