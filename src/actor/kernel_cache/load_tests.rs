//! Loads through the whole cache, with a real validator, a real tier, and an origin that the test holds up.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use futures_util::future::BoxFuture;
use tokio::sync::{Semaphore, mpsc};

use super::{KernelCacheParts, WarmPlan};
use crate::{
    actor::{
        Validator,
        base::{Child as _, Handle, RestartPolicy, Supervised},
    },
    cache::{
        Budget, DeviceCache, Evictor, FetchBudget, Fetched, Lookup, LookupOptions, SharedFault, SingleFlight,
        Source, SqlTier, SqliteOptions, Stored, Tier as _,
    },
    clock::{Clock, SystemClock},
    digest::Digest,
    fault::ErrorClass,
    id::KernelId,
    origin::OriginError,
    validation::{Metadata, Policy},
};

pub(super) const BY: Evictor = Evictor::Operator { uid: 7 };

/// Gives what it held when it was asked, as soon as the test lets it.
#[derive(Debug)]
pub(super) struct Gated {
    bytes: Mutex<Option<Arc<[u8]>>>,
    pub(super) asked: AtomicUsize,
    pub(super) gate: Semaphore,
    away: AtomicBool,
}

impl Gated {
    fn absent(id: &KernelId) -> SharedFault {
        Arc::new(OriginError::NotFound { origin: "gated".into(), id: id.clone(), here_only: false })
    }

    /// Fails while the origin is away.
    fn answers(&self) -> Result<(), SharedFault> {
        let (origin, reason) = ("gated".to_owned(), "away".to_owned());
        let place = crate::origin::Place::from(std::path::PathBuf::from("gated"));
        let away = OriginError::Unavailable { origin, place, reason };
        if self.away.load(Ordering::SeqCst) { Err(Arc::new(away)) } else { Ok(()) }
    }

    fn set(&self, name: Option<&str>) {
        *self.bytes.lock().unwrap() = name.map(golden);
    }
}

impl Source for Gated {
    fn name(&self) -> &str {
        "gated"
    }

    fn entry<'a>(&'a self, id: &'a KernelId) -> BoxFuture<'a, Result<Metadata, SharedFault>> {
        Box::pin(async move {
            self.answers()?;
            let bytes = self.bytes.lock().unwrap().clone().ok_or_else(|| Self::absent(id))?;
            Ok(Metadata { checksum: Some(Digest::of(&bytes)), ..Metadata::bare(id.clone()) })
        })
    }

    fn fetch<'a>(&'a self, id: &'a KernelId) -> BoxFuture<'a, Result<Fetched, SharedFault>> {
        Box::pin(async move {
            self.answers()?;
            let (bytes, at) = (self.bytes.lock().unwrap().clone(), SystemClock.unix_ms());
            self.asked.fetch_add(1, Ordering::SeqCst);
            self.gate.acquire().await.unwrap().forget();
            let stored = Stored::new(Metadata::bare(id.clone()), bytes.ok_or_else(|| Self::absent(id))?, at);
            Ok(Fetched { stored, metadata_us: 1, artifact_us: 2, checksum_us: 3, hold: None })
        })
    }
}

pub(super) fn golden(name: &str) -> Arc<[u8]> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/golden");
    std::fs::read(folder.join(name)).unwrap().into()
}

pub(super) fn id(text: &str) -> KernelId {
    text.parse().unwrap()
}

pub(super) struct Bench {
    _folder: tempfile::TempDir,
    pub(super) source: Arc<Gated>,
    pub(super) tier: Arc<SqlTier>,
    pub(super) parts: KernelCacheParts,
    validator: Supervised<Validator>,
}

pub(super) fn bench(name: Option<&str>) -> Bench {
    let folder = tempfile::tempdir().unwrap();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let tier = SqlTier::new(SqliteOptions::new(folder.path().join("kernels.sqlite")), clock.clone());
    let tier = Arc::new(tier);
    let gate = Semaphore::new(0);
    let source = Arc::new(Gated {
        bytes: Mutex::default(),
        asked: AtomicUsize::new(0),
        gate,
        away: AtomicBool::new(false),
    });
    source.set(name);
    let lookup =
        Lookup::new(vec![tier.clone()], Some(source.clone()), LookupOptions::default(), clock.clone());
    let (exits, _) = mpsc::unbounded_channel();
    let handle = Handle::new("validator", 8);
    let policy = RestartPolicy::default();
    let make = |life| Validator::new(Arc::new(Policy::default()), 2, life);
    let mut validator = Supervised::new(handle.clone(), policy, exits, make);
    validator.start();
    let parts = KernelCacheParts {
        device: DeviceCache::new(
            Budget { max_entries: 4, max_bytes: 1 << 30 },
            |kernel| kernel.resident_bytes() as u64,
            clock.clone(),
        ),
        holders: Arc::default(),
        lookup: Arc::new(lookup),
        fetching: FetchBudget::new(1 << 30),
        databases: Vec::new(),
        fleet: None,
        validator: handle,
        max_offer_bytes: 1 << 20,
        pinned: Arc::new(Mutex::new(BTreeSet::new())),
        flights: Arc::new(SingleFlight::default()),
        loads: Arc::default(),
        offers: Arc::default(),
        unconfirmed: Arc::default(),
        warming: Arc::default(),
        warm_plan: Arc::new(WarmPlan::default()),
        clock,
    };
    Bench { _folder: folder, source, tier, parts, validator }
}

impl Bench {
    async fn asked(&self, times: usize) {
        while self.source.asked.load(Ordering::SeqCst) < times {
            tokio::task::yield_now().await;
        }
    }
}

#[actix::test]
async fn a_kernel_evicted_while_it_is_loaded_is_loaded_anew() {
    for everywhere in [false, true] {
        let bench = bench(Some("arithmetic.eval.pt2"));
        let (parts, old) = (bench.parts.clone(), Digest::of(&golden("arithmetic.eval.pt2")));
        let load = actix::spawn(async move { parts.get(id("k")).await });
        bench.asked(1).await;
        bench.source.set(Some("activations.eval.pt2"));
        match everywhere {
            true => {
                bench.parts.condemn(&id("k"), &BY);
                bench.parts.lookup.forget_here(&id("k")).await.unwrap();
            }
            false => drop(bench.parts.evict(id("k"), &BY).await.unwrap()),
        }
        bench.source.gate.add_permits(2);
        let new = Digest::of(&golden("activations.eval.pt2"));
        let lease = load.await.unwrap().unwrap();
        assert!(lease.digest() == new && new != old, "who asked before gets the new one too");
        assert_eq!(bench.parts.device.peek(&id("k")).unwrap().digest(), new);
        bench.parts.lookup.settle().await;
        assert_eq!(bench.tier.about(&id("k")).await.unwrap().unwrap().digest, new);
        assert_eq!(bench.source.asked.load(Ordering::SeqCst), 2);
        drop(bench.validator);
    }
}

#[actix::test]
async fn an_evicted_kernel_does_not_come_back_by_who_waited_for_its_load() {
    let bench = bench(Some("activations.eval.pt2"));
    bench.source.gate.add_permits(9);
    let digest = bench.parts.get(id("k")).await.unwrap().digest();
    bench.parts.lookup.settle().await;
    let search = bench.parts.lookup.find(&id("k")).await.unwrap().search();
    let kernel = bench.parts.device.peek(&id("k")).unwrap();
    bench.parts.evict(id("k"), &BY).await.unwrap();
    let loaded = super::parts::Loaded { kernel, search: Some(search), is_old: false };
    assert!(bench.parts.admit(&id("k"), &loaded).await.unwrap().is_none());
    assert!(bench.parts.device.peek(&id("k")).is_none());
    assert_eq!(bench.parts.get(id("k")).await.unwrap().digest(), digest, "it is fetched again");
    assert_eq!(bench.source.asked.load(Ordering::SeqCst), 2);
    drop(bench.validator);
}

#[actix::test]
async fn many_who_ask_load_once_and_are_counted() {
    let bench = bench(Some("activations.eval.pt2"));
    let asks: Vec<_> = (0..20)
        .map(|_| {
            let parts = bench.parts.clone();
            actix::spawn(async move { parts.get(id("k")).await.map(drop) })
        })
        .collect();
    bench.asked(1).await;
    assert_eq!(bench.parts.report().await.lookups.in_flight, 1);
    bench.source.gate.add_permits(9);
    for ask in asks {
        ask.await.unwrap().unwrap();
    }
    let lookups = bench.parts.report().await.lookups;
    assert_eq!((lookups.joined, lookups.in_flight, lookups.found), (19, 0, 1));
    assert_eq!(bench.source.asked.load(Ordering::SeqCst), 1);
    drop(bench.validator);
}

#[actix::test]
async fn why_tells_the_way_of_a_load_that_failed_and_what_the_tiers_know() {
    let bench = bench(None);
    bench.source.gate.add_permits(9);
    let error = bench.parts.get(id("k")).await.unwrap_err();
    assert_eq!(crate::fault::Fault::class(&error), ErrorClass::NotFound);
    bench.parts.lookup.settle().await;
    let report = bench.parts.explain(id("k")).await;
    let steps: Vec<_> =
        report.loads[0].steps.iter().map(|step| (step.place.as_str(), step.outcome.as_str())).collect();
    assert_eq!(steps, [("sqlite", "miss"), ("gated", "failed")]);
    let negative = report.copies[0].negative.as_ref().unwrap();
    assert_eq!((report.copies[0].bytes, negative.code.as_str()), (None, "kernel.not_found"));

    // What a tier keeps of the verdict is told of a kernel that is not in memory.
    bench.source.set(Some("activations.eval.pt2"));
    bench.parts.evict(id("k"), &BY).await.unwrap();
    drop(bench.parts.get(id("k")).await.unwrap());
    bench.parts.lookup.settle().await;
    bench.parts.device.evict(&id("k"), &BY).unwrap();
    let report = bench.parts.explain(id("k")).await;
    assert!(report.resident.is_none() && report.copies[0].negative.is_none());
    assert!(
        report.rules.iter().any(|rule| rule.rule == "archive.readable" && rule.passed),
        "{:?}",
        report.rules
    );
    drop(bench.validator);
}

#[actix::test]
async fn an_old_copy_that_served_while_the_origin_was_away_is_confirmed_or_leaves() {
    for (now, stays) in
        [(Some("activations.eval.pt2"), true), (Some("arithmetic.eval.pt2"), false), (None, false)]
    {
        let bench = bench(Some("activations.eval.pt2"));
        let old = Stored::new(Metadata::bare(id("k")), golden("activations.eval.pt2"), 0);
        bench.tier.put(&old).await.unwrap();
        bench.source.away.store(true, Ordering::SeqCst);
        let lease = bench.parts.get(id("k")).await.unwrap();
        assert_eq!((lease.digest(), bench.parts.report().await.stale), (old.digest, 1));

        bench.parts.confirm_old().await;
        assert!(bench.parts.device.peek(&id("k")).is_some(), "nobody can say anything against it");

        bench.source.away.store(false, Ordering::SeqCst);
        bench.source.gate.add_permits(9);
        bench.source.set(now);
        bench.parts.confirm_old().await;
        bench.parts.lookup.settle().await;
        let resident = bench.parts.device.peek(&id("k"));
        assert_eq!(resident.map(|kernel| kernel.digest()), stays.then_some(old.digest), "{now:?}");
        assert_eq!(lease.digest(), old.digest, "who runs it goes on");
        bench.parts.confirm_old().await;
        let report = bench.parts.report().await;
        // For the load, while the origin was away, and when it was back: not once more.
        assert_eq!((report.lookups.confirmations, report.stale, report.lookups.found), (3, 1, 1));
        if !stays {
            let evicted = &bench.parts.explain(id("k")).await.evictions[0];
            assert_eq!(evicted.by.as_deref(), Some("the origin, which has another now, or none"));
        }
        drop(bench.validator);
    }
}
