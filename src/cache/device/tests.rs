//! The device tier against a model of it, and its cases one by one.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use proptest::prelude::*;

use super::{Budget, CacheError, Condemned, DeviceCache, Evictor, Lease, LeavingStats};
use crate::{
    cache::EvictionReason,
    clock::ManualClock,
    id::KernelId,
    telemetry::{Counter, step_path},
};

const BY: Evictor = Evictor::Operator { uid: 7 };

fn id(number: u64) -> KernelId {
    format!("k{number}").parse().unwrap()
}

/// A value that is its own weight.
fn cache(max_entries: usize, max_bytes: u64) -> (DeviceCache<u64>, ManualClock) {
    let clock = ManualClock::default();
    (DeviceCache::new(Budget { max_entries, max_bytes }, |&bytes| bytes, Arc::new(clock.clone())), clock)
}

/// What a look-up finds.
fn value(cache: &DeviceCache<u64>, number: u64) -> Option<u64> {
    cache.lease(&id(number)).map(|lease| *lease)
}

#[test]
fn the_least_recently_used_goes_first_and_says_for_whom() {
    let (cache, clock) = cache(3, 100);
    (0..3).for_each(|n| drop(cache.admit(id(n), 10).unwrap()));
    assert_eq!(value(&cache, 0), Some(10));
    clock.advance(Duration::from_secs(5));
    drop(cache.admit(id(3), 10).unwrap());
    assert_eq!(value(&cache, 1), None);
    let eviction = cache.evictions().pop().unwrap();
    assert_eq!(eviction.id, id(1));
    assert_eq!(eviction.reason, EvictionReason::Room { newcomer: id(3) });
    assert_eq!(eviction.idle_ms, 5000);
    let entries = cache.entries();
    assert_eq!(entries.iter().map(|e| e.id.clone()).collect::<Vec<_>>(), [id(2), id(0), id(3)]);
    assert_eq!((entries[1].hits, entries[1].age_ms, entries[1].holders), (1, 5000, 0));
}

#[test]
fn what_is_leased_stays_and_a_newcomer_without_room_changes_nothing() {
    let (cache, _) = cache(10, 100);
    let lease = cache.admit(id(0), 60).unwrap();
    drop(cache.admit(id(1), 30).unwrap());
    let error = cache.admit(id(2), 50).unwrap_err();
    assert!(matches!(error, CacheError::NoRoom { held_bytes: 60, held_entries: 1, .. }), "{error}");
    assert!(error.to_string().contains("60 of 100 bytes in 1 kernels"), "{error}");
    assert_eq!(cache.stats().entries, 2);
    assert!(matches!(cache.evict(&id(0), &BY), Err(CacheError::InUse { holders: 1, .. })));
    assert!(matches!(cache.admit(id(0), 1), Err(CacheError::InUse { .. })));
    assert!(matches!(cache.admit(id(2), 101), Err(CacheError::TooLarge { .. })));
    drop(lease);
    drop(cache.admit(id(2), 50).unwrap());
    assert_eq!(cache.peek(&id(0)), None);
    assert_eq!(cache.peek(&id(1)), Some(30));
}

#[test]
fn pins_hold_until_they_are_drawn() {
    let (cache, _) = cache(2, 100);
    drop(cache.admit(id(0), 1).unwrap());
    assert!(cache.pin(&id(0), true));
    assert!(!cache.pin(&id(9), true));
    (1..5).for_each(|n| drop(cache.admit(id(n), 1).unwrap()));
    assert_eq!(value(&cache, 0), Some(1));
    assert_eq!(cache.clear(&BY), [(id(4), 1)]);
    assert_eq!(cache.stats().pinned, 1);
    cache.pin(&id(0), false);
    assert_eq!(cache.evict(&id(0), &BY), Ok(Some(1)));
    assert_eq!(cache.evict(&id(0), &BY), Ok(None));
    let reasons: Vec<_> =
        cache.evictions().into_iter().rev().map(|eviction| eviction.reason).take(2).collect();
    assert_eq!(reasons, [EvictionReason::Asked { by: BY }, EvictionReason::Cleared { by: BY }]);
}

#[test]
fn what_was_in_use_for_long_goes_after_what_nobody_used_meanwhile() {
    let (cache, clock) = cache(3, 100);
    let long = cache.admit(id(0), 10).unwrap();
    (1..3).for_each(|n| drop(cache.admit(id(n), 10).unwrap()));
    clock.advance(Duration::from_secs(36_000));
    assert_eq!(value(&cache, 1), Some(10));
    clock.advance(Duration::from_secs(60));
    let idle = |cache: &DeviceCache<u64>| -> Vec<_> {
        cache.entries().into_iter().map(|entry| (entry.id, entry.idle_ms)).collect()
    };
    assert_eq!(idle(&cache), [(id(2), 36_060_000), (id(1), 60_000), (id(0), 0)]);
    drop(long);
    clock.advance(Duration::from_secs(5));
    assert_eq!(idle(&cache), [(id(2), 36_065_000), (id(1), 65_000), (id(0), 5000)]);
    (3..5).for_each(|n| drop(cache.admit(id(n), 10).unwrap()));
    let gone: Vec<_> = cache.evictions().into_iter().map(|gone| (gone.id, gone.idle_ms)).collect();
    assert_eq!(gone, [(id(2), 36_065_000), (id(1), 65_000)]);
    assert!(cache.peek(&id(0)).is_some());
}

type Grows = Arc<AtomicU64>;

fn grows(bytes: u64) -> Grows {
    Arc::new(bytes.into())
}

fn of_growing(max_bytes: u64) -> DeviceCache<Grows> {
    let weigh = |value: &Grows| value.load(Ordering::Relaxed);
    DeviceCache::new(Budget { max_entries: 9, max_bytes }, weigh, Arc::new(ManualClock::default()))
}

#[test]
fn a_value_that_grows_pushes_others_out() {
    let cache = of_growing(100);
    let large = grows(10);
    let lease = cache.admit(id(0), large.clone()).unwrap();
    drop(cache.admit(id(1), grows(50)).unwrap());
    large.store(70, Ordering::Relaxed);
    assert_eq!(cache.reweigh(&id(0)), Ok(true));
    assert_eq!((cache.stats().bytes, cache.stats().entries), (70, 1));
    assert_eq!(cache.reweigh(&id(7)), Ok(false));
    assert_eq!((cache.stats().overruns, lease.load(Ordering::Relaxed)), (0, 70));
}

#[test]
fn a_value_that_grows_past_what_is_free_counts_all_the_same() {
    let cache = of_growing(100);
    let large = grows(10);
    let lease = cache.admit(id(0), large.clone()).unwrap();
    let other = cache.admit(id(1), grows(30)).unwrap();
    drop(cache.admit(id(2), grows(20)).unwrap());
    large.store(90, Ordering::Relaxed);
    assert!(matches!(cache.reweigh(&id(0)), Err(CacheError::NoRoom { held_bytes: 30, .. })));
    let stats = cache.stats();
    assert_eq!((stats.bytes, stats.entries, stats.overruns), (120, 2, 1), "who could go is gone");
    let refused = cache.admit(id(3), grows(1)).unwrap_err();
    assert!(matches!(refused, CacheError::NoRoom { held_bytes: 120, .. }), "{refused}");
    large.store(101, Ordering::Relaxed);
    assert!(matches!(cache.reweigh(&id(0)), Err(CacheError::TooLarge { bytes: 101, .. })));
    assert_eq!((cache.stats().bytes, cache.stats().overruns), (131, 2));
    // What shrinks again is seen without a word.
    large.store(60, Ordering::Relaxed);
    drop(cache.admit(id(3), grows(10)).unwrap());
    assert_eq!(cache.stats().bytes, 100);
    drop((lease, other));
    drop(cache.admit(id(4), grows(100)).unwrap());
    assert_eq!((cache.stats().bytes, cache.stats().entries), (100, 1));
}

#[derive(Clone, Debug)]
enum Step {
    Admit(u64, u64),
    Get(u64),
    Lease(u64),
    Release(usize),
    Pin(u64, bool),
    Evict(u64),
    Clear,
}

fn step() -> impl Strategy<Value = Step> {
    let key = 0u64..6;
    prop_oneof![
        6 => (key.clone(), 0u64..60).prop_map(|(k, b)| Step::Admit(k, b)),
        4 => key.clone().prop_map(Step::Get),
        2 => key.clone().prop_map(Step::Lease),
        3 => (0usize..8).prop_map(Step::Release),
        1 => (key.clone(), any::<bool>()).prop_map(|(k, p)| Step::Pin(k, p)),
        1 => key.prop_map(Step::Evict),
        1 => Just(Step::Clear),
    ]
}

/// The same rules, slow and plain.
#[derive(Default)]
struct Model(Vec<Row>);

#[derive(Clone, Debug)]
struct Row {
    key: u64,
    bytes: u64,
    leases: usize,
    pinned: bool,
    /// The step in which it came in or was last let go.
    used: usize,
}

impl Row {
    fn held(&self) -> bool {
        self.leases > 0 || self.pinned
    }
}

impl Model {
    const ENTRIES: usize = 4;
    const BYTES: u64 = 100;

    fn row(&mut self, key: u64) -> Option<&mut Row> {
        self.0.iter_mut().find(|row| row.key == key)
    }

    /// The least recently used first, and what is in use behind all others.
    fn in_order(&mut self) {
        self.0.sort_by_key(|row| (row.leases > 0, row.used));
    }

    fn admit(&mut self, key: u64, bytes: u64, used: usize) -> bool {
        if self.0.iter().any(|row| row.key == key && row.held()) {
            return false;
        }
        let mut left: Vec<Row> = self.0.iter().filter(|row| row.key != key).cloned().collect();
        let full = |left: &[Row]| {
            left.len() >= Self::ENTRIES || left.iter().map(|r| r.bytes).sum::<u64>() + bytes > Self::BYTES
        };
        while full(&left) {
            let Some(victim) = left.iter().position(|row| !row.held()) else {
                return false;
            };
            left.remove(victim);
        }
        left.push(Row { key, bytes, leases: 1, pinned: false, used });
        self.0 = left;
        true
    }
}

proptest! {
    #[test]
    fn it_does_what_the_model_does(steps in prop::collection::vec(step(), 1..120)) {
        let (cache, clock) = cache(Model::ENTRIES, Model::BYTES);
        let mut model = Model::default();
        let mut leases: Vec<(u64, Lease<u64>)> = Vec::new();
        for (now, step) in steps.into_iter().enumerate() {
            clock.advance(Duration::from_millis(1));
            match step {
                Step::Admit(key, bytes) => {
                    let lease = cache.admit(id(key), bytes);
                    prop_assert_eq!(lease.is_ok(), model.admit(key, bytes, now));
                    leases.extend(lease.ok().map(|lease| (key, lease)));
                }
                Step::Get(key) => {
                    let row = model.row(key);
                    prop_assert_eq!(value(&cache, key), row.as_ref().map(|row| row.bytes));
                    row.into_iter().for_each(|row| row.used = now);
                }
                Step::Lease(key) => {
                    let lease = cache.lease(&id(key));
                    let row = model.row(key);
                    prop_assert_eq!(lease.is_some(), row.is_some());
                    row.into_iter().for_each(|row| row.leases += 1);
                    leases.extend(lease.map(|lease| (key, lease)));
                }
                Step::Release(n) if n < leases.len() => {
                    let (key, _) = leases.swap_remove(n);
                    model.row(key).into_iter().for_each(|row| (row.leases, row.used) = (row.leases - 1, now));
                }
                Step::Release(_) => {}
                Step::Pin(key, pinned) => {
                    cache.pin(&id(key), pinned);
                    model.row(key).into_iter().for_each(|row| row.pinned = pinned);
                }
                Step::Evict(key) => {
                    let free = model.0.iter().any(|row| row.key == key && !row.held());
                    prop_assert_eq!(matches!(cache.evict(&id(key), &BY), Ok(Some(_))), free);
                    model.0.retain(|row| row.key != key || row.held());
                }
                Step::Clear => {
                    let before = model.0.len();
                    model.0.retain(Row::held);
                    prop_assert_eq!(cache.clear(&BY).len(), before - model.0.len());
                }
            }
            model.in_order();
            let stats = cache.stats();
            prop_assert!(stats.entries <= Model::ENTRIES as u64 && stats.bytes <= Model::BYTES);
            let seen: Vec<_> = cache.entries().into_iter().map(|e| (e.id, e.bytes, e.holders, e.pinned)).collect();
            let expected: Vec<_> =
                model.0.iter().map(|r| (id(r.key), r.bytes, r.leases as u32, r.pinned)).collect();
            prop_assert_eq!(seen, expected);
        }
    }
}

#[test]
fn what_is_condemned_is_not_found_and_counts_until_its_last_lease_ends() {
    let (cache, _) = cache(2, 100);
    let lease = cache.admit(id(0), 60).unwrap();
    drop(cache.admit(id(1), 30).unwrap());
    cache.pin(&id(1), true);
    assert_eq!(cache.condemn(&id(1), &BY), Condemned::Gone { bytes: 30 });
    assert_eq!(cache.condemn(&id(0), &BY), Condemned::Marked { holders: 1 });
    assert_eq!(cache.condemn(&id(0), &BY), Condemned::Absent);
    assert!(cache.lease(&id(0)).is_none() && cache.hold(&id(0)).is_none());
    let leaving = LeavingStats { id: id(0), bytes: 60, leaving_ms: 0, holders: 1 };
    assert_eq!((cache.leaving(), cache.entries()), (vec![leaving], vec![]));
    assert_eq!((*lease, cache.stats().bytes, cache.stats().entries), (60, 60, 0));
    // Its successor comes in beside it as far as there is room for both.
    assert!(matches!(
        cache.admit(id(0), 41),
        Err(CacheError::NoRoom { held_bytes: 60, held_entries: 1, .. })
    ));
    let successor = cache.admit(id(0), 40).unwrap();
    assert!(matches!(cache.admit(id(2), 0), Err(CacheError::NoRoom { held_entries: 2, .. })));
    drop(lease);
    assert_eq!((cache.stats().bytes, *successor), (40, 40));
    assert_eq!((cache.leaving(), cache.evictions().pop().unwrap().reason), (vec![], INVALIDATED));
}

const INVALIDATED: EvictionReason = EvictionReason::Invalidated { by: BY };

#[test]
fn all_that_is_condemned_goes_at_once_or_with_its_last_lease() {
    let (cache, _) = cache(3, 100);
    let lease = cache.admit(id(0), 40).unwrap();
    drop(cache.admit(id(1), 60).unwrap());
    cache.pin(&id(1), true);
    assert_eq!(cache.condemn_all(&BY), 2);
    assert!((0..2).all(|n| cache.lease(&id(n)).is_none()));
    assert_eq!((cache.stats().bytes, cache.leaving().len(), cache.evictions().len()), (40, 1, 2));
    assert!(cache.evictions().into_iter().all(|gone| gone.reason == INVALIDATED));
    drop(lease);
    assert_eq!((cache.stats().bytes, cache.condemn_all(&BY)), (0, 0));
}

#[test]
fn ten_thousand_loads_leave_nothing_behind() {
    let value = Arc::new(());
    let clock = Arc::new(ManualClock::default());
    let cache = DeviceCache::new(Budget { max_entries: 7, max_bytes: 70 }, |_: &Arc<()>| 10, clock);
    for n in 0..10_000 {
        let lease = cache.admit(id(n % 23), value.clone());
        match n % 3 {
            0 => drop(cache.condemn(&id(n % 23), &BY)),
            1 => drop(cache.evict(&id(n % 23), &BY)),
            _ => {}
        }
        drop(lease);
        assert!(cache.stats().bytes <= 70 && Arc::strong_count(&value) <= 8);
    }
    assert_eq!(cache.evictions().len(), 256);
    cache.clear(&BY);
    assert_eq!((cache.stats().bytes, cache.stats().entries, Arc::strong_count(&value)), (0, 0, 1));
}

fn shared(max_bytes: u64) -> DeviceCache<u64> {
    DeviceCache::new(Budget { max_entries: 9, max_bytes }, |&bytes| bytes, Arc::new(ManualClock::default()))
}

#[tokio::test(start_paused = true)]
async fn admission_waits_for_a_lease_to_end() {
    let cache = shared(100);
    let first = cache.admit(id(0), 60).unwrap();
    let second = cache.admit(id(1), 40).unwrap();
    let waits = tokio::spawn({
        let cache = cache.clone();
        async move { cache.admit_wait(id(2), 50, Duration::from_secs(60)).await.map(|lease| *lease) }
    });
    tokio::task::yield_now().await;
    // Forty are not enough; nothing is put out for a newcomer that does not fit.
    drop(second);
    tokio::task::yield_now().await;
    assert!(!waits.is_finished() && cache.peek(&id(1)).is_some());
    drop(first);
    assert_eq!(waits.await.unwrap(), Ok(50));
    assert!(cache.peek(&id(0)).is_none() && cache.peek(&id(1)).is_some());
}

#[tokio::test(start_paused = true)]
async fn who_comes_late_is_given_what_is_there_meanwhile() {
    let cache = shared(100);
    let first = cache.admit(id(0), 60).unwrap();
    let late = cache.admit_wait(id(0), 50, Duration::from_secs(60)).await.unwrap();
    assert_eq!((*late, cache.stats().admissions), (60, 1));
    drop((first, late));
    cache.pin(&id(0), true);
    assert_eq!(*cache.admit_wait(id(0), 50, Duration::from_secs(60)).await.unwrap(), 60);
    cache.pin(&id(0), false);
    // What nobody uses is replaced.
    assert_eq!(*cache.admit_wait(id(0), 50, Duration::from_secs(60)).await.unwrap(), 50);
}

#[tokio::test(start_paused = true)]
async fn admission_that_waits_in_vain_says_who_is_in_the_way() {
    let cache = shared(100);
    let lease = cache.admit(id(0), 60).unwrap();
    let refused = cache.admit_wait(id(2), 50, Duration::from_secs(60)).await.unwrap_err();
    assert!(matches!(refused, CacheError::NoRoom { held_bytes: 60, .. }), "{refused}");
    assert_eq!(*lease, 60);
    let refused = cache.admit_wait(id(2), 101, Duration::from_secs(60)).await.unwrap_err();
    assert!(matches!(refused, CacheError::TooLarge { .. }), "{refused}");
    // A pin that is drawn makes room too.
    drop(lease);
    cache.pin(&id(0), true);
    let waits = cache.admit_wait(id(2), 50, Duration::from_secs(60));
    let unpins = async {
        tokio::task::yield_now().await;
        cache.pin(&id(0), false)
    };
    let (admitted, _) = tokio::join!(waits, unpins);
    assert_eq!(*admitted.unwrap(), 50);
}

#[tokio::test]
async fn eviction_waits_for_leases_as_long_as_it_is_to() {
    let cache = shared(100);
    let leases = [cache.admit(id(0), 60).unwrap(), cache.hold(&id(0)).unwrap()];
    let waits = tokio::spawn({
        let cache = cache.clone();
        async move { cache.evict_wait(&id(0), &BY, || true).await }
    });
    for lease in leases {
        tokio::task::yield_now().await;
        assert!(!waits.is_finished() && cache.peek(&id(0)).is_some());
        drop(lease);
    }
    assert_eq!(waits.await.unwrap(), Ok(Some(60)));
    assert!(cache.peek(&id(0)).is_none());
    let lease = cache.admit(id(1), 10).unwrap();
    let refused = cache.evict_wait(&id(1), &BY, || false).await.unwrap_err();
    assert!(matches!(refused, CacheError::InUse { holders: 1, .. }), "{refused}");
    drop(lease);
    cache.pin(&id(1), true);
    assert!(cache.evict_wait(&id(1), &BY, || true).await.is_err(), "nobody waits for a pin to be drawn");
}

#[test]
fn what_is_found_while_others_push_kernels_out_stays_until_it_is_let_go() {
    const ROUNDS: u64 = 20_000;
    let cache = DeviceCache::new(
        Budget { max_entries: 2, max_bytes: 100 },
        |_: &Arc<u64>| 1,
        Arc::new(ManualClock::default()),
    );
    let uses = |seed: u64| {
        let mut held = 0;
        for round in 0..ROUNDS {
            let key = id((round * 7 + seed) % 4);
            if let Some(lease) = cache.lease(&key) {
                held += 1;
                assert!(
                    cache.peek(&key).is_some_and(|value| Arc::ptr_eq(&value, &lease)),
                    "{key} went in use"
                );
            }
        }
        held
    };
    let brings = || {
        for round in 0..ROUNDS {
            // Refused where both places are in use; then nothing is closed behind it.
            let _ = cache.admit(id(round % 4), Arc::new(round));
        }
    };
    let found: u64 = std::thread::scope(|scope| {
        scope.spawn(brings);
        let users: Vec<_> = (0..2).map(|seed| scope.spawn(move || uses(seed))).collect();
        users.into_iter().map(|user| user.join().expect("what it checks holds")).sum()
    });
    let stats = cache.stats();
    assert_eq!((stats.hits, stats.hits + stats.misses, stats.leased), (found, 2 * ROUNDS, 0));
    assert_eq!(cache.take_hits().into_iter().map(|(_, hits)| hits).sum::<u64>(), found);
    assert_eq!(cache.take_hits(), []);
    assert!(cache.entries().iter().all(|entry| cache.lease(&entry.id).is_some()));
}

#[test]
fn a_thread_that_runs_passes_is_counted_where_it_comes_to_the_supply() {
    let waits = Arc::new(Counter::new());
    let (cache, _) = cache(1, 1);
    let asks = || assert_eq!(cache.peek(&id(0)), None);
    asks();
    std::thread::scope(|scope| {
        let counted = waits.clone();
        scope.spawn(move || {
            step_path::enter(counted);
            asks();
            // A seed's thread, which the lane starts.
            let inherited = step_path::counter();
            std::thread::scope(|inner| {
                inner.spawn(|| {
                    inherited.into_iter().for_each(step_path::enter);
                    asks();
                });
            });
        });
    });
    assert_eq!(waits.get(), 2);
}
