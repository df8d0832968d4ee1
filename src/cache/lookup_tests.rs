//! The look-up over real SQLite files and a source whose answers are set.

use std::{
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;

use super::{
    Fetched, Lookup, LookupError, LookupOptions, SharedFault, Source, SqlTier, SqliteOptions, StepOutcome,
    Stored, Tier,
    contract::{artifact, id, verdict},
};
use crate::{
    clock::ManualClock,
    fault::{ErrorClass, Fault},
    id::KernelId,
};

#[derive(Clone, Debug, thiserror::Error)]
#[error("the source said {0}")]
struct Said(ErrorClass);

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
struct Scripted {
    answer: Mutex<Result<Stored, Said>>,
    asked: AtomicUsize,
}

impl Scripted {
    fn new(answer: Result<Stored, Said>) -> Arc<Self> {
        Arc::new(Self { answer: Mutex::new(answer), asked: AtomicUsize::new(0) })
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Source for Scripted {
    fn name(&self) -> &str {
        "scripted"
    }

    fn fetch<'a>(&'a self, _: &'a KernelId) -> BoxFuture<'a, Result<Fetched, SharedFault>> {
        Box::pin(async {
            self.asked.fetch_add(1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            match self.answer.lock().unwrap().clone() {
                Ok(stored) => Ok(Fetched { stored, metadata_us: 1, artifact_us: 2 }),
                Err(said) => Err(Arc::new(said) as SharedFault),
            }
        })
    }
}

async fn sqlite(path: &Path, max_bytes: u64, clock: &ManualClock) -> Arc<SqlTier> {
    let options = SqliteOptions { max_bytes, ..SqliteOptions::new(path) };
    Arc::new(SqlTier::new(options, Arc::new(clock.clone())))
}

async fn holds(tier: &Arc<SqlTier>, name: &str) -> bool {
    tier.about(&id(name)).await.unwrap().is_some()
}

struct Bench {
    folder: tempfile::TempDir,
    clock: ManualClock,
    upper: Arc<SqlTier>,
    lower: Arc<SqlTier>,
    source: Arc<Scripted>,
    lookup: Arc<Lookup>,
}

async fn bench(answer: Result<Stored, Said>) -> Bench {
    let (folder, clock) = (tempfile::tempdir().unwrap(), ManualClock::default());
    let upper = sqlite(&folder.path().join("upper"), 1 << 20, &clock).await;
    let lower = sqlite(&folder.path().join("lower"), 1 << 20, &clock).await;
    let source = Scripted::new(answer);
    let tiers: Vec<Arc<dyn Tier>> = vec![upper.clone(), lower.clone()];
    let options = LookupOptions::default();
    let lookup = Lookup::new(tiers, Some(source.clone()), options, Arc::new(clock.clone()));
    Bench { folder, clock, upper, lower, source, lookup: Arc::new(lookup) }
}

#[tokio::test]
async fn a_fetch_fills_every_tier_and_a_hit_those_above() {
    let Bench { folder: _folder, upper, lower, source, lookup, .. } = bench(Ok(artifact("a", 100))).await;
    let found = lookup.find(&id("a")).await.unwrap();
    assert_eq!((found.place.as_str(), &found.stored), ("scripted", &artifact("a", 100)));
    let places: Vec<_> = found.steps.iter().map(|step| (step.place.as_str(), step.outcome)).collect();
    let (miss, hit) = (StepOutcome::Miss, StepOutcome::Hit);
    let expected =
        [("sqlite", miss), ("sqlite", miss), ("scripted.metadata", hit), ("scripted.artifact", hit)];
    assert_eq!(places, expected);
    lookup.settle().await;
    assert!(holds(&upper, "a").await && holds(&lower, "a").await);

    upper.remove(&id("a")).await.unwrap();
    assert_eq!(lookup.find(&id("a")).await.unwrap().place, "sqlite");
    lookup.settle().await;
    assert!(holds(&upper, "a").await);
    assert_eq!(source.asked(), 1);
    let stats = lookup.stats().await;
    assert_eq!((stats.found["scripted"], stats.found["sqlite"], stats.not_found), (1, 1, 0));
}

#[tokio::test]
async fn many_who_ask_fetch_once() {
    let Bench { folder: _folder, source, lookup, .. } = bench(Ok(artifact("a", 100))).await;
    let asks: Vec<_> = (0..30)
        .map(|_| {
            let lookup = lookup.clone();
            tokio::spawn(async move { lookup.find(&id("a")).await.unwrap().place.clone() })
        })
        .collect();
    for ask in asks {
        ask.await.unwrap();
    }
    assert_eq!(source.asked(), 1);
}

#[tokio::test]
async fn absence_and_refusal_are_remembered_for_a_while_failure_is_not() {
    let lifetimes = [(ErrorClass::NotFound, 10), (ErrorClass::Invalid, 600)];
    for (class, seconds) in lifetimes {
        let Bench { folder, clock, source, lookup, .. } = bench(Err(Said(class))).await;
        let first = lookup.find(&id("a")).await.unwrap_err();
        assert_eq!((first.class(), first.to_string()), (class, format!("the source said {class}")));
        clock.advance(Duration::from_secs(seconds - 1));
        let known = lookup.find(&id("a")).await.unwrap_err();
        assert!(matches!(&known, LookupError::Known { retry_in_ms: 1000, .. }), "{known}");
        assert_eq!((known.class(), known.code()), (first.class(), first.code()));
        // A tier remembers too: a daemon started anew does not ask.
        let tier = sqlite(&folder.path().join("lower"), 1 << 20, &clock).await;
        let anew =
            Lookup::new(vec![tier], Some(source.clone()), LookupOptions::default(), Arc::new(clock.clone()));
        assert_eq!(anew.find(&id("a")).await.unwrap_err().code(), first.code());
        assert_eq!(source.asked(), 1);
        clock.advance(Duration::from_secs(1));
        assert!(matches!(lookup.find(&id("a")).await, Err(LookupError::Source { .. })));
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
    let Bench { folder: _folder, source, lookup, .. } = bench(Err(Said(ErrorClass::NotFound))).await;
    lookup.find(&id("a")).await.unwrap_err();
    assert!(lookup.forget(&id("a")).await.unwrap());
    *source.answer.lock().unwrap() = Ok(artifact("a", 10));
    lookup.find(&id("a")).await.unwrap();
    lookup.settle().await;
    assert_eq!(lookup.clear().await.unwrap(), 2);
    lookup.find(&id("a")).await.unwrap();
    assert_eq!(source.asked(), 3);
}

#[tokio::test]
async fn verdicts_reach_the_tiers_and_a_rejection_drops_the_bytes() {
    let Bench { folder: _folder, upper, lower, source, lookup, .. } = bench(Ok(artifact("a", 100))).await;
    let found = lookup.find(&id("a")).await.unwrap();
    lookup.note_verdict(&id("a"), &verdict(found.stored.digest, true)).await;
    let again = lookup.find(&id("a")).await.unwrap();
    assert!(again.stored.verdict.as_ref().unwrap().accepted);
    lookup.note_verdict(&id("a"), &verdict(found.stored.digest, false)).await;
    assert!(!holds(&upper, "a").await && !holds(&lower, "a").await);
    let known = lookup.find(&id("a")).await.unwrap_err();
    assert_eq!(known.code(), "kernel.rejected");
    assert!(known.to_string().contains("weights.finite"), "{known}");
    assert_eq!(source.asked(), 1);
}

#[tokio::test]
async fn a_tier_that_fails_or_holds_damage_is_passed_by() {
    let Bench { folder, upper, lower, source, lookup, .. } = bench(Ok(artifact("a", 100))).await;
    lookup.find(&id("a")).await.unwrap();
    lookup.settle().await;
    upper.close().await;
    let mut other = <sqlx::SqliteConnection as sqlx::Connection>::connect(&format!(
        "sqlite://{}",
        folder.path().join("lower").display()
    ))
    .await
    .unwrap();
    sqlx::query("UPDATE artifacts SET bytes = zeroblob(100)").execute(&mut other).await.unwrap();
    let found = lookup.find(&id("a")).await.unwrap();
    let outcomes: Vec<_> = found.steps.iter().map(|step| step.outcome).collect();
    let expected = [StepOutcome::Failed, StepOutcome::Corrupt, StepOutcome::Hit, StepOutcome::Hit];
    assert_eq!(outcomes, expected);
    assert_eq!((found.stored.clone(), source.asked()), (artifact("a", 100), 2));
    lookup.settle().await;
    assert!(holds(&lower, "a").await, "the copy is whole again");
}
