//! Where the numbers come from.

use std::{fmt::Debug, time::Duration};

use futures_util::future::BoxFuture;

use crate::{
    actor::{
        KernelCache, MeasureCache, Ping, ReportStatus, Supervisor,
        base::{AskError, Handle},
    },
    wire::{CacheReport, StatusReport},
};

/// Whom a scrape asks. An answer may take as long as it likes, or never come: the asker bounds it.
pub(super) trait Reports: Debug + Send + Sync {
    /// Whether the supervisor answers.
    fn ping(&self) -> BoxFuture<'_, Result<(), AskError>>;

    /// Sessions, actors, breakers, warming.
    fn status(&self) -> BoxFuture<'_, Result<StatusReport, AskError>>;

    /// Tiers, routes, look-ups, the fleet; each tier has `patience` to say what it holds.
    fn cache(&self, patience: Duration) -> BoxFuture<'_, Result<CacheReport, AskError>>;
}

/// The daemon's actors.
#[derive(Debug)]
pub(super) struct Actors {
    pub(super) supervisor: Handle<Supervisor>,
    pub(super) cache: Handle<KernelCache>,
}

impl Reports for Actors {
    fn ping(&self) -> BoxFuture<'_, Result<(), AskError>> {
        Box::pin(self.supervisor.ask(Ping))
    }

    fn status(&self) -> BoxFuture<'_, Result<StatusReport, AskError>> {
        Box::pin(self.supervisor.ask(ReportStatus))
    }

    fn cache(&self, patience: Duration) -> BoxFuture<'_, Result<CacheReport, AskError>> {
        Box::pin(self.cache.order(MeasureCache { patience }))
    }
}
