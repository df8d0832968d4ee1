//! The seal of a record: what a tier compares before it believes a kernel's description.

use std::sync::Arc;

use super::Stored;
use crate::{
    digest::Digest,
    id::KernelId,
    validation::{Metadata, Verdict},
};

/// A kernel's description as a tier of bytes keeps it, not yet believed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Described<'a> {
    pub(super) id: &'a KernelId,
    pub(super) digest: Digest,
    /// The catalogue entry as JSON.
    pub(super) metadata: &'a str,
    /// The verdict as JSON.
    pub(super) verdict: Option<&'a str>,
    pub(super) confirmed_unix_ms: i64,
}

impl Described<'_> {
    /// The digest of the description, each part preceded by its length.
    pub(super) fn seal(&self) -> Digest {
        let verdict = self.verdict.unwrap_or_default();
        let confirmed = self.confirmed_unix_ms.to_le_bytes();
        let parts = [
            self.id.as_str().as_bytes(),
            self.digest.as_bytes(),
            self.metadata.as_bytes(),
            verdict.as_bytes(),
            &confirmed,
        ];
        let mut text = Vec::with_capacity(512 + self.metadata.len() + verdict.len());
        for part in parts {
            text.extend_from_slice(&(part.len() as u64).to_le_bytes());
            text.extend_from_slice(part);
        }
        Digest::of(&text)
    }

    /// The kernel, where seal and bytes agree with what was stored.
    ///
    /// Blocking: hashes all of it.
    pub(super) fn open(&self, sealed: &[u8], bytes: &[u8]) -> Option<Stored> {
        if self.seal().as_bytes() != sealed || Digest::of(bytes) != self.digest {
            return None;
        }
        let metadata = Metadata::from_json(self.metadata.as_bytes()).ok()?;
        if metadata.id != *self.id {
            return None;
        }
        let verdict = self.verdict.map(serde_json::from_str).transpose().ok()?.map(Arc::new);
        Some(Stored {
            metadata: Arc::new(metadata),
            digest: self.digest,
            bytes: bytes.into(),
            verdict,
            confirmed_unix_ms: self.confirmed_unix_ms,
        })
    }
}

/// A verdict as tiers keep it.
pub(super) fn verdict_json(verdict: &Verdict) -> String {
    serde_json::to_string(verdict).expect("a verdict has only string keys")
}
