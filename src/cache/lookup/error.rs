//! Why no artifact was found.

use super::Step;
use crate::{
    cache::SharedFault,
    fault::{ErrorClass, Fault},
    id::KernelId,
};

/// A look-up that found nothing, and the way it took.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{error}")]
pub struct Unfound {
    /// Why.
    pub error: LookupError,
    /// Every place, in the order they were asked.
    pub steps: Vec<Step>,
}

impl Fault for Unfound {
    fn class(&self) -> ErrorClass {
        self.error.class()
    }

    fn code(&self) -> &'static str {
        self.error.code()
    }
}

/// Why no artifact was found.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LookupError {
    /// It was found out a while ago, and is believed for a while more.
    #[error(
        "{reason} (known for now, asked again in {retry_in_s} s; evict kernel {id} to ask at once)",
        retry_in_s = retry_in_ms.div_ceil(1000)
    )]
    Known {
        /// Which kernel.
        id: KernelId,
        /// The code a client sees.
        code: String,
        /// What was said then.
        reason: String,
        /// When it will be asked again.
        retry_in_ms: u64,
    },
    /// No tier has it and there is no origin to ask.
    #[error("kernel {id} is in no tier and no origin is configured: set origin in the configuration")]
    NoSource {
        /// Which kernel.
        id: KernelId,
    },
    /// The origin failed or refused.
    #[error("{fault}")]
    Source {
        /// Which kernel.
        id: KernelId,
        /// The origin's error.
        fault: SharedFault,
    },
}

impl Fault for LookupError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Known { code, .. } if code == "kernel.not_found" => ErrorClass::NotFound,
            Self::Known { .. } => ErrorClass::Invalid,
            Self::NoSource { .. } => ErrorClass::NotFound,
            Self::Source { fault, .. } => fault.class(),
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Known { code, .. } => known_code(code),
            Self::NoSource { .. } => "kernel.not_found",
            Self::Source { fault, .. } => fault.code(),
        }
    }
}

/// Codes come back from a tier as text; what is not one of ours any more was a rejection.
fn known_code(code: &str) -> &'static str {
    let known = ["kernel.not_found", "kernel.deserialize", "kernel.shape"];
    known.into_iter().find(|&known| known == code).unwrap_or("kernel.rejected")
}
