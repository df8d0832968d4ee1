//! Why a record cannot be run.

use crate::{
    artifact::ArtifactError,
    engine::EngineError,
    fault::{ErrorClass, Fault},
    tensor::{DType, Shape},
};

/// What in a record contradicts the artifact in it.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// A weight is missing.
    #[error("the record has no {kind} {name:?}, which its artifact has")]
    Missing {
        /// `parameter` or `buffer`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// A weight is of another shape or type.
    #[error(
        "the record's {kind} {name:?} is {actual_dtype} {actual}, its artifact's {expected_dtype} {expected}"
    )]
    Weight {
        /// `parameter` or `buffer`.
        kind: &'static str,
        /// Its name.
        name: String,
        /// The artifact's sizes.
        expected: Shape,
        /// The artifact's type.
        expected_dtype: DType,
        /// The record's sizes.
        actual: Shape,
        /// The record's type.
        actual_dtype: DType,
    },
    /// The artifact in it cannot be read.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// A backward has no activations to run on.
    #[error(
        "the recorded activations are another version's or device's, and the forward that would make them anew fails: {source}: replay it with kasmina {version}, which recorded it"
    )]
    Forward {
        /// Which version recorded it.
        version: String,
        /// How it fails.
        source: EngineError,
    },
    /// The kernel cannot be made.
    #[error(transparent)]
    Kernel(#[from] EngineError),
    /// The pass cannot be traced.
    #[error("the pass cannot be traced: {reason}")]
    Trace {
        /// Why.
        reason: String,
    },
}

impl Fault for ReplayError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Missing { .. } | Self::Weight { .. } => ErrorClass::Corrupt,
            Self::Artifact(error) => error.class(),
            Self::Kernel(error) => error.class(),
            Self::Forward { .. } | Self::Trace { .. } => ErrorClass::Invalid,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Missing { .. } | Self::Weight { .. } => "record.damaged",
            Self::Artifact(error) => error.code(),
            Self::Kernel(error) => error.code(),
            Self::Forward { .. } => "record.forward",
            Self::Trace { .. } => "record.trace",
        }
    }
}
