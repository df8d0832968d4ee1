//! The validator's refusal as an error.

use super::{Verdict, rules};
use crate::{
    fault::{ErrorClass, Fault},
    id::KernelId,
};

/// Why a kernel is not accepted: the first rule it breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValidationError {
    /// Its archive cannot be read.
    #[error("kernel {kernel} cannot be read, rule {rule}: {detail}")]
    Unreadable {
        /// Which kernel.
        kernel: String,
        /// The rule's name.
        rule: String,
        /// What was found.
        detail: String,
    },
    /// Its shapes are not the declared ones.
    #[error("kernel {kernel} has other shapes than declared, rule {rule}: {detail}")]
    Shape {
        /// Which kernel.
        kernel: String,
        /// The rule's name.
        rule: String,
        /// What was found.
        detail: String,
    },
    /// It breaks another rule.
    #[error(
        "kernel {kernel} is rejected by rule {rule}: {detail}; change the kernel or the validation settings"
    )]
    Rejected {
        /// Which kernel.
        kernel: String,
        /// The rule's name.
        rule: String,
        /// What was found.
        detail: String,
    },
}

impl Verdict {
    /// The verdict as an error, where it is one.
    pub fn rejection(&self, id: &KernelId) -> Option<ValidationError> {
        let failed = self.first_failure()?;
        let (kernel, rule, detail) = (id.to_string(), failed.name.clone(), failed.detail.clone());
        Some(match rule.as_str() {
            rules::ARCHIVE_LIMITS | rules::ARCHIVE_READABLE => {
                ValidationError::Unreadable { kernel, rule, detail }
            }
            rules::SHAPES_DECLARED => ValidationError::Shape { kernel, rule, detail },
            _ => ValidationError::Rejected { kernel, rule, detail },
        })
    }
}

impl Fault for ValidationError {
    fn class(&self) -> ErrorClass {
        ErrorClass::Invalid
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Unreadable { .. } => "kernel.deserialize",
            Self::Shape { .. } => "kernel.shape",
            Self::Rejected { .. } => "kernel.rejected",
        }
    }
}
