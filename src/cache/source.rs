//! The port to where kernels come from, as the look-up sees it.

use std::{fmt, sync::Arc};

use futures_util::future::BoxFuture;

use super::{Reservation, Stored};
use crate::{fault::Fault, id::KernelId, validation::Metadata};

/// An error that many can hold: all who waited for one fetch get the same.
pub type SharedFault = Arc<dyn Fault + Send + Sync>;

/// An artifact fresh from its origin, and how long that took.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// The artifact, in agreement with its catalogue's checksum where there is one.
    pub stored: Stored,
    /// Microseconds for the catalogue entry.
    pub metadata_us: u64,
    /// Microseconds for the bytes, without their digest.
    pub artifact_us: u64,
    /// Microseconds for the digest.
    pub checksum_us: u64,
    /// The bytes' share of the budget, where there is one.
    pub hold: Option<Arc<Reservation>>,
}

/// Where artifacts come from that no tier holds.
pub trait Source: Send + Sync + fmt::Debug {
    /// The source's name in statistics and logs.
    fn name(&self) -> &str;

    /// A kernel's catalogue entry alone.
    fn entry<'a>(&'a self, id: &'a KernelId) -> BoxFuture<'a, Result<Metadata, SharedFault>>;

    /// Fetches a kernel. Retries and circuit breaking are the source's own affair; an error is final for
    /// this look-up, and its class says whether it may be remembered.
    fn fetch<'a>(&'a self, id: &'a KernelId) -> BoxFuture<'a, Result<Fetched, SharedFault>>;
}
