//! Time limit, retries and breaker together, with tokio's clock paused.

use std::{
    future::pending,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;

use super::{Blob, GuardPolicy, Guarded, Origin, OriginError, contract::id};
use crate::{
    backoff::Jitter, clock::ManualClock, fault::Fault, guard::BreakerState, id::KernelId,
    validation::Metadata,
};

#[test]
fn the_shipped_settings_are_the_defaults() {
    let settings = crate::config::Config::default();
    assert_eq!(GuardPolicy::from(&settings.origin), GuardPolicy::default());
}

#[derive(Clone, Copy, Debug)]
enum Mood {
    Well,
    Absent,
    Down,
    Silent,
    /// Down for so many calls, then well.
    Recovers(usize),
}

#[derive(Debug)]
struct Moody {
    mood: Mutex<Mood>,
    calls: AtomicUsize,
}

impl Origin for Moody {
    fn name(&self) -> &str {
        "moody"
    }

    fn metadata<'a>(&'a self, id: &'a KernelId) -> BoxFuture<'a, Result<Metadata, OriginError>> {
        Box::pin(async move {
            let call = self.calls.fetch_add(1, Ordering::SeqCst);
            let mood = *self.mood.lock().unwrap();
            let origin = "moody".to_owned();
            match mood {
                Mood::Absent => Err(OriginError::NotFound { origin, id: id.clone(), here_only: false }),
                Mood::Silent => pending().await,
                Mood::Down => Err(down()),
                Mood::Recovers(after) if call < after => Err(down()),
                Mood::Well | Mood::Recovers(_) => Ok(Metadata::bare(id.clone())),
            }
        })
    }

    fn artifact<'a>(&'a self, _: &'a Metadata) -> BoxFuture<'a, Result<Blob, OriginError>> {
        Box::pin(async { Ok(Blob::hashed(Arc::from(*b"artifact"))) })
    }
}

fn down() -> OriginError {
    OriginError::Unavailable {
        origin: "moody".into(),
        place: "/dev/null".into(),
        reason: "it is down".into(),
    }
}

fn guarded(mood: Mood) -> (Arc<Guarded>, Arc<Moody>, ManualClock) {
    let origin = Arc::new(Moody { mood: Mutex::new(mood), calls: AtomicUsize::new(0) });
    let clock = ManualClock::default();
    let jitter = Jitter::seeded(1);
    let guarded = Guarded::new(origin.clone(), GuardPolicy::default(), jitter, Arc::new(clock.clone()));
    (Arc::new(guarded), origin, clock)
}

fn calls(origin: &Moody) -> usize {
    origin.calls.swap(0, Ordering::SeqCst)
}

#[tokio::test(start_paused = true)]
async fn what_may_pass_is_asked_again() {
    let (guarded, origin, _) = guarded(Mood::Recovers(2));
    let fetched = guarded.fetch(&id("k")).await.unwrap();
    assert_eq!(&fetched.stored.bytes[..], b"artifact");
    assert_eq!((calls(&origin), guarded.breakers()[0].failures), (3, 0));
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_not_asked_again_and_does_not_count() {
    let (guarded, origin, _) = guarded(Mood::Absent);
    for _ in 0..20 {
        assert_eq!(guarded.fetch(&id("k")).await.unwrap_err().code(), "kernel.not_found");
    }
    assert_eq!((calls(&origin), guarded.breakers()[0].state), (20, BreakerState::Closed));
}

#[tokio::test(start_paused = true)]
async fn an_origin_that_stays_down_is_left_alone_and_found_again() {
    let (guarded, origin, clock) = guarded(Mood::Down);
    for _ in 0..5 {
        assert_eq!(guarded.fetch(&id("k")).await.unwrap_err(), down());
    }
    assert_eq!(calls(&origin), 15, "three attempts a fetch");
    let refused = guarded.fetch(&id("k")).await.unwrap_err();
    assert_eq!(refused.code(), "origin.breaker_open");
    assert!(refused.to_string().contains("it is down"), "{refused}");
    assert_eq!(calls(&origin), 0);
    clock.advance(Duration::from_secs(60));
    *origin.mood.lock().unwrap() = Mood::Well;
    for _ in 0..3 {
        guarded.fetch(&id("k")).await.unwrap();
    }
    assert_eq!(guarded.breakers()[0].state, BreakerState::Closed);
}

#[tokio::test(start_paused = true)]
async fn an_origin_that_does_not_answer_is_given_up_in_time() {
    let (guarded, origin, _) = guarded(Mood::Silent);
    let error = guarded.fetch(&id("k")).await.unwrap_err();
    assert!(matches!(error, OriginError::TimedOut { .. }), "{error}");
    assert_eq!((calls(&origin), guarded.breakers()[0].failures), (3, 1));
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_trial_does_not_block_the_next() {
    let (guarded, origin, clock) = guarded(Mood::Down);
    for _ in 0..5 {
        guarded.fetch(&id("k")).await.unwrap_err();
    }
    clock.advance(Duration::from_secs(60));
    *origin.mood.lock().unwrap() = Mood::Silent;
    calls(&origin);
    let trial = tokio::spawn({
        let guarded = guarded.clone();
        async move { guarded.fetch(&id("k")).await.map(drop) }
    });
    while origin.calls.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(guarded.fetch(&id("k")).await.unwrap_err().code(), "origin.breaker_open");
    trial.abort();
    assert!(trial.await.unwrap_err().is_cancelled());
    *origin.mood.lock().unwrap() = Mood::Well;
    guarded.fetch(&id("k")).await.unwrap();
}
