//! Why an origin does not give a kernel.

use std::time::Duration;

use super::Place;
use crate::{
    cache::FetchBudgetSpent,
    digest::Digest,
    fault::{ErrorClass, Fault},
    guard::BreakerOpen,
    id::KernelId,
    validation::{MetadataError, Status},
};

/// Why an origin does not give a kernel.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OriginError {
    /// It has none of that name.
    #[error("origin {origin} has no kernel {id}: publish it or correct the id")]
    NotFound {
        /// Which origin.
        origin: String,
        /// Which kernel.
        id: KernelId,
        /// Whether that is said of this machine alone.
        here_only: bool,
    },
    /// It has an entry, and the bytes that the entry refers to are not there.
    #[error("kernel {id} refers to {reference:?}, and {reason}: publish it again")]
    NoBlob {
        /// Which kernel.
        id: KernelId,
        /// The reference.
        reference: Place,
        /// What is not there.
        reason: &'static str,
        /// Whether that is said of this machine alone.
        here_only: bool,
    },
    /// Its catalogue entry cannot be used.
    #[error("origin {origin}, kernel {id}: {source}")]
    Entry {
        /// Which origin.
        origin: String,
        /// Which kernel.
        id: KernelId,
        /// What is wrong with it.
        source: MetadataError,
    },
    /// The entry is about another kernel.
    #[error("origin {origin} has under the name {id} the entry of kernel {found}: correct its id")]
    OtherKernel {
        /// Which origin.
        origin: String,
        /// Which kernel was asked for.
        id: KernelId,
        /// Which one came.
        found: KernelId,
    },
    /// Its status forbids its use.
    #[error(
        "kernel {id} has status {status}: {}",
        if *.status == Status::Testing { "set origin.accept_testing to use it" } else { "it cannot be used, publish a valid one" }
    )]
    Status {
        /// Which kernel.
        id: KernelId,
        /// Its status.
        status: Status,
    },
    /// The reference to its bytes is absent, or leads where it may not.
    #[error("kernel {id} refers to {reference:?}: {reason}")]
    Reference {
        /// Which kernel.
        id: KernelId,
        /// The reference.
        reference: Place,
        /// Why it is refused.
        reason: String,
    },
    /// More bytes than are accepted.
    #[error(
        "{what} of kernel {id} is larger than {limit_bytes} bytes: raise the limit or use a smaller kernel"
    )]
    TooLarge {
        /// Which kernel.
        id: KernelId,
        /// The artifact or the catalogue entry.
        what: &'static str,
        /// The limit.
        limit_bytes: u64,
    },
    /// The bytes are not those the catalogue speaks of.
    #[error(
        "the bytes of kernel {id} have SHA-256 {actual}, the catalogue says {expected}: publish it again"
    )]
    Checksum {
        /// Which kernel.
        id: KernelId,
        /// What the catalogue says.
        expected: Digest,
        /// What the bytes have.
        actual: Digest,
    },
    /// It does not answer, or not properly.
    #[error("origin {origin} failed at {place}: {reason}")]
    Unavailable {
        /// Which origin.
        origin: String,
        /// The file or the address.
        place: Place,
        /// What went wrong.
        reason: String,
    },
    /// It is there and asks to be left alone for a while.
    #[error("origin {origin} at {place} answered {status}: it is asked again{}", after(*.retry_after))]
    Busy {
        /// Which origin.
        origin: String,
        /// The address.
        place: Place,
        /// The HTTP status, 429 or 503.
        status: u16,
        /// How long it asks to be left alone.
        retry_after: Option<Duration>,
    },
    /// It does not accept the daemon.
    #[error("origin {origin} at {place} answered {status}: {advice}")]
    Denied {
        /// Which origin.
        origin: String,
        /// The address.
        place: Place,
        /// The HTTP status.
        status: u16,
        /// What to look at.
        advice: &'static str,
    },
    /// It says that the request for this kernel is wrong.
    #[error("origin {origin} at {place} answered {status} for kernel {id}: see its log for what it dislikes")]
    Refused {
        /// Which origin.
        origin: String,
        /// Which kernel.
        id: KernelId,
        /// The address.
        place: Place,
        /// The HTTP status.
        status: u16,
    },
    /// It did not answer in time.
    #[error("origin {origin} did not answer within {} ms: see whether it is up, or raise {setting}", limit.as_millis())]
    TimedOut {
        /// Which origin.
        origin: String,
        /// How long was waited.
        limit: Duration,
        /// The setting that says so.
        setting: &'static str,
    },
    /// Too many bytes are on their way already.
    #[error("kernel {id}: {source}")]
    Budget {
        /// Which kernel.
        id: KernelId,
        /// How many.
        source: FetchBudgetSpent,
    },
    /// It has failed so often that it is not asked for a while.
    #[error(transparent)]
    BreakerOpen(#[from] BreakerOpen),
}

fn after(retry_after: Option<Duration>) -> String {
    retry_after.map(|time| format!(" after {} s", time.as_secs())).unwrap_or_default()
}

impl Fault for OriginError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::NotFound { .. } | Self::NoBlob { .. } => ErrorClass::NotFound,
            Self::Entry { .. }
            | Self::OtherKernel { .. }
            | Self::Status { .. }
            | Self::Reference { .. }
            | Self::Refused { .. }
            | Self::TooLarge { .. } => ErrorClass::Invalid,
            Self::Checksum { .. } => ErrorClass::Corrupt,
            Self::Busy { status: 429, .. } => ErrorClass::Overloaded,
            Self::Budget { source, .. } => source.class(),
            Self::Unavailable { .. }
            | Self::Busy { .. }
            | Self::Denied { .. }
            | Self::TimedOut { .. }
            | Self::BreakerOpen(_) => ErrorClass::Unavailable,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::NotFound { .. } | Self::NoBlob { .. } => "kernel.not_found",
            Self::Entry { .. }
            | Self::OtherKernel { .. }
            | Self::Status { .. }
            | Self::Reference { .. }
            | Self::Refused { .. }
            | Self::TooLarge { .. } => "kernel.rejected",
            Self::Checksum { .. } => "kernel.checksum",
            Self::Unavailable { .. } | Self::Busy { .. } | Self::Denied { .. } | Self::TimedOut { .. } => {
                "origin.unavailable"
            }
            Self::Budget { source, .. } => source.code(),
            Self::BreakerOpen(_) => "origin.breaker_open",
        }
    }

    fn holds_everywhere(&self) -> bool {
        matches!(self, Self::NotFound { here_only: false, .. } | Self::NoBlob { here_only: false, .. })
    }

    fn is_withdrawal(&self) -> bool {
        matches!(self, Self::NotFound { .. } | Self::NoBlob { .. } | Self::Status { .. })
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Busy { retry_after, .. } => *retry_after,
            // Unavailable as it is, it will say the same until somebody changes something.
            Self::Denied { .. } => Some(Duration::MAX),
            Self::Budget { source, .. } => source.retry_after(),
            _ => None,
        }
    }
}
