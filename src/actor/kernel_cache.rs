//! The kernel cache: from a name to a kernel that runs, once however many ask.

use std::sync::Arc;

use actix::{Actor, Context, Handler, Message, ResponseFuture};

use super::{
    ActorError, JudgeArtifact, Validator,
    base::{Handle, Life, stops_in_order},
};
use crate::{
    cache::{DeviceCache, Lease, Lookup, SingleFlight, SqlTier},
    engine::Kernel,
    id::KernelId,
    validation::Metadata,
    wire::{CacheReport, CachedKernel, EvictReport, TierReport},
};

const MAILBOX: usize = 1024;

/// A kernel in use: it is not evicted while this is held.
pub type KernelLease = Arc<Lease<Arc<Kernel>>>;

/// What the cache works with. It outlives the actor, so a restart loses no kernel.
#[derive(Clone, Debug)]
pub struct KernelCacheParts {
    /// L1.
    pub device: DeviceCache<Arc<Kernel>>,
    /// The tiers below and the origin.
    pub lookup: Arc<Lookup>,
    /// The tiers in databases, to be closed at the end.
    pub databases: Vec<Arc<SqlTier>>,
    /// Who judges what was found.
    pub validator: Handle<Validator>,
    /// Kernels that are never evicted once they are here.
    pub pinned: Arc<[KernelId]>,
    /// One load per kernel at a time.
    pub flights: Arc<SingleFlight<KernelId, Result<Arc<Kernel>, ActorError>>>,
}

impl KernelCacheParts {
    async fn get(&self, id: KernelId) -> Result<KernelLease, ActorError> {
        if let Some(lease) = self.device.lease(&id) {
            return Ok(Arc::new(lease));
        }
        let parts = self.clone();
        let asked = id.clone();
        let kernel = self.flights.run(&id, move || async move { parts.load(asked).await }).await?;
        // Another kernel may have pushed it out since; then it comes in again, without another load.
        let lease = match self.device.hold(&id) {
            Some(lease) => lease,
            None => self.device.admit(id, kernel)?,
        };
        Ok(Arc::new(lease))
    }

    async fn load(self, id: KernelId) -> Result<Arc<Kernel>, ActorError> {
        let found = self.lookup.find(&id).await?;
        let (bytes, metadata) = (found.stored.bytes.clone(), found.stored.metadata.clone());
        let outcome =
            self.validator.ask(JudgeArtifact { bytes, metadata: Some(Metadata::clone(&metadata)) }).await??;
        self.lookup.note_verdict(&id, &outcome.verdict).await;
        if let Some(rejection) = outcome.verdict.rejection(&id) {
            tracing::warn!(kernel = %id, place = found.place, %rejection, "kernel rejected");
            return Err(rejection.into());
        }
        let module = outcome.module.ok_or(ActorError::Lost { what: "the validation" })?;
        let kernel = Kernel::from_module(id.clone(), Metadata::clone(&metadata), outcome.verdict, module)?;
        let kernel = Arc::new(kernel);
        self.device.admit(id.clone(), kernel.clone())?;
        if self.pinned.contains(&id) {
            self.device.pin(&id, true);
        }
        tracing::info!(kernel = %id, place = found.place, bytes = kernel.resident_bytes(), "kernel loaded");
        Ok(kernel)
    }

    async fn report(&self) -> CacheReport {
        let (device, below) = (self.device.stats(), self.lookup.stats().await);
        let tier = |name: &str, stats: crate::cache::TierStats| TierReport {
            name: name.to_owned(),
            hits: stats.hits,
            misses: stats.misses,
            errors: stats.failures + stats.corrupt,
            evictions: stats.evictions,
            entries: Some(stats.entries),
            bytes: Some(stats.bytes),
            limit_bytes: Some(stats.max_bytes),
        };
        let mut tiers = vec![tier("l1", device)];
        tiers.extend(below.tiers.into_iter().map(|stats| tier("l3", stats)));
        let origin_hits = below.found.iter().filter(|(place, _)| !is_tier(place)).map(|(_, n)| n).sum();
        let origin = TierReport {
            name: "origin".into(),
            hits: origin_hits,
            misses: below.not_found,
            ..TierReport::default()
        };
        tiers.push(origin);
        let mut entries = self.device.entries();
        entries.sort_by_key(|entry| entry.idle_ms);
        let kernels = entries.into_iter().filter_map(|entry| {
            let kernel = self.device.peek(&entry.id)?;
            Some(CachedKernel {
                kernel: entry.id,
                digest: kernel.digest().to_string(),
                bytes: entry.bytes,
                pins: entry.holders + u32::from(entry.pinned),
                hits: entry.hits,
                plans: kernel.plan_count(),
            })
        });
        CacheReport { tiers, kernels: kernels.collect() }
    }

    async fn evict(&self, id: KernelId) -> Result<EvictReport, ActorError> {
        let bytes = self.device.entries().iter().find(|entry| entry.id == id).map_or(0, |entry| entry.bytes);
        let mut report = EvictReport::default();
        match self.device.evict(&id) {
            Ok(resident) => {
                // A tier that fails says so in its counters; what it holds is checked when it is read.
                let below = self.lookup.forget(&id).await.unwrap_or(false);
                if resident || below {
                    report.evicted.push(id);
                    report.freed_bytes = if resident { bytes } else { 0 };
                }
            }
            Err(_) => report.in_use.push(id),
        }
        Ok(report)
    }

    fn clear(&self) -> EvictReport {
        let before = self.device.entries();
        self.device.clear();
        let stays: Vec<KernelId> = self.device.entries().into_iter().map(|entry| entry.id).collect();
        let gone: Vec<_> = before.into_iter().filter(|entry| !stays.contains(&entry.id)).collect();
        EvictReport {
            freed_bytes: gone.iter().map(|entry| entry.bytes).sum(),
            evicted: gone.into_iter().map(|entry| entry.id).collect(),
            in_use: stays,
        }
    }
}

fn is_tier(place: &str) -> bool {
    matches!(place, "device" | "sqlite" | "redis" | "postgres")
}

/// Keeps kernels ready to run.
#[derive(Debug)]
pub struct KernelCache {
    parts: KernelCacheParts,
    life: Life,
}

impl KernelCache {
    /// A cache over its parts.
    pub fn new(parts: KernelCacheParts, life: Life) -> Self {
        Self { parts, life }
    }
}

impl Actor for KernelCache {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        context.set_mailbox_capacity(MAILBOX);
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

/// Tells that a resident kernel has grown by a plan, so that its weight is taken anew.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct ReweighKernel(
    /// Which.
    pub KernelId,
);

impl Handler<ReweighKernel> for KernelCache {
    type Result = ();

    fn handle(&mut self, ReweighKernel(id): ReweighKernel, _: &mut Self::Context) {
        if let Err(error) = self.parts.device.reweigh(&id) {
            tracing::warn!(kernel = %id, %error, "the cache is over its budget, for what it holds is in use");
        }
    }
}

/// Begins to load kernels that are not resident, and says how many.
#[derive(Debug, Message)]
#[rtype(result = "u32")]
pub struct PrefetchKernels(
    /// Which.
    pub Vec<KernelId>,
);

impl Handler<PrefetchKernels> for KernelCache {
    type Result = u32;

    fn handle(&mut self, PrefetchKernels(ids): PrefetchKernels, _: &mut Self::Context) -> u32 {
        let absent: Vec<KernelId> =
            ids.into_iter().filter(|id| self.parts.device.peek(id).is_none()).collect();
        let (started, parts) = (absent.len() as u32, self.parts.clone());
        // One after the other: hints must not take the places of those who wait.
        actix::spawn(async move {
            for id in absent {
                if let Err(error) = parts.get(id.clone()).await {
                    tracing::warn!(kernel = %id, %error, "prefetch failed");
                }
            }
        });
        started
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

/// Drops a kernel from every tier of this node, unless a seed uses it.
#[derive(Debug, Message)]
#[rtype(result = "Result<EvictReport, ActorError>")]
pub struct EvictKernel(
    /// Which.
    pub KernelId,
);

impl Handler<EvictKernel> for KernelCache {
    type Result = ResponseFuture<Result<EvictReport, ActorError>>;

    fn handle(&mut self, EvictKernel(id): EvictKernel, _: &mut Self::Context) -> Self::Result {
        let parts = self.parts.clone();
        Box::pin(async move { parts.evict(id).await })
    }
}

/// Drops every resident kernel that no seed uses.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "EvictReport")]
pub struct ClearKernels;

impl Handler<ClearKernels> for KernelCache {
    type Result = actix::MessageResult<ClearKernels>;

    fn handle(&mut self, _: ClearKernels, _: &mut Self::Context) -> Self::Result {
        actix::MessageResult(self.parts.clear())
    }
}

/// Waits until everything found has reached the tiers it was to fill, and closes the tier on disk.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct CloseCache;

impl Handler<CloseCache> for KernelCache {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: CloseCache, _: &mut Self::Context) -> Self::Result {
        let parts = self.parts.clone();
        Box::pin(async move {
            parts.lookup.settle().await;
            for database in &parts.databases {
                database.close().await;
            }
        })
    }
}
