//! What the validator demands.

use std::time::{Duration, Instant};

use crate::{artifact::ReadLimits, config, digest::Digest, graph::Limits, signature::PublicKey};

/// The limits and lists that the rules go by.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Bounds on reading and lowering.
    pub read: ReadLimits,
    /// Bounds on the graph that a program lowers to.
    pub graph: Limits,
    /// Module classes a kernel may be made of: a qualified name, a prefix ending in a dot such as
    /// `torch.nn.`, or `*` for all. Whatever a class is, its program can use nothing but whitelisted
    /// operations.
    pub allowed_modules: Vec<String>,
    /// The most numbers in parameters.
    pub max_parameters: u64,
    /// Whether weights must be finite.
    pub require_finite: bool,
    /// The most bytes that the values of a pass over one sample may take at a time, weights not counted.
    pub max_peak_bytes: u64,
    /// The most floating-point operations for one sample, forward and backward together.
    pub max_flops: u64,
    /// The keys whose signatures count.
    pub trusted_keys: Vec<PublicKey>,
    /// Whether a kernel must be signed by one of them.
    pub require_signature: bool,
    /// The trial run, where one is held.
    pub trial: Option<TrialPolicy>,
}

/// What a trial may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrialPolicy {
    /// Floating-point operations of all its passes together.
    pub max_flops: u64,
    /// Bytes of everything that it makes: values at a time, and copies of weights, buffers and constants.
    pub max_bytes: u64,
    /// How long it may take; looked at between operations.
    pub time_limit: Duration,
    /// Threads that work on it.
    pub threads: usize,
}

impl Policy {
    /// A short text that differs where rules, limits or the validator's version do: two verdicts with the
    /// same fingerprint were given by the same measure. How many threads a trial has is not part of it.
    pub fn fingerprint(&self) -> String {
        let trial = self.trial.map(|trial| TrialPolicy { threads: 0, ..trial });
        let text = format!("{} {:?}", env!("CARGO_PKG_VERSION"), Self { trial, ..self.clone() });
        let mut digest = Digest::of(text.as_bytes()).to_string();
        digest.truncate(16);
        digest
    }
}

impl TrialPolicy {
    /// The same with what is left of the whole judgement's time, where that is less.
    pub(super) fn until(self, deadline: Instant) -> Self {
        let left = deadline.saturating_duration_since(Instant::now());
        Self { time_limit: self.time_limit.min(left), ..self }
    }
}

impl Default for Policy {
    /// All classes, 10 million parameters, finite weights, 2 GiB, 100 billion operations, unsigned, tried.
    fn default() -> Self {
        Self::from(&config::Validator::default())
    }
}

impl From<&config::Validator> for Policy {
    fn from(settings: &config::Validator) -> Self {
        let read = ReadLimits {
            archive_bytes: settings.max_artifact_bytes.as_usize(),
            entries: settings.max_archive_entries,
            entry_bytes: settings.max_entry_bytes.as_usize(),
            time_limit: settings.time_limit,
            ..ReadLimits::default()
        };
        let trial = TrialPolicy {
            max_flops: settings.max_trial_flops,
            max_bytes: settings.max_trial_bytes.0,
            time_limit: settings.trial_time_limit,
            // The rest goes on serving passes.
            threads: std::thread::available_parallelism().map_or(1, |n| n.get().div_ceil(2)),
        };
        Self {
            read,
            graph: Limits::default(),
            allowed_modules: settings.allowed_modules.clone(),
            max_parameters: settings.max_parameters,
            require_finite: settings.require_finite,
            max_peak_bytes: settings.max_plan_bytes.0,
            max_flops: settings.max_flops,
            trusted_keys: settings.trusted_keys.clone(),
            require_signature: settings.require_signature,
            trial: settings.trial.then_some(trial),
        }
    }
}
