//! The port of an origin: what every place that publishes kernels promises.

use std::{fmt, sync::Arc};

use futures_util::future::BoxFuture;

use super::OriginError;
use crate::{id::KernelId, validation::Metadata};

/// A place that publishes kernels.
///
/// An origin is asked through [`Guarded`](super::Guarded), which waits, tries again and gives up for it.
/// Its errors' classes decide: [`Unavailable`](crate::fault::ErrorClass::Unavailable) says that the origin
/// failed, all others that it answered. Every call may be cancelled without harm.
pub trait Origin: Send + Sync + fmt::Debug {
    /// The origin's name in statistics, logs and errors.
    fn name(&self) -> &str;

    /// A kernel's catalogue entry, which names that kernel and has a status that is accepted.
    fn metadata<'a>(&'a self, id: &'a KernelId) -> BoxFuture<'a, Result<Metadata, OriginError>>;

    /// A kernel's bytes, within the size limit and in agreement with the entry's checksum where it has one.
    fn artifact<'a>(&'a self, metadata: &'a Metadata) -> BoxFuture<'a, Result<Arc<[u8]>, OriginError>>;
}
