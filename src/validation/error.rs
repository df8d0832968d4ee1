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
    /// There was no time to judge it, or the validator itself failed: that says nothing of the kernel.
    #[error(
        "kernel {kernel} could not be judged, rule {rule}: {detail}; it is judged anew when it is asked for again"
    )]
    Unjudged {
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
    /// The verdict as an error, where it is one: by the first rule that will fail again, if there is any.
    pub fn rejection(&self, id: &KernelId) -> Option<ValidationError> {
        let lasting = self.rules.iter().find(|rule| !rule.passed && !rule.may_pass);
        let failed = lasting.or_else(|| self.first_failure())?;
        let (kernel, rule, detail) = (id.to_string(), failed.name.clone(), failed.detail.clone());
        Some(match rule.as_str() {
            _ if failed.may_pass => ValidationError::Unjudged { kernel, rule, detail },
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
        match self {
            Self::Unjudged { rule, .. } if rule == rules::VALIDATION_COMPLETED => ErrorClass::Bug,
            Self::Unjudged { .. } => ErrorClass::Overloaded,
            _ => ErrorClass::Invalid,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Unreadable { .. } => "kernel.deserialize",
            Self::Shape { .. } => "kernel.shape",
            Self::Unjudged { rule, .. } if rule == rules::ARCHIVE_LIMITS => "kernel.deserialize",
            Self::Unjudged { .. } | Self::Rejected { .. } => "kernel.rejected",
        }
    }
}
