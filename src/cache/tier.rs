//! The port of a byte tier: what every place that keeps artifacts promises.

use std::{fmt, sync::Arc};

use super::TierStats;
use crate::{
    digest::Digest,
    fault::{ErrorClass, Fault},
    guard::{BreakerOpen, BreakerStatus},
    id::KernelId,
    validation::{Metadata, Verdict},
};
use futures_util::future::BoxFuture;

/// An artifact with all that is known of it.
#[derive(Clone, PartialEq)]
pub struct Stored {
    /// Its catalogue entry; the kernel's id stands there.
    pub metadata: Arc<Metadata>,
    /// SHA-256 of `bytes`.
    pub digest: Digest,
    /// The artifact.
    pub bytes: Arc<[u8]>,
    /// What the validator said, once it has.
    pub verdict: Option<Arc<Verdict>>,
    /// When the origin last said that this is the kernel, in milliseconds since 1970.
    pub confirmed_unix_ms: i64,
}

impl Stored {
    /// An artifact that the origin has just given: hashes it.
    pub fn new(metadata: Metadata, bytes: Arc<[u8]>, confirmed_unix_ms: i64) -> Self {
        let digest = Digest::of(&bytes);
        Self::hashed(metadata, bytes, digest, confirmed_unix_ms)
    }

    /// As [`Stored::new`], where the digest was made while the bytes came in.
    pub fn hashed(metadata: Metadata, bytes: Arc<[u8]>, digest: Digest, confirmed_unix_ms: i64) -> Self {
        Self { metadata: Arc::new(metadata), digest, bytes, verdict: None, confirmed_unix_ms }
    }

    /// The kernel's id.
    pub fn id(&self) -> &KernelId {
        &self.metadata.id
    }
}

impl fmt::Debug for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stored({} {} of {} bytes)", self.id(), self.digest, self.bytes.len())
    }
}

/// What a tier keeps of a kernel, seen from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// SHA-256 of the artifact as it was stored; the bytes are not looked at.
    pub digest: Digest,
    /// Bytes of the artifact.
    pub bytes: u64,
    /// When it was stored, in milliseconds since 1970.
    pub stored_unix_ms: i64,
    /// When it was last used, in milliseconds since 1970; absent where the tier does not keep it.
    pub used_unix_ms: Option<i64>,
    /// When the origin last vouched for it, in milliseconds since 1970.
    pub confirmed_unix_ms: i64,
    /// What the validator said of it, where that is kept beside it and can be read.
    pub verdict: Option<Arc<Verdict>>,
}

/// Why a kernel is known not to be had: "there is none" for a while, not "not now".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Negative {
    /// The code a client sees, such as `kernel.not_found`.
    pub code: String,
    /// What was said when it was found out.
    pub reason: String,
    /// Until when this is believed, in milliseconds since 1970.
    pub until_unix_ms: i64,
    /// By which settings it was refused, where it was refused by this node's own measure: by others it may be
    /// had. None where the origin has no such kernel, whoever asks.
    pub policy: Option<Digest>,
}

/// What a tier knows of a kernel.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// Here it is, its digest checked.
    Hit(Stored),
    /// It is known not to be had.
    Negative(Negative),
    /// Nothing is known.
    Miss,
    /// A copy was here and did not agree with its digest; it has been dropped.
    Corrupt,
}

/// A place that keeps artifacts between their origin and the device.
///
/// A tier owes nobody its content: it may drop anything at any time to stay within its limit. What it does
/// give agrees with its digest. Every call may be cancelled without harm.
pub trait Tier: Send + Sync + fmt::Debug {
    /// The tier's name in statistics and logs.
    fn name(&self) -> &str;

    /// Whether other nodes keep their kernels here too.
    fn shared(&self) -> bool {
        false
    }

    /// The largest artifact that it gives, where it has a limit of its own.
    fn largest_bytes(&self) -> Option<u64> {
        None
    }

    /// Looks a kernel up and, on a hit, counts it as used.
    fn get<'a>(&'a self, id: &'a KernelId) -> BoxFuture<'a, Result<Answer, TierError>>;

    /// Keeps a kernel in place of whatever was known under its id. One that is larger than the whole tier
    /// is passed over, and nobody is asked about it: `false`.
    fn put<'a>(&'a self, stored: &'a Stored) -> BoxFuture<'a, Result<bool, TierError>>;

    /// Notes what the validator said of a kernel; `false` where the tier does not hold those bytes.
    fn put_verdict<'a>(
        &'a self,
        id: &'a KernelId,
        digest: Digest,
        verdict: &'a Verdict,
    ) -> BoxFuture<'a, Result<bool, TierError>>;

    /// Notes that a kernel is not to be had, in place of whatever was known under its id.
    fn put_negative<'a>(
        &'a self,
        id: &'a KernelId,
        negative: &'a Negative,
    ) -> BoxFuture<'a, Result<(), TierError>>;

    /// Forgets a kernel, a negative result included; `false` where nothing was known.
    fn remove<'a>(&'a self, id: &'a KernelId) -> BoxFuture<'a, Result<bool, TierError>>;

    /// What is here of a kernel, if its bytes are; neither reads nor counts them. For people: it is not compared
    /// with its seal.
    fn about<'a>(&'a self, id: &'a KernelId) -> BoxFuture<'a, Result<Option<Held>, TierError>>;

    /// What is noted here against a kernel, and would be believed now.
    fn negative<'a>(&'a self, id: &'a KernelId) -> BoxFuture<'a, Result<Option<Negative>, TierError>>;

    /// Forgets everything, and says how many kernels that were.
    fn clear(&self) -> BoxFuture<'_, Result<u64, TierError>>;

    /// The ids most used since a time in milliseconds since 1970, the most used first: what to warm. Uses
    /// are counted by the day; a tier that counts none says so without asking anybody: `None`.
    fn most_used(
        &self,
        since_unix_ms: i64,
        limit: u32,
    ) -> BoxFuture<'_, Result<Option<Vec<KernelId>>, TierError>>;

    /// Adds uses that took place above this tier, where it was not asked, to those it counts. They are taken into
    /// memory, whether the tier answers or not, and written down beside all else.
    fn note_uses<'a>(&'a self, _uses: &'a [(KernelId, u64)]) -> BoxFuture<'a, Result<(), TierError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// The breaker before the tier, where there is one.
    fn breaker(&self) -> Option<BreakerStatus> {
        None
    }

    /// Counters alone, without asking anybody.
    fn counters(&self) -> TierStats;

    /// Counters and contents.
    fn stats(&self) -> BoxFuture<'_, Result<TierStats, TierError>>;
}

/// Why a tier does not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TierError {
    /// It cannot be opened.
    #[error(
        "the {tier} tier at {place} cannot be opened: {reason} (see [cache.{tier}] in the configuration)"
    )]
    Open {
        /// Which tier.
        tier: &'static str,
        /// Where it is.
        place: String,
        /// What went wrong.
        reason: String,
    },
    /// A request to it failed.
    #[error("the {tier} tier failed to {action}: {reason}")]
    Request {
        /// Which tier.
        tier: &'static str,
        /// What it was to do.
        action: &'static str,
        /// What went wrong.
        reason: String,
    },
    /// It is full, locked, read-only or out of memory: it cannot take anything now, but may still give.
    #[error("the {tier} tier cannot {action} now: {reason}")]
    Overloaded {
        /// Which tier.
        tier: &'static str,
        /// What it was to do.
        action: &'static str,
        /// What stands in the way, and what to do about it.
        reason: String,
    },
    /// It has failed so often that it is not asked for a while.
    #[error(transparent)]
    Skipped(#[from] BreakerOpen),
}

impl Fault for TierError {
    fn class(&self) -> ErrorClass {
        match self {
            // A breaker takes no count of it, so that reads go on.
            Self::Overloaded { .. } => ErrorClass::Overloaded,
            Self::Open { .. } | Self::Request { .. } | Self::Skipped(_) => ErrorClass::Unavailable,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Overloaded { .. } => "cache.tier_overloaded",
            Self::Open { .. } | Self::Request { .. } | Self::Skipped(_) => "cache.tier_unavailable",
        }
    }
}
