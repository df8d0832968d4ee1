//! Exporting a seed: what is asked, and what is answered.

use serde::{Deserialize, Serialize};

use crate::{
    digest::Digest,
    id::{LayerId, SeedIndex},
    validation::Metadata,
};

/// See [`Request::Export`](super::Request::Export).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Export {
    /// The layer.
    pub layer: LayerId,
    /// The seed.
    pub seed: SeedIndex,
    /// Where the artifact is to be written, in bytes from the start of the arena.
    pub offset: u64,
    /// How much room there is; 0 to ask how much it takes.
    pub bytes: u64,
}

/// Answers [`Request::Export`](super::Request::Export).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExportReply {
    /// How long the artifact is; where nothing was written, how much room it takes.
    pub bytes: u64,
    /// SHA-256 of what was written; null where there was not room enough, and nothing was.
    pub digest: Option<Digest>,
    /// The catalogue's entry of the kernel that was grafted, with the SHA-256 of its artifact and without what
    /// belongs to that alone: reference, report, signature.
    pub parent: Metadata,
}
