//! What an artifact must prove before it runs: rules over module and graph, gathered into a verdict.

mod error;
mod metadata;
pub mod rules;
mod verdict;

pub use error::ValidationError;
pub use metadata::{Metadata, MetadataError, Status};
pub use verdict::{ModuleUse, RuleResult, Verdict};
