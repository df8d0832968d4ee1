//! What every byte tier must do; each implementation runs this suite.

use std::{sync::Arc, time::Duration};

use super::{Answer, Negative, Stored, Tier};
use crate::{
    clock::{Clock as _, ManualClock},
    digest::Digest,
    id::KernelId,
    validation::{Metadata, RuleResult, Verdict},
};

pub(super) fn id(text: &str) -> KernelId {
    text.parse().unwrap()
}

/// An artifact of `size` bytes, different for every name.
pub(super) fn artifact(name: &str, size: usize) -> Stored {
    let bytes: Vec<u8> = name.bytes().cycle().take(size).collect();
    let mut metadata = Metadata::bare(id(name));
    metadata.input_shape = Some([3, 8, 8].into());
    Stored::new(metadata, bytes.into(), 1_700_000_000_000)
}

pub(super) fn verdict(digest: Digest, accepted: bool) -> Verdict {
    let (name, detail) = ("weights.finite".into(), "looked at 2".into());
    let rule = RuleResult { name, passed: accepted, detail, may_pass: false };
    Verdict {
        accepted,
        rules: vec![rule],
        digest,
        policy: "test".into(),
        size_bytes: 7,
        format: Some("pt2".into()),
        parameters: 2,
        buffers: 0,
        constants: 0,
        modules: Vec::new(),
        more_modules: 0,
        ops: vec!["aten.relu".into()],
        more_ops: 0,
        input_shape: None,
        output_shape: None,
        forward: None,
        backward: None,
        trial: None,
    }
}

/// What a tier promises of its own contents, beside giving back what it was given.
#[derive(Clone, Copy, Debug)]
pub(super) enum Bound {
    /// It holds at most so many bytes, the most recently used kernels, and counts their uses by the day.
    ByUse { max_bytes: usize },
    /// Its server bounds it as a whole; the tier passes artifacts over that are larger than this.
    ByServer { max_artifact_bytes: usize },
}

/// `tier` is empty and reads `clock`.
pub(super) async fn every_tier(tier: &dyn Tier, clock: &ManualClock, bound: Bound) {
    kept_as_given(tier).await;
    negatives_end(tier, clock).await;
    negatives_survive_no_clock(tier, clock).await;
    forgotten_when_asked(tier).await;
    let too_large = match bound {
        Bound::ByUse { max_bytes } => {
            bounded_by_use(tier, max_bytes).await;
            used_by_the_day(tier, clock).await;
            max_bytes + 1
        }
        Bound::ByServer { max_artifact_bytes } => {
            assert_eq!(tier.most_used(0, 2).await, Ok(None), "it counts no uses");
            max_artifact_bytes + 1
        }
    };
    assert!(!tier.put(&artifact("huge", too_large)).await.unwrap());
    assert_eq!(tier.about(&id("huge")).await.unwrap(), None);
    assert_eq!(tier.stats().await.unwrap().passed_over, 1);
    tier.put(&artifact("a", 10)).await.unwrap();
    let before = tier.stats().await.unwrap().entries;
    assert!(before > 0);
    assert_eq!(tier.clear().await.unwrap(), before);
    assert_eq!(tier.stats().await.unwrap().entries, 0);
    assert_eq!(tier.get(&id("a")).await.unwrap(), Answer::Miss);
}

async fn kept_as_given(tier: &dyn Tier) {
    let stored = artifact("a", 1000);
    assert_eq!(tier.get(stored.id()).await.unwrap(), Answer::Miss);
    assert_eq!(tier.about(stored.id()).await.unwrap(), None);
    assert!(tier.put(&stored).await.unwrap());
    let held = tier.about(stored.id()).await.unwrap().unwrap();
    assert_eq!((held.digest, held.bytes), (stored.digest, 1000));
    assert_eq!((held.confirmed_unix_ms, held.verdict), (stored.confirmed_unix_ms, None));
    assert_eq!(tier.get(stored.id()).await.unwrap(), Answer::Hit(stored.clone()));

    let other =
        Stored { bytes: Arc::from(*b"other bytes"), digest: Digest::of(b"other bytes"), ..stored.clone() };
    assert!(!tier.put_verdict(stored.id(), other.digest, &verdict(other.digest, true)).await.unwrap());
    assert!(tier.put_verdict(stored.id(), stored.digest, &verdict(stored.digest, true)).await.unwrap());
    let Answer::Hit(judged) = tier.get(stored.id()).await.unwrap() else { panic!("it was there") };
    assert_eq!(judged.verdict.as_deref(), Some(&verdict(stored.digest, true)));
    assert_eq!(tier.about(stored.id()).await.unwrap().unwrap().verdict, judged.verdict);

    assert!(tier.put(&other).await.unwrap());
    assert_eq!(tier.get(stored.id()).await.unwrap(), Answer::Hit(other));
    let stats = tier.stats().await.unwrap();
    assert_eq!((stats.hits, stats.misses, stats.entries, stats.corrupt), (3, 1, 1, 0));
}

async fn negatives_end(tier: &dyn Tier, clock: &ManualClock) {
    let stored = artifact("a", 10);
    tier.put(&stored).await.unwrap();
    let until_unix_ms = clock.unix_ms() + 1000;
    let policy = Some(Digest::of(b"settings"));
    let negative =
        Negative { code: "kernel.rejected".into(), reason: "infinite".into(), until_unix_ms, policy };
    assert_eq!(tier.negative(stored.id()).await.unwrap(), None);
    tier.put_negative(stored.id(), &negative).await.unwrap();
    assert_eq!(tier.about(stored.id()).await.unwrap(), None, "a rejected kernel's bytes go");
    clock.advance(Duration::from_millis(999));
    assert_eq!(tier.get(stored.id()).await.unwrap(), Answer::Negative(negative.clone()));
    assert_eq!(tier.negative(stored.id()).await.unwrap(), Some(negative.clone()));
    clock.advance(Duration::from_millis(1));
    assert_eq!(tier.get(stored.id()).await.unwrap(), Answer::Miss);
    assert_eq!(tier.negative(stored.id()).await.unwrap(), None);
    let later = Negative { until_unix_ms: clock.unix_ms() + 1000, ..negative };
    tier.put_negative(stored.id(), &later).await.unwrap();
    tier.put(&stored).await.unwrap();
    assert_eq!(tier.get(stored.id()).await.unwrap(), Answer::Hit(stored), "the bytes are newer");
}

async fn forgotten_when_asked(tier: &dyn Tier) {
    tier.put(&artifact("a", 10)).await.unwrap();
    assert!(tier.remove(&id("a")).await.unwrap());
    assert!(!tier.remove(&id("a")).await.unwrap());
    assert_eq!(tier.get(&id("a")).await.unwrap(), Answer::Miss);
    let negative = Negative {
        code: "kernel.not_found".into(),
        reason: "none".into(),
        until_unix_ms: i64::MAX,
        policy: None,
    };
    tier.put_negative(&id("a"), &negative).await.unwrap();
    assert!(tier.remove(&id("a")).await.unwrap());
    assert_eq!(tier.get(&id("a")).await.unwrap(), Answer::Miss);
}

async fn bounded_by_use(tier: &dyn Tier, max_bytes: usize) {
    // Three fit with their descriptions, four do not.
    let size = max_bytes / 4;
    for name in ["a", "b", "c"] {
        assert!(tier.put(&artifact(name, size)).await.unwrap());
    }
    tier.get(&id("a")).await.unwrap();
    assert!(tier.put(&artifact("d", size)).await.unwrap());
    let here = async |name: &str| tier.about(&id(name)).await.unwrap().is_some();
    assert_eq!(
        [here("a").await, here("b").await, here("c").await, here("d").await],
        [true, false, true, true]
    );
    let stats = tier.stats().await.unwrap();
    assert_eq!(stats.entries, 3);
    assert!(stats.bytes <= max_bytes as u64);
}

/// Uses count on the day they took place, told ones too, and stay with a kernel that is stored anew.
async fn used_by_the_day(tier: &dyn Tier, clock: &ManualClock) {
    const DAY: Duration = Duration::from_secs(24 * 3600);
    tier.clear().await.unwrap();
    let first_day = clock.unix_ms();
    for name in ["a", "b", "c"] {
        tier.put(&artifact(name, 10)).await.unwrap();
        tier.get(&id(name)).await.unwrap();
    }
    tier.note_uses(&[(id("a"), 10), (id("gone"), 99)]).await.unwrap();
    assert_eq!(tier.most_used(first_day, 1).await.unwrap().unwrap(), [id("a")]);
    clock.advance(3 * DAY);
    let fourth_day = clock.unix_ms();
    tier.note_uses(&[(id("b"), 1), (id("c"), 5)]).await.unwrap();
    tier.put(&artifact("c", 20)).await.unwrap();
    assert_eq!(
        tier.most_used(fourth_day, 3).await.unwrap().unwrap(),
        [id("c"), id("b")],
        "a was not used since"
    );
    assert_eq!(tier.most_used(first_day, 3).await.unwrap().unwrap(), [id("a"), id("c"), id("b")]);
    assert_eq!(tier.most_used(i64::MAX, 3).await.unwrap().unwrap(), []);
}

/// A clock that is set back does not make a short belief a long one, and one that jumps ahead ends it.
async fn negatives_survive_no_clock(tier: &dyn Tier, clock: &ManualClock) {
    let start = clock.unix_ms();
    let until_unix_ms = start + 1000;
    let negative =
        Negative { code: "kernel.not_found".into(), reason: "none".into(), until_unix_ms, policy: None };
    tier.put_negative(&id("n"), &negative).await.unwrap();
    clock.set_unix_ms(start - 24 * 3_600_000);
    assert_eq!(tier.get(&id("n")).await.unwrap(), Answer::Miss, "it was noted in what is now the future");
    tier.put(&artifact("n", 10)).await.unwrap();
    assert!(matches!(tier.get(&id("n")).await.unwrap(), Answer::Hit(_)));
    clock.set_unix_ms(start);
    tier.put_negative(&id("n"), &negative).await.unwrap();
    clock.set_unix_ms(start + 24 * 3_600_000);
    assert_eq!(tier.get(&id("n")).await.unwrap(), Answer::Miss);
    clock.set_unix_ms(start);
    tier.remove(&id("n")).await.unwrap();
}
