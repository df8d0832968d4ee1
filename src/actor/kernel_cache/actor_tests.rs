//! The cache's actor over a source whose answers are set.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::ready,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::yield_now,
};

use super::{parts::Loaded, *};
use crate::{
    actor::{
        Validator,
        base::{Child as _, Handle, RestartPolicy, Supervised},
    },
    cache::{
        Answer, Budget, DeviceCache, FetchBudget, Fetched, Held, Lookup, LookupOptions, Negative,
        SharedFault, SingleFlight, Source, Stored, Tier, TierError, TierStats,
    },
    clock::{Clock, ManualClock},
    digest::Digest,
    engine::Kernel,
    fault::{ErrorClass, Fault},
    id::{Generation, LayerId, SeedIndex, SessionId},
    validation::{Metadata, Policy, Verdict},
};

const BY: Evictor = Evictor::Operator { uid: 1000 };
const WORK: usize = 4;

fn id(text: &str) -> KernelId {
    text.parse().unwrap()
}

#[derive(Clone, Debug, thiserror::Error)]
#[error("the source said {0}")]
struct Said(ErrorClass);

impl Fault for Said {
    fn class(&self) -> ErrorClass {
        self.0
    }

    fn code(&self) -> &'static str {
        "origin.unavailable"
    }
}

/// Gives every kernel, unless it is told otherwise; while the gate is shut it does not answer.
#[derive(Debug)]
struct Scripted {
    refuses: Mutex<BTreeMap<KernelId, ErrorClass>>,
    open: watch::Sender<bool>,
    asked: AtomicUsize,
    answering: Arc<AtomicUsize>,
    bytes: Arc<[u8]>,
}

/// Counts a request for as long as its asker waits.
struct Waits(Arc<AtomicUsize>);

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Scripted {
    fn refuse(&self, name: &str, class: Option<ErrorClass>) {
        let mut refuses = self.refuses.lock().unwrap();
        match class {
            Some(class) => refuses.insert(id(name), class),
            None => refuses.remove(&id(name)),
        };
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Source for Scripted {
    fn name(&self) -> &str {
        "scripted"
    }

    fn entry<'a>(&'a self, id: &'a KernelId) -> BoxFuture<'a, Result<Metadata, SharedFault>> {
        Box::pin(async move { Ok(Metadata::bare(id.clone())) })
    }

    fn fetch<'a>(&'a self, id: &'a KernelId) -> BoxFuture<'a, Result<Fetched, SharedFault>> {
        Box::pin(async move {
            self.asked.fetch_add(1, Ordering::SeqCst);
            self.answering.fetch_add(1, Ordering::SeqCst);
            let _waits = Waits(self.answering.clone());
            self.open.subscribe().wait_for(|open| *open).await.unwrap();
            if let Some(class) = self.refuses.lock().unwrap().get(id) {
                return Err(Arc::new(Said(*class)) as SharedFault);
            }
            let metadata = Metadata::bare(id.clone());
            let stored = Stored::hashed(metadata, self.bytes.clone(), Digest::of(&self.bytes), 0);
            Ok(Fetched { stored, metadata_us: 1, artifact_us: 1, checksum_us: 1, hold: None })
        })
    }
}

struct Bench {
    source: Arc<Scripted>,
    parts: KernelCacheParts,
    cache: Handle<KernelCache>,
    kernels: Kernels,
    _exits: mpsc::UnboundedReceiver<crate::actor::base::Exit>,
}

fn bench(plan: WarmPlan) -> Bench {
    let artifact =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/golden/activations.eval.pt2");
    let source = Arc::new(Scripted {
        refuses: Mutex::default(),
        open: watch::Sender::new(true),
        asked: AtomicUsize::new(0),
        answering: Arc::default(),
        bytes: std::fs::read(artifact).unwrap().into(),
    });
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::default());
    let (exits, ended) = mpsc::unbounded_channel();
    let validator = Handle::new("validator", 64);
    let policy = Arc::new(Policy::default());
    Supervised::new(validator.clone(), RestartPolicy::default(), exits.clone(), move |life| {
        Validator::new(policy.clone(), 1, life)
    })
    .start();
    let budget = Budget { max_entries: 64, max_bytes: 1 << 30 };
    let weigh = |kernel: &Arc<Kernel>| kernel.resident_bytes() as u64;
    let lookup = Lookup::new(Vec::new(), Some(source.clone()), LookupOptions::default(), clock.clone());
    let parts = KernelCacheParts {
        device: DeviceCache::new(budget, weigh, clock.clone()),
        holders: Arc::default(),
        lookup: Arc::new(lookup),
        fetching: FetchBudget::new(1 << 30),
        databases: Vec::new(),
        fleet: None,
        validator,
        max_offer_bytes: 1 << 20,
        pinned: Arc::new(Mutex::new(BTreeSet::new())),
        flights: Arc::new(SingleFlight::default()),
        loads: Arc::default(),
        offers: Arc::default(),
        unconfirmed: Arc::default(),
        warming: Arc::new(Warming::of(&plan)),
        warm_plan: Arc::new(plan),
        clock,
    };
    let cache = Handle::new("kernel_cache", WORK);
    let made = parts.clone();
    Supervised::new(cache.clone(), RestartPolicy::default(), exits, move |life| {
        KernelCache::new(made.clone(), life)
    })
    .start();
    let kernels = Kernels::new(parts.device.clone(), parts.holders.clone(), cache.clone());
    Bench { source, parts, cache, kernels, _exits: ended }
}

fn holder(generation: u64) -> Holder {
    let (session, layer, seed) = (SessionId(1), LayerId(2), SeedIndex(3));
    Holder { session, layer, seed, generation: Generation(generation) }
}

async fn until(mut holds: impl FnMut() -> bool) {
    while !holds() {
        yield_now().await;
    }
}

#[actix::test]
async fn a_look_up_counts_once_and_what_nobody_uses_is_none() {
    let bench = bench(WarmPlan::default());
    let counted = || {
        let stats = bench.parts.device.stats();
        (stats.hits, stats.misses)
    };
    drop(bench.kernels.get(&id("a"), holder(1)).await.unwrap());
    assert_eq!(counted(), (0, 1), "one graft of a cold kernel is one miss");
    drop(bench.kernels.get(&id("a"), holder(2)).await.unwrap());
    assert_eq!(counted(), (1, 1));
    for name in ["a", "b"] {
        bench.parts.begin_warming(vec![id(name)]).await;
        let pin = PinKernel { kernel: id(name), pinned: true };
        bench.cache.ask(pin).await.unwrap().unwrap();
        let (_wants, wanted) = oneshot::channel();
        bench.cache.ask(PrefetchKernel { kernel: id(name), wanted }).await.unwrap().unwrap();
    }
    assert!(bench.kernels.has(&id("b")));
    assert_eq!((counted(), bench.source.asked()), ((1, 1), 2));
}

#[actix::test]
async fn whoever_looks_after_the_cache_is_heard_while_all_its_work_hangs() {
    let bench = bench(WarmPlan::default());
    drop(bench.kernels.get(&id("there"), holder(1)).await.unwrap());
    bench.source.open.send_replace(false);
    let grafts: Vec<_> = (0..WORK)
        .map(|n| {
            let kernels = bench.kernels.clone();
            actix::spawn(async move { kernels.get(&id(&format!("cold-{n}")), holder(1)).await.map(drop) })
        })
        .collect();
    until(|| bench.source.answering.load(Ordering::SeqCst) == WORK).await;
    let refused = bench.kernels.get(&id("one-more"), holder(1)).await.unwrap_err();
    assert_eq!(refused.code(), "daemon.overloaded");
    let report = bench.cache.order(ReportCache).await.unwrap();
    assert_eq!(report.lookups.in_flight, WORK as u64);
    let why = bench.cache.order(ExplainKernel(id("there"))).await.unwrap();
    assert!(why.resident.is_some());
    let by = Evictor::Node { name: "far".to_owned() };
    bench.cache.order(CondemnKernels(vec![(id("there"), by)])).await.unwrap();
    bench.cache.order(ForgetKernel(id("there"))).await.unwrap().unwrap();
    let why = bench.cache.order(ExplainKernel(id("there"))).await.unwrap();
    assert_eq!(
        (why.evictions[0].reason.as_str(), why.evictions[0].by.as_deref()),
        ("invalidated", Some("node far"))
    );
    let evict = EvictKernel { kernel: id("there"), fleet: false, by: BY };
    assert!(bench.cache.order(evict).await.unwrap().unwrap().evicted.is_empty());
    bench.source.open.send_replace(true);
    for graft in grafts {
        graft.await.unwrap().unwrap();
    }
}

#[actix::test]
async fn it_is_known_who_holds_a_kernel_and_what_is_leaving() {
    let bench = bench(WarmPlan::default());
    let held = bench.kernels.get(&id("a"), holder(1)).await.unwrap();
    let evict = EvictKernel { kernel: id("a"), fleet: false, by: BY };
    assert_eq!(bench.cache.order(evict).await.unwrap().unwrap().in_use, [id("a")]);
    bench.parts.doubt().await;
    let other = bench.kernels.get(&id("a"), holder(2)).await.unwrap();
    assert!(!Arc::ptr_eq(&held, &other), "what was doubted is loaded anew");
    let why = bench.cache.order(ExplainKernel(id("a"))).await.unwrap();
    let generations: Vec<_> = why.holders.iter().map(|holder| holder.generation.0).collect();
    assert_eq!((generations, why.leaving.len(), why.resident.unwrap().holders), (vec![1, 2], 1, 1));
    assert!(why.evictions[0].by.as_ref().unwrap().contains("gap"));
    let report = bench.cache.order(ReportCache).await.unwrap();
    assert_eq!((report.leaving[0].kernel.clone(), report.leaving[0].holders), (id("a"), 1));
    assert_eq!(report.tiers[0].bytes, Some(report.leaving[0].bytes + report.kernels[0].bytes));
    drop((held, other));
    let why = bench.cache.order(ExplainKernel(id("a"))).await.unwrap();
    assert_eq!((why.holders, why.leaving), (vec![], vec![]));
    let clear = bench.cache.order(ClearKernels { tiers: false, by: BY }).await.unwrap().unwrap();
    assert_eq!(clear.evicted, [id("a")]);
    let why = bench.cache.order(ExplainKernel(id("a"))).await.unwrap();
    assert_eq!(
        (why.evictions[0].reason.as_str(), why.evictions[0].by.as_deref()),
        ("cleared", Some("uid 1000"))
    );
}

#[actix::test]
async fn what_is_pinned_comes_back_when_all_is_doubted() {
    let bench = bench(WarmPlan::default());
    bench.cache.ask(PinKernel { kernel: id("a"), pinned: true }).await.unwrap().unwrap();
    bench.cache.order(DoubtKernels).await.unwrap();
    until(|| bench.source.asked() == 2 && bench.kernels.has(&id("a"))).await;
    until(|| bench.parts.warming.report().done).await;
    assert_eq!(bench.parts.device.stats().pinned, 1);
}

#[actix::test]
async fn a_prefetch_that_nobody_wants_any_more_ends() {
    let bench = bench(WarmPlan::default());
    bench.source.open.send_replace(false);
    let (wants, wanted) = oneshot::channel();
    let cache = bench.cache.clone();
    let load = actix::spawn(async move { cache.ask(PrefetchKernel { kernel: id("a"), wanted }).await });
    until(|| bench.source.answering.load(Ordering::SeqCst) == 1).await;
    drop(wants);
    load.await.unwrap().unwrap().unwrap();
    assert_eq!(bench.source.answering.load(Ordering::SeqCst), 0);
    assert!(!bench.kernels.has(&id("a")));
}

#[actix::test]
async fn warming_is_not_done_while_it_is_being_planned() {
    let plan = WarmPlan { listed: vec![id("a"), id("a")], most_used: 3, window: Duration::from_secs(60) };
    let bench = bench(plan);
    let before = bench.parts.warming.report();
    assert_eq!((before.planning, before.planned, before.done), (true, 0, false));
    bench.cache.order(WarmStart).await.unwrap();
    until(|| bench.parts.warming.report().done).await;
    let after = bench.parts.warming.report();
    assert_eq!((after.planning, after.planned, after.loaded, after.failed), (false, 1, 1, 0));
    assert!(Warming::of(&WarmPlan::default()).report().done, "nothing is to be warmed");
}

#[actix::test]
async fn what_could_not_be_reached_is_warmed_later() {
    let listed = ["a", "late", "absent"].map(id).to_vec();
    let bench = bench(WarmPlan { listed, ..WarmPlan::default() });
    bench.source.refuse("late", Some(ErrorClass::Unavailable));
    bench.source.refuse("absent", Some(ErrorClass::NotFound));
    bench.cache.order(WarmStart).await.unwrap();
    let counts = || {
        let WarmReport { loaded, failed, retrying, done, .. } = bench.parts.warming.report();
        (loaded, failed, retrying, done)
    };
    until(|| counts() == (1, 1, 1, false)).await;
    // No time passes but what nobody needs.
    tokio::time::pause();
    for attempt in 4..7 {
        tokio::time::advance(Duration::from_secs(60)).await;
        until(|| bench.source.asked() == attempt).await;
        until(|| bench.source.answering.load(Ordering::SeqCst) == 0).await;
        assert_eq!(counts(), (1, 1, 1, false));
    }
    bench.source.refuse("late", None);
    tokio::time::advance(Duration::from_secs(60)).await;
    until(|| counts() == (2, 1, 0, true)).await;
    assert_eq!(bench.source.asked(), 7, "what is not there was asked for once");
}

#[actix::test]
async fn what_was_used_most_is_asked_for_until_a_tier_answers() {
    let tier = Arc::new(Forgetful { reachable: AtomicBool::new(false), asked: AtomicUsize::new(0) });
    let plan = WarmPlan { most_used: 2, window: Duration::from_secs(60), ..WarmPlan::default() };
    let mut bench = bench(plan);
    let lookup = Lookup::new(
        vec![tier.clone()],
        Some(bench.source.clone()),
        LookupOptions::default(),
        bench.parts.clock.clone(),
    );
    bench.parts.lookup = Arc::new(lookup);
    tokio::time::pause();
    actix::spawn(bench.parts.clone().warm_start());
    until(|| tier.asked.load(Ordering::SeqCst) == 1).await;
    let report = bench.parts.warming.report();
    assert_eq!((report.planning, report.planned, report.done), (true, 0, false));
    tier.reachable.store(true, Ordering::SeqCst);
    tokio::time::advance(Duration::from_secs(60)).await;
    until(|| bench.parts.warming.report().done).await;
    assert!(bench.kernels.has(&id("used")));
}

/// A tier that knows of uses and of nothing else, and cannot be reached at first.
#[derive(Debug)]
struct Forgetful {
    reachable: AtomicBool,
    asked: AtomicUsize,
}

impl Tier for Forgetful {
    fn name(&self) -> &str {
        "forgetful"
    }

    fn get<'a>(&'a self, _: &'a KernelId) -> BoxFuture<'a, Result<Answer, TierError>> {
        Box::pin(ready(Ok(Answer::Miss)))
    }

    fn put<'a>(&'a self, _: &'a Stored) -> BoxFuture<'a, Result<bool, TierError>> {
        Box::pin(ready(Ok(false)))
    }

    fn put_verdict<'a>(
        &'a self,
        _: &'a KernelId,
        _: Digest,
        _: &'a Verdict,
    ) -> BoxFuture<'a, Result<bool, TierError>> {
        Box::pin(ready(Ok(false)))
    }

    fn put_negative<'a>(&'a self, _: &'a KernelId, _: &'a Negative) -> BoxFuture<'a, Result<(), TierError>> {
        Box::pin(ready(Ok(())))
    }

    fn remove<'a>(&'a self, _: &'a KernelId) -> BoxFuture<'a, Result<bool, TierError>> {
        Box::pin(ready(Ok(false)))
    }

    fn about<'a>(&'a self, _: &'a KernelId) -> BoxFuture<'a, Result<Option<Held>, TierError>> {
        Box::pin(ready(Ok(None)))
    }

    fn negative<'a>(&'a self, _: &'a KernelId) -> BoxFuture<'a, Result<Option<Negative>, TierError>> {
        Box::pin(ready(Ok(None)))
    }

    fn clear(&self) -> BoxFuture<'_, Result<u64, TierError>> {
        Box::pin(ready(Ok(0)))
    }

    fn most_used(&self, _: i64, limit: u32) -> BoxFuture<'_, Result<Option<Vec<KernelId>>, TierError>> {
        assert_eq!(limit, 2);
        self.asked.fetch_add(1, Ordering::SeqCst);
        let (tier, action, reason) = ("postgres", "say what was used most", "no route to host".to_owned());
        let answer = match self.reachable.load(Ordering::SeqCst) {
            true => Ok(Some(vec![id("used")])),
            false => Err(TierError::Request { tier, action, reason }),
        };
        Box::pin(ready(answer))
    }

    fn counters(&self) -> TierStats {
        TierStats::default()
    }

    fn stats(&self) -> BoxFuture<'_, Result<TierStats, TierError>> {
        Box::pin(ready(Ok(TierStats::default())))
    }
}

#[actix::test]
async fn the_origin_is_asked_about_what_serves_from_old_copies_again_and_again() {
    let bench = bench(WarmPlan::default());
    let kernel = Arc::clone(&*bench.kernels.get(&id("there"), holder(1)).await.unwrap());
    let search = bench.parts.lookup.find(&id("there")).await.unwrap().search();
    // As if it had come from an old copy.
    let old = Loaded { kernel, search: Some(search), is_old: true };
    bench.parts.unconfirmed.note(&id("there"), &old);
    tokio::time::pause();
    let confirmations = async || bench.parts.report().await.lookups.confirmations;
    assert_eq!(confirmations().await, 0);
    for _ in 0..100 {
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    assert_eq!(confirmations().await, 1, "and no more once it has answered");
}
