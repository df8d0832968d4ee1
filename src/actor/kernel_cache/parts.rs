//! What the cache works with, and how a kernel becomes resident.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::{Holders, LoadLog, OfferCounts, Unconfirmed, WarmPlan, Warming, loads};
use crate::{
    actor::{ActorError, JudgeArtifact, Validator, base::Handle},
    cache::{
        Condemned, DeviceCache, Evictor, FetchBudget, Fleet, Lease, Lookup, Search, SingleFlight, SqlTier,
        TierError,
    },
    clock::Clock,
    engine::Kernel,
    id::KernelId,
    validation::Metadata,
    wire::{EvictReport, LoadReport},
};

/// How long a kernel waits for room where all of it is in use.
const ADMISSION_PATIENCE: Duration = Duration::from_secs(2);

/// How often a kernel is loaded for one who asks, where it is evicted each time meanwhile.
const MOST_LOADS: usize = 4;

/// A kernel in use: it is not evicted while this is held.
pub type KernelLease = Lease<Arc<Kernel>>;

/// A kernel that was loaded, and when it was looked for.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub(super) kernel: Arc<Kernel>,
    /// None of what was offered and not looked for.
    pub(super) search: Option<Search>,
    /// Whether it came from an old copy, because the origin did not answer.
    pub(super) is_old: bool,
}

/// What the cache works with. It outlives the actor, so a restart loses no kernel.
#[derive(Clone, Debug)]
pub struct KernelCacheParts {
    /// L1.
    pub device: DeviceCache<Arc<Kernel>>,
    /// Who holds what of it.
    pub holders: Arc<Holders>,
    /// The tiers below and the origin.
    pub lookup: Arc<Lookup>,
    /// What may be on its way from the origin at a time.
    pub fetching: Arc<FetchBudget>,
    /// The tiers in databases, to be closed at the end.
    pub databases: Vec<Arc<SqlTier>>,
    /// The other nodes, where there is a Redis to reach them by.
    pub fleet: Option<Arc<Fleet>>,
    /// Who judges what was found.
    pub validator: Handle<Validator>,
    /// How long an offered artifact may be, in bytes.
    pub max_offer_bytes: u64,
    /// Kernels that are never evicted once they are here.
    pub pinned: Arc<Mutex<BTreeSet<KernelId>>>,
    /// One load per kernel at a time.
    pub flights: Arc<SingleFlight<KernelId, Result<Loaded, ActorError>>>,
    /// The last loads.
    pub loads: Arc<LoadLog>,
    /// What offers have come to.
    pub offers: Arc<OfferCounts>,
    /// What the origin has not vouched for.
    pub unconfirmed: Arc<Unconfirmed>,
    /// How far warming has come.
    pub warming: Arc<Warming>,
    /// What is warmed at the start.
    pub warm_plan: Arc<WarmPlan>,
    /// The time.
    pub clock: Arc<dyn Clock>,
}

impl KernelCacheParts {
    /// The kernel, loaded where it is not resident. Counts no look-up in memory: who asks for himself has counted it,
    /// and who does not, such as warming, is none.
    pub(super) async fn get(&self, id: KernelId) -> Result<KernelLease, ActorError> {
        if let Some(lease) = self.device.hold(&id) {
            return Ok(lease);
        }
        if id.is_offered() {
            return Err(ActorError::NotOffered { kernel: id });
        }
        for _ in 0..MOST_LOADS {
            let (parts, asked) = (self.clone(), id.clone());
            let loaded = self.flights.run(&id, move || async move { parts.load(asked).await }).await?;
            if let Some(lease) = self.resident(&id, &loaded).await? {
                return Ok(lease);
            }
        }
        Err(ActorError::Evicted { kernel: id })
    }

    /// What has been loaded, held. Another kernel may have pushed it out since; then it comes in again, without
    /// another load.
    pub(super) async fn resident(
        &self,
        id: &KernelId,
        loaded: &Loaded,
    ) -> Result<Option<KernelLease>, ActorError> {
        match self.device.hold(id) {
            Some(lease) => Ok(Some(lease)),
            None => self.admit(id, loaded).await,
        }
    }

    /// Takes a kernel in, unless it has been evicted since it was looked for.
    pub(super) async fn admit(
        &self,
        id: &KernelId,
        loaded: &Loaded,
    ) -> Result<Option<KernelLease>, ActorError> {
        let lease = self.device.admit_wait(id.clone(), loaded.kernel.clone(), ADMISSION_PATIENCE).await?;
        self.unconfirmed.note(id, loaded);
        // Not before it is in: who evicts notes that first, and then looks for it here.
        if loaded.search.is_some_and(|search| self.lookup.is_forgotten(id, search)) {
            // What is there instead of it has been taken in by somebody else, who looks after it.
            if Arc::ptr_eq(&*lease, &loaded.kernel) {
                drop(lease);
                self.device.condemn(id, &Evictor::Earlier);
            }
            return Ok(None);
        }
        Ok(Some(lease))
    }

    async fn load(self, id: KernelId) -> Result<Loaded, ActorError> {
        let start = self.clock.now();
        let mut load = loads::begun(id.clone(), self.clock.unix_ms());
        let result = self.load_timed(&id, &mut load).await;
        load.total_us = micros(self.clock.now() - start);
        load.error = result.as_ref().err().map(ToString::to_string);
        if let Ok(Loaded { kernel, .. }) = &result {
            tracing::info!(
                kernel = %id,
                place = load.place,
                bytes = kernel.resident_bytes(),
                us = load.total_us,
                "kernel loaded"
            );
        }
        self.loads.note(load);
        result
    }

    async fn load_timed(&self, id: &KernelId, load: &mut LoadReport) -> Result<Loaded, ActorError> {
        let start = self.clock.now();
        let found = self.lookup.find(id).await;
        load.look_up_us = micros(self.clock.now() - start);
        let found = found.map_err(|unfound| {
            loads::steps(load, &unfound.steps);
            unfound.error
        })?;
        loads::found(load, &found);
        let (bytes, metadata) = (found.stored.bytes.clone(), found.stored.metadata.clone());
        let earlier = found.stored.verdict.clone();
        let judge = JudgeArtifact { bytes, metadata: Some(Metadata::clone(&metadata)), earlier };
        let judged = self.validator.ask(judge).await??;
        (load.queue_us, load.validate_us) = (judged.queue_us, judged.judge_us);
        let outcome = judged.outcome;
        if let Some(rejection) = outcome.verdict.rejection(id) {
            tracing::warn!(kernel = %id, place = found.place, %rejection, "kernel rejected");
            self.lookup.reject(&found, &rejection);
            return Err(rejection.into());
        }
        self.lookup.keep(&found, Arc::new(outcome.verdict.clone()));
        let module = outcome.module.ok_or(ActorError::Lost { what: "the validation" })?;
        let kernel = Kernel::from_module(id.clone(), Metadata::clone(&metadata), outcome.verdict, module)?;
        let loaded = Loaded { kernel: Arc::new(kernel), search: Some(found.search()), is_old: found.stale };
        if self.admit(id, &loaded).await?.is_some() && lock(&self.pinned).contains(id) {
            self.device.pin(id, true);
        }
        Ok(loaded)
    }

    pub(super) async fn evict(&self, id: KernelId, by: &Evictor) -> Result<EvictReport, ActorError> {
        let mut report = EvictReport::default();
        match self.device.evict(&id, by) {
            Ok(resident) => {
                // From here on no load under way brings it back; one may have just before.
                self.lookup.begin_forgetting(&id);
                self.device.condemn(&id, by);
                let below = self.lookup.forget(&id).await.unwrap_or_else(|error| left(&mut report, &error));
                if resident.is_some() || below {
                    report.evicted.push(id);
                    report.freed_bytes = resident.unwrap_or(0);
                }
            }
            Err(_) => report.in_use.push(id),
        }
        Ok(report)
    }

    /// Has every node forget a kernel. What a seed uses here or there goes with its last use.
    pub(super) async fn evict_everywhere(
        &self,
        id: KernelId,
        by: &Evictor,
    ) -> Result<EvictReport, ActorError> {
        let fleet = self.fleet.as_ref().ok_or(ActorError::NoFleet)?;
        let condemned = self.condemn(&id, by);
        // First from what nodes share, so that nobody who has been told finds it there.
        let below = self.lookup.forget(&id).await;
        let mut failed = EvictReport::default();
        let below = below.unwrap_or_else(|error| left(&mut failed, &error));
        if let Err(error) = fleet.announce(&id).await {
            left(&mut failed, &error);
        }
        Ok(EvictReport { failures: failed.failures, ..report_of(id, condemned, below) })
    }

    /// Sees to it that memory has a kernel no more, because another node had it forgotten.
    pub(super) fn condemn(&self, id: &KernelId, by: &Evictor) -> Condemned {
        self.lookup.begin_forgetting(id);
        let condemned = self.device.condemn(id, by);
        if lock(&self.pinned).contains(id) {
            // It is to be here, as it is now.
            actix::spawn(self.begin_warming(vec![id.clone()]));
        }
        condemned
    }

    /// Trusts nothing any more that it has, because it may have missed that some of it was to be forgotten. What a
    /// seed uses goes on with it; what is pinned is loaded anew, by the work that is returned.
    pub(super) fn doubt(&self) -> impl Future<Output = ()> + use<> {
        // First what memory is filled from.
        self.lookup.doubt_all();
        let condemned = self.device.condemn_all(&Evictor::Gap);
        tracing::warn!(condemned, "kernels may be out of date, they are looked up anew");
        self.begin_warming(lock(&self.pinned).iter().cloned().collect())
    }

    pub(super) async fn clear(&self, tiers: bool, by: &Evictor) -> Result<EvictReport, ActorError> {
        if tiers {
            self.lookup.begin_forgetting_all();
        }
        let gone = self.device.clear(by);
        let in_use = self.device.entries().into_iter().map(|entry| entry.id).collect();
        let mut failed = EvictReport::default();
        if tiers && let Err(error) = self.lookup.clear().await {
            left(&mut failed, &error);
        }
        Ok(EvictReport {
            freed_bytes: gone.iter().map(|(_, bytes)| bytes).sum(),
            evicted: gone.into_iter().map(|(id, _)| id).collect(),
            in_use,
            ..failed
        })
    }

    pub(super) async fn pin(&self, id: KernelId, pinned: bool) -> Result<(), ActorError> {
        if !pinned {
            lock(&self.pinned).remove(&id);
            self.device.pin(&id, false);
            return Ok(());
        }
        let lease = self.get(id.clone()).await?;
        lock(&self.pinned).insert(id.clone());
        self.device.pin(&id, true);
        drop(lease);
        Ok(())
    }

    /// Tells the tiers which kernels were used without their being asked.
    pub(super) async fn note_uses(&self) {
        let mut uses = self.device.take_hits();
        // What warms a node at its start must be what can be had then.
        uses.retain(|(id, _)| !id.is_offered());
        if !uses.is_empty() {
            self.lookup.note_uses(&uses).await;
        }
    }
}

pub(super) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Notes that a tier may still have a copy.
fn left(report: &mut EvictReport, error: &TierError) -> bool {
    report.failures.push(error.to_string());
    false
}

fn report_of(id: KernelId, condemned: Condemned, below: bool) -> EvictReport {
    match condemned {
        Condemned::Gone { bytes } => {
            EvictReport { evicted: vec![id], freed_bytes: bytes, ..EvictReport::default() }
        }
        Condemned::Marked { .. } => EvictReport { condemned: vec![id], ..EvictReport::default() },
        Condemned::Absent if below => EvictReport { evicted: vec![id], ..EvictReport::default() },
        Condemned::Absent => EvictReport::default(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
