//! Who is told what: a tier that nodes share beside one of the node's own, over real SQLite files.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;

use super::tests::{Said, Scripted, fresh, holds, sqlite};
use crate::{
    cache::{
        Answer, Held, Lookup, LookupOptions, Negative, SqlTier, StepOutcome, Stored, Tier, TierError,
        TierStats,
        contract::{id, verdict},
    },
    clock::{Clock as _, ManualClock},
    digest::Digest,
    fault::{ErrorClass, Fault as _},
    id::KernelId,
    validation::Verdict,
};

/// As a tier that nodes share, and as slow as the test says.
#[derive(Debug)]
struct Shared {
    tier: Arc<SqlTier>,
    clock: ManualClock,
    takes_ms: AtomicU64,
}

impl Tier for Shared {
    fn name(&self) -> &str {
        "shared"
    }

    fn shared(&self) -> bool {
        true
    }

    fn get<'a>(&'a self, id: &'a KernelId) -> BoxFuture<'a, Result<Answer, TierError>> {
        self.clock.advance(Duration::from_millis(self.takes_ms.load(Ordering::SeqCst)));
        self.tier.get(id)
    }

    fn put<'a>(&'a self, stored: &'a Stored) -> BoxFuture<'a, Result<bool, TierError>> {
        self.tier.put(stored)
    }

    fn put_verdict<'a>(
        &'a self,
        id: &'a KernelId,
        digest: Digest,
        verdict: &'a Verdict,
    ) -> BoxFuture<'a, Result<bool, TierError>> {
        self.tier.put_verdict(id, digest, verdict)
    }

    fn put_negative<'a>(
        &'a self,
        id: &'a KernelId,
        negative: &'a Negative,
    ) -> BoxFuture<'a, Result<(), TierError>> {
        self.tier.put_negative(id, negative)
    }

    fn remove<'a>(&'a self, id: &'a KernelId) -> BoxFuture<'a, Result<bool, TierError>> {
        self.tier.remove(id)
    }

    fn about<'a>(&'a self, id: &'a KernelId) -> BoxFuture<'a, Result<Option<Held>, TierError>> {
        self.tier.about(id)
    }

    fn negative<'a>(&'a self, id: &'a KernelId) -> BoxFuture<'a, Result<Option<Negative>, TierError>> {
        self.tier.negative(id)
    }

    fn clear(&self) -> BoxFuture<'_, Result<u64, TierError>> {
        self.tier.clear()
    }

    fn most_used(&self, since: i64, limit: u32) -> BoxFuture<'_, Result<Option<Vec<KernelId>>, TierError>> {
        self.tier.most_used(since, limit)
    }

    fn counters(&self) -> TierStats {
        self.tier.counters()
    }

    fn stats(&self) -> BoxFuture<'_, Result<TierStats, TierError>> {
        self.tier.stats()
    }
}

/// One node, and what it shares.
struct Node {
    folder: tempfile::TempDir,
    clock: ManualClock,
    shared: Arc<Shared>,
    own: Arc<SqlTier>,
    source: Arc<Scripted>,
    lookup: Lookup,
}

async fn node(answer: Result<Stored, Said>, options: LookupOptions) -> Node {
    let (folder, clock) = (tempfile::tempdir().unwrap(), ManualClock::default());
    let tier = sqlite(&folder.path().join("shared"), 1 << 20, &clock).await;
    let shared = Arc::new(Shared { tier, clock: clock.clone(), takes_ms: AtomicU64::new(0) });
    let own = sqlite(&folder.path().join("own"), 1 << 20, &clock).await;
    let source = Scripted::new(answer);
    let tiers: Vec<Arc<dyn Tier>> = vec![shared.clone(), own.clone()];
    let lookup = Lookup::new(tiers, Some(source.clone()), options, Arc::new(clock.clone()));
    Node { folder, clock, shared, own, source, lookup }
}

impl Node {
    /// Loads a kernel, and says where it was found and what the places said.
    async fn load(&self, name: &str) -> (String, Vec<(String, StepOutcome)>) {
        let found = self.lookup.find(&id(name)).await.unwrap();
        self.lookup.keep(&found, Arc::new(verdict(found.stored.digest, true)));
        self.lookup.settle().await;
        let steps = found.steps.iter().map(|step| (step.place.clone(), step.outcome));
        (found.place.clone(), steps.collect())
    }

    async fn holds(&self, name: &str) -> [bool; 2] {
        [holds(&self.shared.tier, name).await, holds(&self.own, name).await]
    }

    /// A daemon on the same tiers, with other settings where `policy` differs.
    fn restarted(&self, policy: Digest) -> Lookup {
        let tiers: Vec<Arc<dyn Tier>> = vec![self.shared.clone(), self.own.clone()];
        let options = LookupOptions { policy, ..LookupOptions::default() };
        Lookup::new(tiers, Some(self.source.clone()), options, Arc::new(self.clock.clone()))
    }
}

#[tokio::test]
async fn a_rejection_stays_with_the_node_and_its_settings() {
    let node = node(Ok(fresh("a", 100)), LookupOptions::default()).await;
    node.load("a").await;
    assert_eq!(node.holds("a").await, [true, true]);
    let found = node.lookup.find(&id("a")).await.unwrap();
    let rejected = verdict(found.stored.digest, false);
    node.lookup.reject(&found, &rejected.rejection(&id("a")).unwrap());
    node.lookup.settle().await;
    assert_eq!(node.holds("a").await, [true, false], "others may accept what this node does not");
    assert_eq!(node.lookup.find(&id("a")).await.unwrap_err().code(), "kernel.rejected");
    let known = node.lookup.about(&id("a")).await;
    assert!(known[0].1.as_ref().unwrap().negative.is_none());
    assert_eq!(known[1].1.as_ref().unwrap().negative.as_ref().unwrap().code, "kernel.rejected");

    // As long as only its own tier is asked: one with the same settings believes it, one with others does not.
    node.shared.remove(&id("a")).await.unwrap();
    let policy = LookupOptions::default().policy;
    let error = node.restarted(policy).find(&id("a")).await.unwrap_err();
    assert_eq!((error.code(), node.source.asked()), ("kernel.rejected", 1));
    let changed = node.restarted(Digest::of(b"other settings"));
    assert_eq!(changed.find(&id("a")).await.unwrap().place, "scripted");
    assert!(changed.about(&id("a")).await[1].1.as_ref().unwrap().negative.is_none(), "it is not believed");
}

#[tokio::test]
async fn what_a_node_refuses_by_itself_is_not_told_to_others_and_what_there_is_not_is() {
    for (class, told) in [(ErrorClass::NotFound, true), (ErrorClass::Invalid, false)] {
        let node = node(Err(Said(class)), LookupOptions::default()).await;
        node.lookup.find(&id("a")).await.unwrap_err();
        node.lookup.settle().await;
        assert_eq!(node.shared.negative(&id("a")).await.unwrap().is_some(), told, "{class}");
        assert!(node.own.negative(&id("a")).await.unwrap().is_some(), "{class}");
    }
    // What earlier versions told everybody is not believed.
    let node = node(Ok(fresh("a", 100)), LookupOptions::default()).await;
    let until_unix_ms = i64::MAX;
    let negative =
        Negative { code: "kernel.rejected".into(), reason: "old".into(), until_unix_ms, policy: None };
    node.shared.put_negative(&id("a"), &negative).await.unwrap();
    assert_eq!(node.load("a").await.0, "scripted");
    assert_eq!(node.holds("a").await, [true, true]);
}

#[tokio::test]
async fn what_could_not_be_judged_is_asked_for_again() {
    let node = node(Ok(fresh("a", 100)), LookupOptions::default()).await;
    let found = node.lookup.find(&id("a")).await.unwrap();
    for rule in ["trial.runs", "validation.completed"] {
        let mut late = verdict(found.stored.digest, false);
        (late.rules[0].name, late.rules[0].may_pass) = (rule.to_owned(), true);
        node.lookup.reject(&found, &late.rejection(&id("a")).unwrap());
        node.lookup.settle().await;
        assert_eq!(node.lookup.find(&id("a")).await.unwrap().place, "scripted", "{rule}");
        assert_eq!(node.lookup.stats().await.negatives, 0, "{rule}");
    }
}

#[tokio::test]
async fn what_was_found_before_a_kernel_was_forgotten_is_kept_nowhere() {
    for everywhere in [true, false] {
        let node = node(Ok(fresh("a", 100)), LookupOptions::default()).await;
        let found = node.lookup.find(&id("a")).await.unwrap();
        match everywhere {
            true => node.lookup.forget(&id("a")).await.unwrap(),
            false => node.lookup.forget_here(&id("a")).await.unwrap(),
        };
        assert!(node.lookup.is_forgotten(&id("a"), found.search()));
        node.lookup.keep(&found, Arc::new(verdict(found.stored.digest, true)));
        let rejected = verdict(found.stored.digest, false);
        node.lookup.reject(&found, &rejected.rejection(&id("a")).unwrap());
        node.lookup.settle().await;
        assert_eq!(node.holds("a").await, [false, false]);
        assert_eq!(node.lookup.stats().await.negatives, 0);
        node.load("a").await;
        assert_eq!(node.holds("a").await, [true, true], "what is found since is kept");
    }
    let node = node(Ok(fresh("a", 100)), LookupOptions::default()).await;
    let found = node.lookup.find(&id("a")).await.unwrap();
    node.lookup.clear().await.unwrap();
    node.lookup.keep(&found, Arc::new(verdict(found.stored.digest, true)));
    node.lookup.settle().await;
    assert_eq!(node.holds("a").await, [false, false]);
}

#[tokio::test]
async fn a_copy_from_before_a_kernel_was_forgotten_is_not_believed() {
    let node = node(Ok(fresh("a", 100)), LookupOptions::default()).await;
    let found = node.lookup.find(&id("a")).await.unwrap();
    node.clock.advance(Duration::from_millis(10));
    node.lookup.forget_here(&id("a")).await.unwrap();
    // Another node, which has not heard of it yet, puts its old copy where all look.
    node.shared.put(&found.stored).await.unwrap();
    let renewed = Stored { metadata: found.stored.metadata.clone(), ..fresh("b", 50) };
    let renewed = Stored { confirmed_unix_ms: node.clock.unix_ms(), ..renewed };
    node.source.set(Ok(renewed.clone()));
    let (place, steps) = node.load("a").await;
    assert_eq!(place, "scripted");
    let asked = [("shared", StepOutcome::Outdated), ("scripted.metadata", StepOutcome::Hit)];
    assert_eq!(steps[..2], asked.map(|(place, outcome)| (place.to_owned(), outcome)));
    assert_eq!(node.shared.about(&id("a")).await.unwrap().unwrap().digest, renewed.digest);
    assert_eq!(node.load("a").await.0, "shared", "a copy from since is believed");

    // Nor does it serve while the origin is down.
    node.shared.put(&found.stored).await.unwrap();
    node.own.remove(&id("a")).await.unwrap();
    node.source.set(Err(Said(ErrorClass::Unavailable)));
    assert_eq!(node.lookup.find(&id("a")).await.unwrap_err().class(), ErrorClass::Unavailable);
}

#[tokio::test]
async fn while_the_origin_is_down_every_tier_is_asked_for_the_newest_copy() {
    for serve_stale in [true, false] {
        let options = LookupOptions { serve_stale, ..LookupOptions::default() };
        let node = node(Ok(fresh("a", 100)), options).await;
        node.load("a").await;
        node.clock.advance(Duration::from_secs(3601));
        // The tier of its own has been told of a newer one.
        let newer = Stored { metadata: fresh("a", 1).metadata, ..fresh("b", 50) };
        let newer = Stored { confirmed_unix_ms: node.clock.unix_ms(), ..newer };
        node.own.put(&newer).await.unwrap();
        node.source.set(Err(Said(ErrorClass::Unavailable)));
        let (place, steps) = node.load("a").await;
        assert_eq!(place, "sqlite");
        let expected = [
            ("shared", StepOutcome::Outdated),
            ("scripted.metadata", StepOutcome::Failed),
            ("sqlite", StepOutcome::Hit),
        ];
        assert_eq!(steps, expected.map(|(place, outcome)| (place.to_owned(), outcome)));
        assert_eq!(node.shared.about(&id("a")).await.unwrap().unwrap().digest, newer.digest);
        // Once both are old, the newer of them serves, if any may.
        node.clock.advance(Duration::from_secs(3601));
        node.shared.put(&fresh("a", 100)).await.unwrap();
        match node.lookup.find(&id("a")).await {
            Ok(found) => assert!(serve_stale && found.stale && found.stored.digest == newer.digest),
            Err(unfound) => {
                assert!(!serve_stale && unfound.class() == ErrorClass::Unavailable);
                assert_eq!(unfound.steps.len(), 3, "the way is told: {unfound:?}");
            }
        }
        assert_eq!(node.lookup.stats().await.confirmations, 2, "the origin is asked once a look-up");
    }
}

#[tokio::test]
async fn a_look_up_that_fails_tells_its_way() {
    let node = node(Err(Said(ErrorClass::NotFound)), LookupOptions::default()).await;
    let places = |steps: &[super::Step]| -> Vec<(String, StepOutcome)> {
        steps.iter().map(|step| (step.place.clone(), step.outcome)).collect()
    };
    let told = |expected: &[(&str, StepOutcome)]| -> Vec<(String, StepOutcome)> {
        expected.iter().map(|(place, outcome)| ((*place).to_owned(), *outcome)).collect()
    };
    let (miss, failed) = (StepOutcome::Miss, StepOutcome::Failed);
    let unfound = node.lookup.find(&id("a")).await.unwrap_err();
    let expected = told(&[("shared", miss), ("sqlite", miss), ("scripted", failed)]);
    assert_eq!(places(&unfound.steps), expected);
    let unfound = node.lookup.find(&id("a")).await.unwrap_err();
    assert_eq!(places(&unfound.steps), told(&[("memory", StepOutcome::Negative)]));
}

#[tokio::test]
async fn a_tier_that_is_passed_by_is_filled_and_found_again() {
    let node = node(Ok(fresh("a", 100)), LookupOptions::default()).await;
    let way = |steps: &[(String, StepOutcome)]| steps[0].1;
    node.shared.takes_ms.store(100, Ordering::SeqCst);
    for _ in 0..4 {
        // Found in each, so that each is measured.
        node.load("a").await;
        node.load("a").await;
        node.shared.remove(&id("a")).await.unwrap();
        node.load("a").await;
    }
    node.shared.remove(&id("a")).await.unwrap();
    let (place, steps) = node.load("a").await;
    assert_eq!((place.as_str(), way(&steps)), ("sqlite", StepOutcome::PassedBy));
    assert_eq!(node.holds("a").await, [true, true], "that concerns reading alone");
    let stored = node.shared.counters().admissions;
    node.load("a").await;
    assert_eq!(node.shared.counters().admissions, stored, "what it has is not written again");

    // It is fast again, and empty: the trial that misses is the end of it.
    node.shared.takes_ms.store(0, Ordering::SeqCst);
    node.shared.clear().await.unwrap();
    node.clock.advance(Duration::from_secs(60));
    let (place, steps) = node.load("a").await;
    assert_eq!((place.as_str(), way(&steps)), ("sqlite", StepOutcome::Miss));
    assert_eq!(node.holds("a").await, [true, true]);
    assert_eq!(node.load("a").await.0, "shared");
    drop(node.folder);
}
