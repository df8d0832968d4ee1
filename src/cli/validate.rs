//! `kasmina validate`: judges a file by the validator's rules, without a daemon.

use std::path::PathBuf;

use super::{CliError, Exit};
use crate::{
    config::Config,
    validation::{self, Policy, Verdict, rules},
};

/// What to judge by what.
#[derive(Debug)]
pub struct ValidateOptions {
    /// The artifact.
    pub file: PathBuf,
    /// Whether to print the verdict as JSON.
    pub json: bool,
    /// The settings whose `[validator]` section decides.
    pub config: Config,
}

/// Judges a file and prints the verdict: 0 accepted, 1 rejected, 2 unreadable.
///
/// # Errors
/// [`CliError`] when the file cannot be opened.
pub fn validate(options: &ValidateOptions) -> Result<Exit, CliError> {
    let bytes = std::fs::read(&options.file).map_err(CliError::file(&options.file))?;
    let outcome = validation::validate(bytes.into(), None, &Policy::from(&options.config.validator));
    let verdict = outcome.verdict;
    if options.json {
        let text =
            serde_json::to_string_pretty(&verdict).map_err(|error| CliError::usage(error.to_string()))?;
        println!("{text}");
    } else {
        print(&options.file.display().to_string(), &verdict);
    }
    let unreadable = verdict.rule(rules::ARCHIVE_READABLE).is_some_and(|rule| !rule.passed);
    Ok(match verdict.accepted {
        true => Exit::Ok,
        false if unreadable => Exit::Unusable,
        false => Exit::No,
    })
}

fn print(file: &str, verdict: &Verdict) {
    let word = if verdict.accepted { "accepted" } else { "rejected" };
    println!("{file}: {word}");
    println!("  sha256      {}", verdict.digest);
    println!("  format      {}", verdict.format.as_deref().unwrap_or("unknown"));
    println!("  parameters  {}", verdict.parameters);
    for (name, shape) in [("input", &verdict.input_shape), ("output", &verdict.output_shape)] {
        if let Some(shape) = shape {
            println!("  {name:<11} {shape} without the batch");
        }
    }
    println!("  ops         {}", verdict.ops.join(" "));
    for rule in &verdict.rules {
        let mark = if rule.passed { "pass" } else { "FAIL" };
        println!("  {mark}  {:<20} {}", rule.name, rule.detail);
    }
}
