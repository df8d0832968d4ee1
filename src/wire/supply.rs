//! What the daemon tells an operator of the way a kernel takes: tiers, loads, evictions, warming.

use serde::{Deserialize, Serialize};

use super::{CachedKernel, LeavingKernel, RuleReport, SeedReport, operator::BreakerReport};
use crate::id::{Generation, KernelId, LayerId, SeedIndex, SessionId};

/// How far warming has come; the daemon serves meanwhile.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmReport {
    /// Whether more may be planned, once a tier tells what was used most.
    #[serde(default)]
    pub planning: bool,
    /// Kernels to be loaded: those of the configuration, and the most used.
    pub planned: u32,
    /// Kernels loaded, or resident already.
    pub loaded: u32,
    /// Kernels that could not be loaded.
    pub failed: u32,
    /// Kernels for which somebody did not answer; they are tried again, after a growing delay.
    #[serde(default)]
    pub retrying: u32,
    /// Whether it is over.
    pub done: bool,
}

/// How fast a place is with artifacts of a size, and what follows from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteReport {
    /// A tier, or the origin.
    pub place: String,
    /// The largest artifact of the class, in bytes; null for the class without a limit.
    pub up_to_bytes: Option<u64>,
    /// What a hit takes, as a mean of the last ones, in microseconds.
    pub mean_us: u64,
    /// Hits measured.
    pub samples: u64,
    /// What it takes to say that it has no copy, as a mean of the last times, in microseconds.
    #[serde(default)]
    pub miss_us: u64,
    /// How often it said so.
    #[serde(default)]
    pub misses: u64,
    /// Whether it is passed by now, as slower than the next place.
    pub passed_by: bool,
    /// How often it was passed by.
    pub passes: u64,
}

/// One place that a look-up asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepReport {
    /// A tier, `memory` for what is remembered of an absence, or the origin's name, for a part of what it was asked
    /// with `.metadata`, `.artifact` or `.checksum`.
    pub place: String,
    /// `hit`, `miss`, `negative`, `corrupt`, `outdated`, `failed` or `passed_by`.
    pub outcome: String,
    /// Microseconds.
    pub us: u64,
}

/// One load of a kernel, and where its time went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadReport {
    /// Which kernel.
    pub kernel: KernelId,
    /// When it began, in milliseconds since 1970.
    pub at_unix_ms: i64,
    /// Where it was found; null where it was not.
    pub place: Option<String>,
    /// Whether an old copy served because the origin did not answer.
    pub stale: bool,
    /// The places that were asked, in order.
    pub steps: Vec<StepReport>,
    /// Microseconds of the look-up: all steps, and checking the digest.
    pub look_up_us: u64,
    /// Microseconds of waiting for the validator.
    pub queue_us: u64,
    /// Microseconds of judging.
    pub validate_us: u64,
    /// Microseconds from the beginning until it was resident, or was refused.
    pub total_us: u64,
    /// Microseconds of its last planning for a seed; null where it was not planned yet.
    pub plan_us: Option<u64>,
    /// Why it failed; null where it did not.
    pub error: Option<String>,
}

/// One kernel that left memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvictionReport {
    /// Which kernel.
    pub kernel: KernelId,
    /// `room`, `asked`, `cleared`, `replaced` or `invalidated`.
    pub reason: String,
    /// For whom room was made; null for other reasons.
    pub evictor: Option<KernelId>,
    /// Who asked for it: `uid N`, `node NAME`, or what made the daemon do it; null where nobody did.
    #[serde(default)]
    pub by: Option<String>,
    /// What it weighed.
    pub bytes: u64,
    /// How long nobody had used it, in milliseconds.
    pub idle_ms: u64,
    /// When, in milliseconds since 1970.
    pub at_unix_ms: i64,
}

/// What one tier has of a kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyReport {
    /// Which tier.
    pub tier: String,
    /// Bytes of the artifact; null where the tier has no copy.
    pub bytes: Option<u64>,
    /// SHA-256 of the artifact as it was stored.
    pub digest: Option<String>,
    /// When it was stored, in milliseconds since 1970.
    pub stored_unix_ms: Option<i64>,
    /// When it was last used there, in milliseconds since 1970, where the tier keeps that.
    pub used_unix_ms: Option<i64>,
    /// When the origin last vouched for it, in milliseconds since 1970.
    pub confirmed_unix_ms: Option<i64>,
    /// What the tier has noted against the kernel, instead of a copy.
    #[serde(default)]
    pub negative: Option<NegativeReport>,
    /// Why the tier did not answer.
    pub error: Option<String>,
}

/// Why a kernel is known not to be had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NegativeReport {
    /// The code a trainer sees.
    pub code: String,
    /// What was found.
    pub reason: String,
    /// Milliseconds until it is asked for again.
    pub retry_in_ms: u64,
}

/// A seed that has a kernel in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HolderReport {
    /// The session.
    pub session: SessionId,
    /// The layer.
    pub layer: LayerId,
    /// The seed.
    pub seed: SeedIndex,
    /// Which of the seed's kernels it is, or was.
    pub generation: Generation,
    /// SHA-256 of the artifact.
    pub digest: String,
    /// `live`, `loading`, `ready`, or `tickets` where only passes that await their backward have it still.
    pub stage: String,
}

/// Answers [`OperatorRequest::Why`](super::OperatorRequest::Why): all that is known of one kernel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WhyReport {
    /// Which kernel.
    pub kernel: KernelId,
    /// The time of the answer, in milliseconds since 1970.
    pub now_unix_ms: i64,
    /// What is in memory; null where it is not resident.
    pub resident: Option<CachedKernel>,
    /// What is still in use of it although it is to be forgotten.
    #[serde(default)]
    pub leaving: Vec<LeavingKernel>,
    /// The seeds that have it, or are loading it.
    pub seeds: Vec<SeedReport>,
    /// Who has it in use, and for what.
    #[serde(default)]
    pub holders: Vec<HolderReport>,
    /// What each tier has.
    pub copies: Vec<CopyReport>,
    /// What is remembered of its absence.
    pub negative: Option<NegativeReport>,
    /// Its last loads, the latest first.
    pub loads: Vec<LoadReport>,
    /// How it last left memory, the latest first.
    pub evictions: Vec<EvictionReport>,
    /// The circuit breakers of the supply.
    pub breakers: Vec<BreakerReport>,
    /// The verdict's rules, of the kernel in memory or else of the first copy that has a verdict.
    pub rules: Vec<RuleReport>,
}
