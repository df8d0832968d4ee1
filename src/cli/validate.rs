//! `kasmina validate`: judges a file by the validator's rules, without a daemon.

use super::{
    CliError, Exit,
    subject::{Subject, SubjectOptions},
    table,
};
use crate::validation::{Policy, Verdict, rules};

/// What to judge by what.
#[derive(Debug)]
pub struct ValidateOptions {
    /// The artifact and what is said of it.
    pub subject: SubjectOptions,
    /// Whether to print the verdict as JSON.
    pub json: bool,
}

/// Judges a file and prints the verdict: 0 accepted, 1 rejected, 2 unreadable.
///
/// # Errors
/// [`CliError`] when the file cannot be opened.
pub fn validate(options: &ValidateOptions) -> Result<Exit, CliError> {
    let verdict = Subject::open(&options.subject)?.judge(&Policy::from(&options.subject.config.validator));
    if options.json {
        table::say_json(&verdict)?;
    } else {
        table::say(&report(&options.subject.file.display().to_string(), &verdict));
    }
    Ok(exit(&verdict))
}

/// 0 accepted, 1 rejected, 2 unreadable.
pub(super) fn exit(verdict: &Verdict) -> Exit {
    let unreadable = verdict.rule(rules::ARCHIVE_READABLE).is_some_and(|rule| !rule.passed);
    match verdict.accepted {
        true => Exit::Ok,
        false if unreadable => Exit::Unusable,
        false => Exit::No,
    }
}

/// The verdict as a person reads it.
pub(super) fn report(file: &str, verdict: &Verdict) -> String {
    let mut text = String::new();
    let word = if verdict.accepted { "accepted" } else { "rejected" };
    let mut line = |name: &str, value: String| text.push_str(&format!("  {name:<11} {value}\n"));
    line(
        "sha256",
        verdict.known_digest().map_or("not known, it was not read".to_owned(), ToString::to_string),
    );
    line("size", table::bytes(verdict.size_bytes));
    line("format", verdict.format.clone().unwrap_or_else(|| "unknown".to_owned()));
    line("parameters", verdict.parameters.to_string());
    if verdict.constants > 0 {
        line("constants", format!("{} numbers", verdict.constants));
    }
    for (name, shape) in [("input", &verdict.input_shape), ("output", &verdict.output_shape)] {
        if let Some(shape) = shape {
            line(name, format!("{shape} without the batch"));
        }
    }
    for (name, cost) in [("forward", verdict.forward), ("backward", verdict.backward)] {
        if let Some(cost) = cost {
            let (flops, bytes) = (table::count(cost.flops, "FLOP"), table::bytes(cost.peak_bytes));
            line(name, format!("{flops} and {bytes} a sample"));
        }
    }
    if !verdict.ops.is_empty() {
        let more = match verdict.more_ops {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        line("ops", verdict.ops.join(" ") + &more);
    }
    for rule in &verdict.rules {
        let mark = if rule.passed { "pass" } else { "FAIL" };
        text.push_str(&format!("  {mark}  {:<20} {}\n", rule.name, rule.detail));
    }
    format!("{file}: {word}\n{text}")
}
