//! What the tiers say of themselves, in a form fit for `kasmina cache --json`.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::{KernelId, SessionId};

/// A tier's counters since it was opened, and what it holds now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TierStats {
    /// The tier: `device`, `sqlite`, …
    pub tier: String,
    /// Why it could not be asked what it holds; then entries and bytes are zero.
    #[serde(default)]
    pub error: Option<String>,
    /// Kernels held now.
    pub entries: u64,
    /// Bytes held now.
    pub bytes: u64,
    /// The most kernels it may hold, where that is bounded.
    pub max_entries: Option<u64>,
    /// The most bytes it may hold.
    pub max_bytes: u64,
    /// Kernels that are never evicted.
    pub pinned: u64,
    /// Kernels in somebody's hands.
    pub leased: u64,
    /// Look-ups answered with a kernel.
    pub hits: u64,
    /// Look-ups answered with nothing.
    pub misses: u64,
    /// Look-ups answered with "there is no such kernel" or "it was rejected".
    pub negative_hits: u64,
    /// Kernels taken in.
    pub admissions: u64,
    /// Kernels put out, for whatever reason.
    pub evictions: u64,
    /// How often what was held grew past the limit while all else was in use or pinned.
    #[serde(default)]
    pub overruns: u64,
    /// Copies found damaged and dropped.
    pub corrupt: u64,
    /// Requests the tier itself failed.
    pub failures: u64,
    /// Kernels too large for it, which it did not take in.
    #[serde(default)]
    pub passed_over: u64,
}

/// One kernel in the device tier.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryStats {
    /// Which kernel.
    pub id: KernelId,
    /// What it weighs.
    pub bytes: u64,
    /// Milliseconds since it was taken in.
    pub age_ms: u64,
    /// Milliseconds since it was last let go; 0 while a lease is out.
    pub idle_ms: u64,
    /// How often it was found.
    pub hits: u64,
    /// How many leases are out on it.
    pub holders: u32,
    /// Whether it is never evicted.
    pub pinned: bool,
}

/// A kernel that no look-up finds any more and that somebody still uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeavingStats {
    /// Which kernel.
    pub id: KernelId,
    /// What it weighs.
    pub bytes: u64,
    /// Milliseconds since it was condemned.
    pub leaving_ms: u64,
    /// How many leases are out on it.
    pub holders: u32,
}

/// Who had a kernel put out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "who")]
pub enum Evictor {
    /// An operator of this node.
    Operator {
        /// The user he is.
        uid: u32,
    },
    /// Another node.
    Node {
        /// Its name.
        name: String,
    },
    /// The daemon itself, which may have missed what another node said.
    Gap,
    /// Whoever had it forgotten while it was being loaded.
    Earlier,
    /// The origin, which has another of that name, or none any more.
    Origin,
    /// The session that had offered it, and has ended or has offered others since.
    Session {
        /// Its number.
        session: SessionId,
    },
}

impl fmt::Display for Evictor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operator { uid } => write!(f, "uid {uid}"),
            Self::Node { name } => write!(f, "node {name}"),
            Self::Earlier => f.write_str("an eviction that came while it was being loaded"),
            Self::Gap => f.write_str("a gap in what other nodes announce"),
            Self::Origin => f.write_str("the origin, which has another now, or none"),
            Self::Session { session } => write!(f, "session {session}, which had offered it"),
        }
    }
}

/// Why a kernel left the device tier.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "reason")]
pub enum EvictionReason {
    /// Room was needed, and it was the least recently used.
    Room {
        /// Who came in, or grew.
        newcomer: KernelId,
    },
    /// Someone asked for just this.
    Asked {
        /// Who.
        by: Evictor,
    },
    /// Someone asked for all to go.
    Cleared {
        /// Who.
        by: Evictor,
    },
    /// Another version came in under its name.
    Replaced,
    /// It must not be found any more, whoever held or pinned it.
    Invalidated {
        /// Who said so.
        by: Evictor,
    },
}

impl EvictionReason {
    /// The reason as a word.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Room { .. } => "room",
            Self::Asked { .. } => "asked",
            Self::Cleared { .. } => "cleared",
            Self::Replaced => "replaced",
            Self::Invalidated { .. } => "invalidated",
        }
    }

    /// For whom room was made.
    pub fn newcomer(&self) -> Option<&KernelId> {
        match self {
            Self::Room { newcomer } => Some(newcomer),
            _ => None,
        }
    }

    /// Who wanted it out.
    pub fn by(&self) -> Option<&Evictor> {
        match self {
            Self::Asked { by } | Self::Cleared { by } | Self::Invalidated { by } => Some(by),
            Self::Room { .. } | Self::Replaced => None,
        }
    }
}

/// An eviction that has happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Eviction {
    /// Which kernel.
    pub id: KernelId,
    /// Why.
    #[serde(flatten)]
    pub reason: EvictionReason,
    /// What it weighed.
    pub bytes: u64,
    /// How long nobody had used it, in milliseconds.
    pub idle_ms: u64,
    /// When, in milliseconds since 1970.
    pub at_unix_ms: i64,
}
