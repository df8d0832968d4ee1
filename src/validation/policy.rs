//! What the validator demands.

use crate::{artifact::ReadLimits, config, graph::Limits};

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
    /// The most floating-point operations for one sample, where that is bounded.
    pub max_flops: Option<u64>,
}

impl Default for Policy {
    /// All classes, 10 million parameters, finite weights, 2 GiB, any number of operations.
    fn default() -> Self {
        Self {
            read: ReadLimits::default(),
            graph: Limits::default(),
            allowed_modules: vec!["*".to_owned()],
            max_parameters: 10_000_000,
            require_finite: true,
            max_peak_bytes: 2 << 30,
            max_flops: None,
        }
    }
}

impl From<&config::Validator> for Policy {
    fn from(settings: &config::Validator) -> Self {
        let read = ReadLimits {
            archive_bytes: settings.max_artifact_bytes.as_usize(),
            entries: settings.max_archive_entries,
            entry_bytes: settings.max_entry_bytes.as_usize(),
            ..ReadLimits::default()
        };
        Self {
            read,
            allowed_modules: settings.allowed_modules.clone(),
            max_parameters: settings.max_parameters,
            require_finite: settings.require_finite,
            max_peak_bytes: settings.max_plan_bytes.0,
            ..Self::default()
        }
    }
}
