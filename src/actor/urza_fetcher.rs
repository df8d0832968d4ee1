//! The fetcher: asks the catalogue for kernels, behind its circuit breakers.

use std::sync::Arc;

use actix::{Actor, Context, Handler, Message, ResponseFuture};
use futures_util::future::BoxFuture;

use super::base::{Handle, Life, stops_in_order};
use crate::{
    cache::{Fetched, SharedFault, Source},
    guard::BreakerStatus,
    id::KernelId,
    origin::Guarded,
    validation::Metadata,
};

const MAILBOX: usize = 256;

/// Fetches kernels from their origin.
///
/// The guard with its breakers is shared with the supervisor's factory, so that a restart of the actor does
/// not close a breaker that had good reason to be open.
#[derive(Debug)]
pub struct UrzaFetcher {
    origin: Arc<Guarded>,
    life: Life,
}

impl UrzaFetcher {
    /// A fetcher from a guarded origin.
    pub fn new(origin: Arc<Guarded>, life: Life) -> Self {
        Self { origin, life }
    }
}

impl Actor for UrzaFetcher {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        context.set_mailbox_capacity(MAILBOX);
    }
}

stops_in_order!(UrzaFetcher);

/// Asks for a kernel's catalogue entry and bytes.
#[derive(Debug, Message)]
#[rtype(result = "Result<Fetched, SharedFault>")]
pub struct FetchKernel(
    /// Which.
    pub KernelId,
);

impl Handler<FetchKernel> for UrzaFetcher {
    type Result = ResponseFuture<Result<Fetched, SharedFault>>;

    fn handle(&mut self, FetchKernel(id): FetchKernel, _: &mut Self::Context) -> Self::Result {
        let origin = self.origin.clone();
        Box::pin(async move { origin.fetch(&id).await.map_err(|error| Arc::new(error) as SharedFault) })
    }
}

/// Asks for a kernel's catalogue entry alone.
#[derive(Debug, Message)]
#[rtype(result = "Result<Metadata, SharedFault>")]
pub struct FetchEntry(
    /// Which.
    pub KernelId,
);

impl Handler<FetchEntry> for UrzaFetcher {
    type Result = ResponseFuture<Result<Metadata, SharedFault>>;

    fn handle(&mut self, FetchEntry(id): FetchEntry, _: &mut Self::Context) -> Self::Result {
        let origin = self.origin.clone();
        Box::pin(async move { origin.entry(&id).await.map_err(|error| Arc::new(error) as SharedFault) })
    }
}

/// Asks how the origin's breakers stand.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Vec<BreakerStatus>")]
pub struct ReportBreakers;

impl Handler<ReportBreakers> for UrzaFetcher {
    type Result = actix::MessageResult<ReportBreakers>;

    fn handle(&mut self, _: ReportBreakers, _: &mut Self::Context) -> Self::Result {
        actix::MessageResult(self.origin.breakers())
    }
}

/// The fetcher as the look-up's source.
#[derive(Debug)]
pub struct FetcherSource {
    name: String,
    fetcher: Handle<UrzaFetcher>,
}

impl FetcherSource {
    /// A source that asks the fetcher, under the origin's name.
    pub fn new(name: impl Into<String>, fetcher: Handle<UrzaFetcher>) -> Self {
        Self { name: name.into(), fetcher }
    }
}

impl Source for FetcherSource {
    fn name(&self) -> &str {
        &self.name
    }

    fn entry<'a>(&'a self, id: &'a KernelId) -> BoxFuture<'a, Result<Metadata, SharedFault>> {
        Box::pin(async move {
            match self.fetcher.ask(FetchEntry(id.clone())).await {
                Ok(result) => result,
                Err(error) => Err(Arc::new(error) as SharedFault),
            }
        })
    }

    fn fetch<'a>(&'a self, id: &'a KernelId) -> BoxFuture<'a, Result<Fetched, SharedFault>> {
        Box::pin(async move {
            match self.fetcher.ask(FetchKernel(id.clone())).await {
                Ok(result) => result,
                Err(error) => Err(Arc::new(error) as SharedFault),
            }
        })
    }
}
