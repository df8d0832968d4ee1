//! The look-up over real SQLite files and a source whose answers are set.

use std::{
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;

use crate::cache::{
    FetchBudget, Fetched, Found, Lookup, LookupError, LookupOptions, SharedFault, Source, SqlTier,
    SqliteOptions, StepOutcome, Stored, Tier,
    contract::{artifact, id, verdict},
};
use crate::{
    clock::{Clock as _, ManualClock},
    digest::Digest,
    fault::{ErrorClass, Fault},
    id::KernelId,
    validation::Metadata,
};

#[derive(Clone, Debug, thiserror::Error)]
#[error("the source said {0}")]
pub(super) struct Said(pub(super) ErrorClass);

impl Fault for Said {
    fn class(&self) -> ErrorClass {
        self.0
    }

    fn code(&self) -> &'static str {
        match self.0 {
            ErrorClass::NotFound => "kernel.not_found",
            ErrorClass::Invalid => "kernel.rejected",
            _ => "origin.unavailable",
        }
    }
}

#[derive(Debug)]
pub(super) struct Scripted {
    answer: Mutex<Result<Stored, Said>>,
    asked: AtomicUsize,
    /// Whether its entries say what the bytes' checksum is.
    pub(super) says_checksum: AtomicBool,
}

impl Scripted {
    pub(super) fn new(answer: Result<Stored, Said>) -> Arc<Self> {
        Arc::new(Self {
            answer: Mutex::new(answer),
            asked: AtomicUsize::new(0),
            says_checksum: AtomicBool::new(true),
        })
    }

    fn checksum(&self, stored: &Stored) -> Option<Digest> {
        self.says_checksum.load(Ordering::SeqCst).then_some(stored.digest)
    }

    pub(super) fn set(&self, answer: Result<Stored, Said>) {
        *self.answer.lock().unwrap() = answer;
    }

    pub(super) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Source for Scripted {
    fn name(&self) -> &str {
        "scripted"
    }

    fn entry<'a>(&'a self, _: &'a KernelId) -> BoxFuture<'a, Result<Metadata, SharedFault>> {
        Box::pin(async {
            match self.answer.lock().unwrap().clone() {
                Ok(stored) => Ok(Metadata { checksum: self.checksum(&stored), ..(*stored.metadata).clone() }),
                Err(said) => Err(Arc::new(said) as SharedFault),
            }
        })
    }

    fn fetch<'a>(&'a self, _: &'a KernelId) -> BoxFuture<'a, Result<Fetched, SharedFault>> {
        Box::pin(async {
            self.asked.fetch_add(1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            match self.answer.lock().unwrap().clone() {
                Ok(stored) => {
                    Ok(Fetched { stored, metadata_us: 1, artifact_us: 2, checksum_us: 3, hold: None })
                }
                Err(said) => Err(Arc::new(said) as SharedFault),
            }
        })
    }
}

pub(super) async fn sqlite(path: &Path, max_bytes: u64, clock: &ManualClock) -> Arc<SqlTier> {
    let options = SqliteOptions { max_bytes, ..SqliteOptions::new(path) };
    Arc::new(SqlTier::new(options, Arc::new(clock.clone())))
}

pub(super) async fn holds(tier: &Arc<SqlTier>, name: &str) -> bool {
    tier.about(&id(name)).await.unwrap().is_some()
}

pub(super) struct Bench {
    pub(super) folder: tempfile::TempDir,
    pub(super) clock: ManualClock,
    pub(super) upper: Arc<SqlTier>,
    pub(super) lower: Arc<SqlTier>,
    pub(super) source: Arc<Scripted>,
    pub(super) lookup: Arc<Lookup>,
}

pub(super) async fn bench(answer: Result<Stored, Said>) -> Bench {
    bench_with(answer, LookupOptions::default()).await
}

/// An artifact that the origin vouched for when the clock began.
pub(super) fn fresh(name: &str, size: usize) -> Stored {
    Stored { confirmed_unix_ms: ManualClock::default().unix_ms(), ..artifact(name, size) }
}

pub(super) async fn bench_with(answer: Result<Stored, Said>, options: LookupOptions) -> Bench {
    let (folder, clock) = (tempfile::tempdir().unwrap(), ManualClock::default());
    let upper = sqlite(&folder.path().join("upper"), 1 << 20, &clock).await;
    let lower = sqlite(&folder.path().join("lower"), 1 << 20, &clock).await;
    let source = Scripted::new(answer);
    let tiers: Vec<Arc<dyn Tier>> = vec![upper.clone(), lower.clone()];
    let lookup = Lookup::new(tiers, Some(source.clone()), options, Arc::new(clock.clone()));
    Bench { folder, clock, upper, lower, source, lookup: Arc::new(lookup) }
}

impl Bench {
    /// Finds a kernel that is accepted, and waits until the tiers know.
    pub(super) async fn load(&self) -> Found {
        let found = self.lookup.find(&id("a")).await.unwrap();
        self.lookup.keep(&found, Arc::new(verdict(found.stored.digest, true)));
        self.lookup.settle().await;
        found
    }
}

#[tokio::test]
async fn what_is_kept_fills_every_tier_and_a_hit_those_above() {
    let bench = bench(Ok(fresh("a", 100))).await;
    let Bench { upper, lower, source, lookup, .. } = &bench;
    let found = lookup.find(&id("a")).await.unwrap();
    assert_eq!((found.place.as_str(), &found.stored), ("scripted", &fresh("a", 100)));
    let places: Vec<_> = found.steps.iter().map(|step| (step.place.as_str(), step.outcome)).collect();
    let (miss, hit) = (StepOutcome::Miss, StepOutcome::Hit);
    let expected = [
        ("sqlite", miss),
        ("sqlite", miss),
        ("scripted.metadata", hit),
        ("scripted.artifact", hit),
        ("scripted.checksum", hit),
    ];
    assert_eq!(places, expected);
    lookup.settle().await;
    assert!(!holds(upper, "a").await, "nobody has judged it yet");
    bench.load().await;
    assert!(holds(upper, "a").await && holds(lower, "a").await);

    upper.remove(&id("a")).await.unwrap();
    let again = bench.load().await;
    assert_eq!((again.place.as_str(), again.stored.verdict.is_some()), ("sqlite", true));
    assert!(holds(upper, "a").await);
    assert_eq!(source.asked(), 2);
    let stats = lookup.stats().await;
    assert_eq!((stats.found["scripted"], stats.found["sqlite"], stats.not_found), (2, 1, 0));
    assert!(stats.routes.iter().any(|route| route.place == "scripted" && route.samples == 2));
}

#[tokio::test]
async fn absence_and_refusal_are_remembered_for_a_while_failure_is_not() {
    let lifetimes = [(ErrorClass::NotFound, 60), (ErrorClass::Invalid, 600)];
    for (class, seconds) in lifetimes {
        let Bench { folder, clock, source, lookup, .. } = bench(Err(Said(class))).await;
        let first = lookup.find(&id("a")).await.unwrap_err();
        assert_eq!((first.class(), first.to_string()), (class, format!("the source said {class}")));
        clock.advance(Duration::from_secs(seconds - 1));
        let known = lookup.find(&id("a")).await.unwrap_err();
        assert!(matches!(&known.error, LookupError::Known { retry_in_ms: 1000, .. }), "{known}");
        assert_eq!((known.class(), known.code()), (first.class(), first.code()));
        lookup.settle().await;
        // A tier remembers too: a daemon started anew does not ask.
        let tier = sqlite(&folder.path().join("lower"), 1 << 20, &clock).await;
        let anew =
            Lookup::new(vec![tier], Some(source.clone()), LookupOptions::default(), Arc::new(clock.clone()));
        assert_eq!(anew.find(&id("a")).await.unwrap_err().code(), first.code());
        assert_eq!(source.asked(), 1);
        clock.advance(Duration::from_secs(1));
        assert!(matches!(lookup.find(&id("a")).await.unwrap_err().error, LookupError::Source { .. }));
        assert_eq!(source.asked(), 2);
    }
    let Bench { folder: _folder, source, lookup, .. } = bench(Err(Said(ErrorClass::Unavailable))).await;
    for _ in 0..3 {
        assert_eq!(lookup.find(&id("a")).await.unwrap_err().class(), ErrorClass::Unavailable);
    }
    assert_eq!((source.asked(), lookup.stats().await.negatives), (3, 0));
}

#[tokio::test]
async fn forgetting_asks_the_source_again() {
    let bench = bench(Err(Said(ErrorClass::NotFound))).await;
    bench.lookup.find(&id("a")).await.unwrap_err();
    assert!(bench.lookup.forget(&id("a")).await.unwrap());
    bench.source.set(Ok(fresh("a", 10)));
    bench.load().await;
    assert_eq!(bench.lookup.clear().await.unwrap(), 2);
    bench.load().await;
    assert_eq!(bench.source.asked(), 3);
}

#[tokio::test]
async fn a_rejection_drops_the_bytes_everywhere_and_is_believed() {
    let bench = bench(Ok(fresh("a", 100))).await;
    let Bench { upper, lower, source, lookup, .. } = &bench;
    let found = bench.load().await;
    let rejected = verdict(found.stored.digest, false);
    lookup.reject(&found, &rejected.rejection(&id("a")).unwrap());
    lookup.settle().await;
    assert!(!holds(upper, "a").await && !holds(lower, "a").await);
    let known = lookup.find(&id("a")).await.unwrap_err();
    assert_eq!(known.code(), "kernel.rejected");
    assert!(known.to_string().contains("weights.finite"), "{known}");
    assert_eq!(source.asked(), 1);
}

#[tokio::test]
async fn a_verdict_by_another_policy_is_written_anew() {
    let bench = bench(Ok(fresh("a", 100))).await;
    bench.load().await;
    let found = bench.lookup.find(&id("a")).await.unwrap();
    let policy = "stricter".to_owned();
    let stricter = crate::validation::Verdict { policy, ..verdict(found.stored.digest, true) };
    bench.lookup.keep(&found, Arc::new(stricter));
    bench.lookup.settle().await;
    let again = bench.lookup.find(&id("a")).await.unwrap();
    assert_eq!(again.stored.verdict.as_ref().unwrap().policy, "stricter");
}

#[tokio::test]
async fn a_tier_that_fails_or_holds_damage_is_passed_by() {
    let bench = bench(Ok(fresh("a", 100))).await;
    bench.load().await;
    bench.upper.close().await;
    let mut other = <sqlx::SqliteConnection as sqlx::Connection>::connect(&format!(
        "sqlite://{}",
        bench.folder.path().join("lower").display()
    ))
    .await
    .unwrap();
    sqlx::query("UPDATE artifacts SET bytes = zeroblob(100)").execute(&mut other).await.unwrap();
    let found = bench.load().await;
    let outcomes: Vec<_> = found.steps.iter().map(|step| step.outcome).collect();
    let expected =
        [StepOutcome::Failed, StepOutcome::Corrupt, StepOutcome::Hit, StepOutcome::Hit, StepOutcome::Hit];
    assert_eq!(outcomes, expected);
    assert_eq!((found.stored.clone(), bench.source.asked()), (fresh("a", 100), 2));
    assert!(holds(&bench.lower, "a").await, "the copy is whole again");
}

#[tokio::test]
async fn an_old_copy_is_confirmed_by_the_origin_without_its_bytes() {
    let bench = bench(Ok(fresh("a", 100))).await;
    bench.load().await;
    bench.clock.advance(Duration::from_secs(3601));
    let found = bench.load().await;
    assert_eq!((found.place.as_str(), found.stale, bench.source.asked()), ("sqlite", false, 1));
    assert_eq!(found.stored.confirmed_unix_ms, bench.clock.unix_ms());
    bench.load().await;
    let stats = bench.lookup.stats().await;
    assert_eq!((stats.confirmations, stats.stale), (1, 0), "the date was written");

    // Other bytes under the name, and an entry that does not say which, are fetched.
    bench.clock.advance(Duration::from_secs(3601));
    let other = Stored { confirmed_unix_ms: bench.clock.unix_ms(), ..fresh("b", 50) };
    let other = Stored { metadata: fresh("a", 100).metadata, ..other };
    bench.source.set(Ok(other.clone()));
    assert_eq!(bench.load().await.stored.digest, other.digest);
    bench.clock.advance(Duration::from_secs(3601));
    bench.source.says_checksum.store(false, Ordering::SeqCst);
    assert_eq!(bench.load().await.place, "scripted");
    assert_eq!(bench.source.asked(), 3);
    // A clock set back far makes a copy old too.
    let ahead = Stored { confirmed_unix_ms: i64::MAX, ..other };
    bench.upper.put(&ahead).await.unwrap();
    assert_eq!(bench.load().await.place, "scripted");
}

#[tokio::test]
async fn what_is_doubted_is_confirmed_and_serves_where_nobody_can_tell() {
    let bench = bench(Ok(fresh("a", 100))).await;
    bench.load().await;
    bench.clock.advance(Duration::from_millis(1));
    bench.lookup.doubt_all();
    bench.source.set(Err(Said(ErrorClass::Unavailable)));
    assert!(bench.lookup.find(&id("a")).await.unwrap().stale);
    // The copy was replaced while this node did not hear of it.
    let other = Stored { metadata: fresh("a", 100).metadata, ..fresh("b", 50) };
    let other = Stored { confirmed_unix_ms: bench.clock.unix_ms(), ..other };
    bench.source.set(Ok(other.clone()));
    let found = bench.load().await;
    assert_eq!((found.place.as_str(), found.stored.digest), ("scripted", other.digest));
    bench.load().await;
    assert_eq!((bench.lookup.stats().await.confirmations, bench.source.asked()), (2, 2), "one asks once");
}

#[tokio::test]
async fn what_was_used_most_is_not_known_while_who_knows_it_is_away() {
    let bench = bench(Ok(fresh("a", 100))).await;
    assert_eq!(bench.lookup.most_used(0, 9).await, Ok(vec![]));
    bench.load().await;
    bench.load().await;
    bench.lower.close().await;
    assert_eq!(bench.lookup.most_used(0, 9).await, Ok(vec![id("a")]), "one that knows is enough");
    bench.upper.close().await;
    assert_eq!(bench.lookup.most_used(0, 9).await.unwrap_err().class(), ErrorClass::Unavailable);
}

#[tokio::test]
async fn what_tiers_give_takes_its_share_until_nobody_needs_it() {
    let bench = bench(Ok(fresh("a", 10_000))).await;
    bench.load().await;
    let budget = FetchBudget::new(1 << 20);
    let tiers: Vec<Arc<dyn Tier>> = vec![bench.upper.clone()];
    let lookup = Lookup::new(
        tiers,
        Some(bench.source.clone()),
        LookupOptions::default(),
        Arc::new(bench.clock.clone()),
    );
    let lookup = lookup.within(budget.clone(), 1 << 19);
    let found = lookup.find(&id("a")).await.unwrap();
    assert_eq!((found.place.as_str(), budget.stats().bytes), ("sqlite", 12_288));
    drop(found);
    assert_eq!(budget.stats().bytes, 0);
    assert!(lookup.find(&id("b")).await.is_ok(), "the source has it");
    assert_eq!(budget.stats().bytes, 0, "who gives nothing keeps nothing");
}

#[tokio::test(start_paused = true)]
async fn a_tier_without_room_for_what_it_gives_is_passed_by() {
    let source = Scripted::new(Ok(fresh("a", 100)));
    let (clock, budget) = (ManualClock::default(), FetchBudget::new(1 << 20));
    // It is never asked, or the test would fail to open it.
    let tier: Arc<dyn Tier> = sqlite(Path::new("/nonexistent/file"), 1 << 20, &clock).await;
    let lookup = Lookup::new(vec![tier], Some(source), LookupOptions::default(), Arc::new(clock));
    let lookup = lookup.within(budget.clone(), 1 << 19);
    let all = budget.reserve(1 << 20).await.unwrap();
    let found = lookup.find(&id("a")).await.unwrap();
    assert_eq!((found.place.as_str(), found.steps[0].outcome), ("scripted", StepOutcome::NoRoom));
    assert_eq!((budget.stats().refused, found.unasked.as_slice()), (1, [0].as_slice()), "it may have none");
    drop(all);
}

#[tokio::test]
async fn a_load_that_keeps_an_old_copy_in_mind_does_not_wait_for_its_own_share() {
    let bench = bench(Ok(fresh("a", 100))).await;
    bench.load().await;
    bench.clock.advance(Duration::from_secs(3601));
    let away = Scripted::new(Err(Said(ErrorClass::Unavailable)));
    away.says_checksum.store(false, Ordering::SeqCst);
    let tiers: Vec<Arc<dyn Tier>> = vec![bench.upper.clone(), bench.lower.clone()];
    let budget = FetchBudget::new(1 << 20);
    let clock = Arc::new(bench.clock.clone());
    let lookup =
        Lookup::new(tiers, Some(away), LookupOptions::default(), clock).within(budget.clone(), 1 << 20);
    let found = lookup.find(&id("a")).await.unwrap();
    assert_eq!((found.stale, budget.stats().refused), (true, 0));
}

#[tokio::test]
async fn while_the_origin_is_down_an_old_copy_serves_if_that_is_wanted() {
    for (serve_stale, says_checksum) in [(true, true), (true, false), (false, true), (false, false)] {
        let options = LookupOptions { serve_stale, ..LookupOptions::default() };
        let bench = bench_with(Ok(fresh("a", 100)), options).await;
        bench.load().await;
        bench.source.says_checksum.store(says_checksum, Ordering::SeqCst);
        bench.clock.advance(Duration::from_secs(3601));
        bench.source.set(Err(Said(ErrorClass::Unavailable)));
        let found = bench.lookup.find(&id("a")).await;
        assert_eq!(found.is_ok(), serve_stale);
        assert_eq!(bench.lookup.stats().await.stale, u64::from(serve_stale));
        if let Ok(found) = found {
            assert!(found.stale && found.place == "sqlite");
        }
        // One that was withdrawn is not served.
        bench.source.set(Err(Said(ErrorClass::NotFound)));
        assert_eq!(bench.lookup.find(&id("a")).await.unwrap_err().code(), "kernel.not_found");
        bench.lookup.settle().await;
        assert!(!holds(&bench.upper, "a").await && !holds(&bench.lower, "a").await);
    }
}
