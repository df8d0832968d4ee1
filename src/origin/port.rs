//! The port of an origin: what every place that publishes kernels promises.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;

use super::OriginError;
use crate::{
    cache::Reservation,
    digest::Digest,
    guard::BreakerStatus,
    id::KernelId,
    validation::{Metadata, Status},
};

/// A kernel's bytes with their digest.
#[derive(Clone)]
pub struct Blob {
    /// The bytes.
    pub bytes: Arc<[u8]>,
    /// Their SHA-256.
    pub digest: Digest,
    /// How long that took, of the time for the whole.
    pub hashing: Duration,
    /// Their share of what may be on its way at a time, where that is bounded.
    pub hold: Option<Arc<Reservation>>,
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Blob({} of {} bytes)", self.digest, self.bytes.len())
    }
}

impl Blob {
    /// Hashes bytes that are there already. Blocking: about a millisecond a megabyte.
    pub fn hashed(bytes: Arc<[u8]>) -> Self {
        let start = Instant::now();
        let digest = Digest::of(&bytes);
        Self { bytes, digest, hashing: start.elapsed(), hold: None }
    }

    /// The blob, if it is what the entry's checksum is of, where it has one.
    pub(super) fn checked(self, metadata: &Metadata) -> Result<Self, OriginError> {
        match metadata.checksum {
            Some(expected) if expected != self.digest => {
                Err(OriginError::Checksum { id: metadata.id.clone(), expected, actual: self.digest })
            }
            _ => Ok(self),
        }
    }
}

/// A place that publishes kernels.
///
/// An origin is asked through [`Guarded`](super::Guarded). Its errors' classes decide what retries and breakers
/// make of them: [`Unavailable`](crate::fault::ErrorClass::Unavailable) says that the origin failed, all others
/// that it answered. Every call may be cancelled without harm.
pub trait Origin: Send + Sync + fmt::Debug {
    /// The origin's name in statistics, logs and errors.
    fn name(&self) -> &str;

    /// A kernel's catalogue entry, which names that kernel and has a status that is accepted.
    fn metadata<'a>(&'a self, id: &'a KernelId) -> BoxFuture<'a, Result<Metadata, OriginError>>;

    /// A kernel's bytes, within the size limit and in agreement with the entry's checksum where it has one.
    fn artifact<'a>(&'a self, metadata: &'a Metadata) -> BoxFuture<'a, Result<Blob, OriginError>>;

    /// The breakers within it, one for each thing that can be down by itself; none where the whole is one
    /// thing, before which [`Guarded`](super::Guarded) puts a breaker.
    fn breakers(&self) -> Vec<BreakerStatus> {
        Vec::new()
    }
}

/// Whether a kernel in the entry's status may be given.
pub(super) fn accept_status(metadata: &Metadata, accept_testing: bool) -> Result<(), OriginError> {
    let accepted = match metadata.status {
        Status::Validated | Status::Deployed => true,
        Status::Testing => accept_testing,
        Status::Invalid => false,
    };
    if accepted {
        return Ok(());
    }
    Err(OriginError::Status { id: metadata.id.clone(), status: metadata.status })
}
