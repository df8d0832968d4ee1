//! What a look-up tells of its way, and the look-up as a whole of itself.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use super::Search;
use crate::cache::{FetchBudgetStats, Held, Negative, Reservation, Stored, TierStats};

/// What one place said during a look-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepOutcome {
    /// It had it.
    Hit,
    /// It knew nothing.
    Miss,
    /// It knew that the kernel is not to be had.
    Negative,
    /// Its copy was damaged and has been dropped.
    Corrupt,
    /// Its copy is not what the origin has now, or may not be.
    Outdated,
    /// It did not answer.
    Failed,
    /// It was not asked, for the next place is faster with artifacts of this size.
    PassedBy,
    /// It was not asked, for too many bytes of tiers were on their way already.
    NoRoom,
}

impl StepOutcome {
    /// The outcome as a word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Negative => "negative",
            Self::Corrupt => "corrupt",
            Self::Outdated => "outdated",
            Self::Failed => "failed",
            Self::PassedBy => "passed_by",
            Self::NoRoom => "no_room",
        }
    }
}

/// One place of a look-up, and how long it took.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// A tier, `memory` for what is remembered of an absence, or the source's name, for a part of what it was asked
    /// with `.metadata`, `.artifact` or `.checksum`.
    pub place: String,
    /// What it said.
    pub outcome: StepOutcome,
    /// Microseconds.
    pub us: u64,
}

/// An artifact, where it was found, and where the time went.
#[derive(Clone, Debug)]
pub struct Found {
    /// The artifact.
    pub stored: Stored,
    /// The tier or source that had it.
    pub place: String,
    /// Every place, in the order they were asked.
    pub steps: Vec<Step>,
    /// Whether the origin, which should have been asked anew, could not be: the copy is older than
    /// [`LookupOptions::fresh_for`](super::LookupOptions::fresh_for).
    pub stale: bool,
    /// The tiers that are to take it in, by their place in the order.
    pub(super) wanting: Vec<usize>,
    /// The tiers that may have none either, since nobody asked them.
    pub(super) unasked: Vec<usize>,
    /// The tier that has just these bytes.
    pub(super) holder: Option<usize>,
    /// The search that found it.
    pub(super) search: Search,
    /// The bytes' share of what may be on its way into memory, until nobody needs this any more.
    pub hold: Option<Arc<Reservation>>,
}

impl Found {
    /// The search that found it.
    pub fn search(&self) -> Search {
        self.search
    }
}

/// What a tier says of a kernel when it is asked without a load.
#[derive(Clone, Debug, Default)]
pub struct InTier {
    /// Its copy.
    pub held: Option<Held>,
    /// What it has noted against the kernel, where this node believes it.
    pub negative: Option<Negative>,
}

/// How fast a place is with artifacts of a size, and what follows from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteStats {
    /// A tier, or the source.
    pub place: String,
    /// The largest artifact of the class, in bytes; absent for the class without a limit.
    pub up_to_bytes: Option<u64>,
    /// What a hit takes, as a mean of the last ones, in microseconds.
    pub mean_us: u64,
    /// Hits measured.
    pub samples: u64,
    /// What it takes to say that it has no copy, as a mean of the last times, in microseconds.
    pub miss_us: u64,
    /// How often it said so.
    pub misses: u64,
    /// Whether it is passed by now.
    pub passed_by: bool,
    /// How often it was passed by.
    pub passes: u64,
}

/// Counters of the look-up and of every tier below it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LookupStats {
    /// Where kernels were found.
    pub found: BTreeMap<String, u64>,
    /// Look-ups that found none, the remembered ones included.
    pub not_found: u64,
    /// Look-ups answered from memory with "known not to be had".
    pub negative_hits: u64,
    /// Kernels that the source does not have.
    pub source_absences: u64,
    /// Look-ups that the source failed.
    pub source_failures: u64,
    /// Copies that the origin was asked about because they were old.
    pub confirmations: u64,
    /// Copies given although the origin, asked about them, did not answer.
    pub stale: u64,
    /// Results remembered in memory now.
    pub negatives: u64,
    /// Writes to tiers that were left out because too many were under way.
    pub writes_skipped: u64,
    /// What tiers may give at a time.
    pub reading: FetchBudgetStats,
    /// The tiers in the order they are asked.
    pub tiers: Vec<TierStats>,
    /// What each place was measured at, where it was.
    pub routes: Vec<RouteStats>,
}
