//! What an artifact must prove before it runs: rules over module and graph, gathered into a verdict.

mod catalogue;
mod error;
mod metadata;
mod policy;
pub mod rules;
mod trial;
mod validate;
mod verdict;

#[cfg(test)]
mod tests;

pub use error::ValidationError;
pub use metadata::{Metadata, MetadataError, Status};
pub use policy::{Policy, TrialPolicy};
pub use validate::{Outcome, too_large, validate, validate_again};
pub use verdict::{ModuleUse, PassCost, RuleResult, Trial, Verdict};
