//! The kernel cache: from a name to a kernel that runs, once however many ask.

mod holders;
mod kernels;
mod loads;
mod offers;
mod parts;
mod report;
mod unconfirmed;
mod warm;

#[cfg(test)]
mod actor_tests;
#[cfg(test)]
mod load_tests;
#[cfg(test)]
mod offer_tests;

use std::time::Duration;

use actix::{
    Actor, ActorFutureExt as _, AsyncContext as _, Context, Handler, Message, ResponseFuture, WrapFuture as _,
};
pub use holders::{HeldKernel, Holder, Holders};
pub use kernels::Kernels;
pub use loads::LoadLog;
pub use offers::{OfferCounts, OfferKernel};
pub use parts::{KernelCacheParts, KernelLease};
use tokio::sync::oneshot;
pub use unconfirmed::Unconfirmed;
pub use warm::{WarmPlan, Warming};

use super::{
    ActorError,
    base::{Life, stops_in_order},
};
use crate::{
    cache::{Evictor, TierError},
    digest::Digest,
    guard::BreakerStatus,
    id::KernelId,
    wire::{CacheReport, EvictReport, WarmReport, WhyReport},
};

const MAILBOX: usize = 1024;

/// How often the tiers are told of the uses they did not see.
const NOTE_USES_EVERY: Duration = Duration::from_secs(60);

/// How long what is found has to reach the tiers when the daemon leaves. A tier owes nobody its content.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

/// How often the origin is asked about kernels that came from old copies.
const CONFIRM_EVERY: Duration = Duration::from_secs(30);

/// Keeps kernels ready to run.
#[derive(Debug)]
pub struct KernelCache {
    parts: KernelCacheParts,
    life: Life,
    /// Whether a round of questions about old copies is under way.
    is_confirming: bool,
}

impl KernelCache {
    /// A cache over its parts.
    pub fn new(parts: KernelCacheParts, life: Life) -> Self {
        Self { parts, life, is_confirming: false }
    }
}

impl Actor for KernelCache {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        context.set_mailbox_capacity(MAILBOX);
        context.run_interval(NOTE_USES_EVERY, |cache, _| {
            let parts = cache.parts.clone();
            actix::spawn(async move { parts.note_uses().await });
        });
        context.run_interval(CONFIRM_EVERY, |cache, context| {
            // One round at a time: a place that hangs must not have them pile up.
            if !std::mem::replace(&mut cache.is_confirming, true) {
                let parts = cache.parts.clone();
                let round = async move { parts.confirm_old().await };
                context.spawn(round.into_actor(cache).map(|(), cache, _| cache.is_confirming = false));
            }
        });
    }
}

stops_in_order!(KernelCache);

/// Asks for a kernel, loading and proving it where it is not resident.
#[derive(Debug, Message)]
#[rtype(result = "Result<KernelLease, ActorError>")]
pub struct GetKernel(
    /// Which.
    pub KernelId,
);

impl Handler<GetKernel> for KernelCache {
    type Result = ResponseFuture<Result<KernelLease, ActorError>>;

    fn handle(&mut self, GetKernel(id): GetKernel, _: &mut Self::Context) -> Self::Result {
        let parts = self.parts.clone();
        Box::pin(async move { parts.get(id).await })
    }
}

impl Handler<OfferKernel> for KernelCache {
    type Result = ResponseFuture<Result<Digest, ActorError>>;

    fn handle(&mut self, offer: OfferKernel, _: &mut Self::Context) -> Self::Result {
        let parts = self.parts.clone();
        Box::pin(async move { parts.offer(offer).await })
    }
}

/// Tells that a resident kernel has grown by a plan, so that its weight is taken anew.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct ReweighKernel {
    /// Which.
    pub kernel: KernelId,
    /// Microseconds of the planning, where it was planned for a graft.
    pub plan_us: Option<u64>,
}

impl Handler<ReweighKernel> for KernelCache {
    type Result = ();

    fn handle(&mut self, message: ReweighKernel, _: &mut Self::Context) {
        let ReweighKernel { kernel: id, plan_us } = message;
        if let Some(plan_us) = plan_us {
            self.parts.loads.note_plan(&id, plan_us);
        }
        if let Err(error) = self.parts.device.reweigh(&id) {
            tracing::warn!(kernel = %id, %error, "the cache is over its budget, for what it holds is in use");
        }
    }
}

/// Loads a kernel that nobody needs yet, for as long as somebody wants it.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), ActorError>")]
pub struct PrefetchKernel {
    /// Which.
    pub kernel: KernelId,
    /// Closed once nobody wants it any more.
    pub wanted: oneshot::Receiver<()>,
}

impl Handler<PrefetchKernel> for KernelCache {
    type Result = ResponseFuture<Result<(), ActorError>>;

    fn handle(&mut self, message: PrefetchKernel, _: &mut Self::Context) -> Self::Result {
        let PrefetchKernel { kernel, wanted } = message;
        let parts = self.parts.clone();
        Box::pin(async move {
            tokio::select! {
                // Dropping this leaves the work to whoever else waits for the kernel.
                loaded = parts.get(kernel) => loaded.map(drop),
                _ = wanted => Ok(()),
            }
        })
    }
}

/// Asks what the tiers hold and how they did.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "CacheReport")]
pub struct ReportCache;

impl Handler<ReportCache> for KernelCache {
    type Result = ResponseFuture<CacheReport>;

    fn handle(&mut self, _: ReportCache, _: &mut Self::Context) -> Self::Result {
        let parts = self.parts.clone();
        Box::pin(async move { parts.report().await })
    }
}

/// Asks what [`ReportCache`] does, without the kernels one by one, and soon: a tier that takes longer is told of
/// without its contents.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "CacheReport")]
pub struct MeasureCache {
    /// How long each tier has to say what it holds.
    pub patience: Duration,
}

impl Handler<MeasureCache> for KernelCache {
    type Result = ResponseFuture<CacheReport>;

    fn handle(&mut self, MeasureCache { patience }: MeasureCache, _: &mut Self::Context) -> Self::Result {
        let parts = self.parts.clone();
        Box::pin(async move { parts.measure(patience).await })
    }
}

/// Drops a kernel from memory and from every tier, unless a seed uses it.
#[derive(Debug, Message)]
#[rtype(result = "Result<EvictReport, ActorError>")]
pub struct EvictKernel {
    /// Which.
    pub kernel: KernelId,
    /// Whether every node is to drop it; then what a seed uses goes with its last use.
    pub fleet: bool,
    /// Who wants it.
    pub by: Evictor,
}

impl Handler<EvictKernel> for KernelCache {
    type Result = ResponseFuture<Result<EvictReport, ActorError>>;

    fn handle(&mut self, message: EvictKernel, _: &mut Self::Context) -> Self::Result {
        let EvictKernel { kernel, fleet, by } = message;
        let parts = self.parts.clone();
        Box::pin(async move {
            if fleet { parts.evict_everywhere(kernel, &by).await } else { parts.evict(kernel, &by).await }
        })
    }
}

/// Sees to it that nobody finds kernels in memory any more, because other nodes had them forgotten everywhere. What a
/// seed uses goes with its last use.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct CondemnKernels(
    /// Which, and by whom.
    pub Vec<(KernelId, Evictor)>,
);

impl Handler<CondemnKernels> for KernelCache {
    type Result = ();

    fn handle(&mut self, CondemnKernels(kernels): CondemnKernels, _: &mut Self::Context) {
        for (kernel, by) in kernels {
            self.parts.condemn(&kernel, &by);
        }
    }
}

/// Drops a kernel, which is condemned, from the tiers that this node alone keeps.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), TierError>")]
pub struct ForgetKernel(
    /// Which.
    pub KernelId,
);

impl Handler<ForgetKernel> for KernelCache {
    type Result = ResponseFuture<Result<(), TierError>>;

    fn handle(&mut self, ForgetKernel(kernel): ForgetKernel, _: &mut Self::Context) -> Self::Result {
        let parts = self.parts.clone();
        Box::pin(async move { parts.lookup.forget_here(&kernel).await.map(drop) })
    }
}

/// Drops every kernel from memory, those in use with their last use, and has every copy below confirmed: this
/// node may have missed what another said.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct DoubtKernels;

impl Handler<DoubtKernels> for KernelCache {
    type Result = ();

    fn handle(&mut self, _: DoubtKernels, _: &mut Self::Context) {
        actix::spawn(self.parts.doubt());
    }
}

/// Drops every resident kernel that no seed uses.
#[derive(Clone, Debug, Message)]
#[rtype(result = "Result<EvictReport, ActorError>")]
pub struct ClearKernels {
    /// Whether the tiers below are emptied too.
    pub tiers: bool,
    /// Who wants it.
    pub by: Evictor,
}

impl Handler<ClearKernels> for KernelCache {
    type Result = ResponseFuture<Result<EvictReport, ActorError>>;

    fn handle(&mut self, ClearKernels { tiers, by }: ClearKernels, _: &mut Self::Context) -> Self::Result {
        let parts = self.parts.clone();
        Box::pin(async move { parts.clear(tiers, &by).await })
    }
}

/// Begins to load kernels as warming does, and says how far that is.
#[derive(Debug, Message)]
#[rtype(result = "WarmReport")]
pub struct WarmKernels(
    /// Which.
    pub Vec<KernelId>,
);

impl Handler<WarmKernels> for KernelCache {
    type Result = actix::MessageResult<WarmKernels>;

    fn handle(&mut self, WarmKernels(kernels): WarmKernels, _: &mut Self::Context) -> Self::Result {
        let work = self.parts.begin_warming(kernels);
        let report = self.parts.warming.report();
        actix::spawn(work);
        actix::MessageResult(report)
    }
}

/// Begins the warming that the configuration asks for.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct WarmStart;

impl Handler<WarmStart> for KernelCache {
    type Result = ();

    fn handle(&mut self, WarmStart: WarmStart, _: &mut Self::Context) {
        let parts = self.parts.clone();
        actix::spawn(async move { parts.warm_start().await });
    }
}

/// What the cache adds to the daemon's status.
#[derive(Clone, Debug, Default)]
pub struct SupplyStatus {
    /// How far warming has come.
    pub warming: WarmReport,
    /// The breakers before the tiers.
    pub breakers: Vec<BreakerStatus>,
}

/// Asks how far warming has come and how the tiers' breakers stand.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "SupplyStatus")]
pub struct ReportSupply;

impl Handler<ReportSupply> for KernelCache {
    type Result = actix::MessageResult<ReportSupply>;

    fn handle(&mut self, _: ReportSupply, _: &mut Self::Context) -> Self::Result {
        let (warming, breakers) = (self.parts.warming.report(), self.parts.lookup.breakers());
        actix::MessageResult(SupplyStatus { warming, breakers })
    }
}

/// Loads a kernel and keeps it in memory, or lets it go again.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), ActorError>")]
pub struct PinKernel {
    /// Which.
    pub kernel: KernelId,
    /// Whether it is to stay.
    pub pinned: bool,
}

impl Handler<PinKernel> for KernelCache {
    type Result = ResponseFuture<Result<(), ActorError>>;

    fn handle(&mut self, PinKernel { kernel, pinned }: PinKernel, _: &mut Self::Context) -> Self::Result {
        let parts = self.parts.clone();
        Box::pin(async move { parts.pin(kernel, pinned).await })
    }
}

/// Asks for all that the cache knows of a kernel; seeds and breakers are others' to add.
#[derive(Debug, Message)]
#[rtype(result = "WhyReport")]
pub struct ExplainKernel(
    /// Which.
    pub KernelId,
);

impl Handler<ExplainKernel> for KernelCache {
    type Result = ResponseFuture<WhyReport>;

    fn handle(&mut self, ExplainKernel(id): ExplainKernel, _: &mut Self::Context) -> Self::Result {
        let parts = self.parts.clone();
        Box::pin(async move { parts.explain(id).await })
    }
}

/// Waits until everything found has reached the tiers it was to fill, but not for ever, and closes those in databases.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct CloseCache;

impl Handler<CloseCache> for KernelCache {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: CloseCache, _: &mut Self::Context) -> Self::Result {
        let parts = self.parts.clone();
        Box::pin(async move {
            let written = async {
                parts.note_uses().await;
                parts.lookup.settle().await;
                for database in &parts.databases {
                    database.close().await;
                }
            };
            if tokio::time::timeout(CLOSE_PATIENCE, written).await.is_err() {
                tracing::warn!("a tier does not answer: what it was still to be told is lost");
            }
        })
    }
}
