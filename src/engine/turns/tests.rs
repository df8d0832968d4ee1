//! Turns with threads: places, lines, panics, and those who give up.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::{Occupancy, Turns, TurnsSettings};

fn turns(places: usize) -> Arc<Turns> {
    Turns::new(TurnsSettings { places, quantum: Duration::from_secs(3600), weights: Vec::new() })
}

fn never() -> bool {
    false
}

/// Waits, without sleeping, until so many passes wait.
fn until_waiting(turns: &Turns, count: u64) {
    let patience = Instant::now() + Duration::from_secs(60);
    while turns.occupancy().waiting != count {
        assert!(Instant::now() < patience, "it never came to {count}: {:?}", turns.occupancy());
        thread::yield_now();
    }
}

#[test]
fn while_there_is_a_place_nobody_waits() {
    let turns = turns(2);
    let (mut one, mut two) = (turns.join(1), turns.join(1));
    let (first, second) = (one.begin(never).unwrap(), two.begin(never).unwrap());
    assert_eq!(turns.occupancy(), Occupancy { places: 2, running: 2, waiting: 0 });
    let used = first.end(true);
    assert_eq!(used.waited, Duration::ZERO);
    assert!(used.ended >= used.began);
    drop(second);
    assert_eq!(turns.occupancy().running, 0);
}

#[test]
fn no_more_run_than_there_are_places_and_all_come_to_run() {
    for (places, users, may_run) in [(1, 1, 1), (2, 1, 2), (3, 1, 3), (1, 3, 2), (2, 3, 4)] {
        let turns = turns(places);
        let (running, most, done) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for session in 0..6 {
                let (turns, running, most, done) = (&turns, &running, &most, &done);
                scope.spawn(move || {
                    let mut entrant = turns.join(session % users);
                    for pass in 0..300 {
                        let turn = entrant.begin(never).unwrap();
                        most.fetch_max(1 + running.fetch_add(1, Ordering::SeqCst), Ordering::SeqCst);
                        if pass % 7 == 0 {
                            thread::yield_now();
                        }
                        running.fetch_sub(1, Ordering::SeqCst);
                        turn.end(pass % 3 != 0);
                        if pass % 11 == 0 {
                            entrant.withdraw();
                        }
                        done.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(done.into_inner(), 6 * 300);
        assert!(most.into_inner() <= may_run);
        assert_eq!(turns.occupancy(), Occupancy { places: places as u64, running: 0, waiting: 0 });
    }
}

#[test]
fn a_session_that_has_more_keeps_its_place_for_a_quantum_and_then_waits() {
    let turns = Turns::new(TurnsSettings { places: 1, quantum: Duration::ZERO, weights: Vec::new() });
    let mut first = turns.join(1);
    let order = std::sync::Mutex::new(Vec::new());
    thread::scope(|scope| {
        let turn = first.begin(never).unwrap();
        scope.spawn(|| {
            let mut second = turns.join(1);
            let turn = second.begin(never).unwrap();
            order.lock().unwrap().push("second");
            turn.end(false);
        });
        until_waiting(&turns, 1);
        // Its quantum is over, so that the other comes first although it has more.
        turn.end(true);
        let turn = first.begin(never).unwrap();
        order.lock().unwrap().push("first");
        turn.end(false);
    });
    assert_eq!(order.into_inner().unwrap(), ["second", "first"]);

    let turns = self::turns(1);
    let mut first = turns.join(1);
    thread::scope(|scope| {
        let turn = first.begin(never).unwrap();
        scope.spawn(|| turns.join(1).begin(never).unwrap().end(false));
        until_waiting(&turns, 1);
        turn.end(true);
        assert_eq!(
            turns.occupancy(),
            Occupancy { places: 1, running: 1, waiting: 1 },
            "kept for what is next"
        );
        assert_eq!(first.begin(never).unwrap().end(false).waited, Duration::ZERO);
    });
}

#[test]
fn what_is_kept_for_a_pass_that_does_not_come_is_given_on() {
    let turns = turns(1);
    let mut first = turns.join(1);
    thread::scope(|scope| {
        let turn = first.begin(never).unwrap();
        let other = scope.spawn(|| {
            turns.join(1).begin(never).unwrap().end(false);
        });
        until_waiting(&turns, 1);
        turn.end(true);
        first.withdraw();
        other.join().unwrap();
    });
    assert_eq!(turns.occupancy().running, 0);
    first.withdraw();
    assert_eq!(turns.occupancy().running, 0, "once is enough");
}

#[test]
fn a_panic_gives_the_place_back() {
    let turns = turns(1);
    let mut entrant = turns.join(1);
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let _turn = entrant.begin(never).unwrap();
        panic!("in the middle of a pass");
    }));
    assert!(panicked.is_err());
    assert_eq!(turns.occupancy().running, 0);
    assert!(entrant.begin(never).is_some());
}

#[test]
fn who_gives_up_or_leaves_stands_in_no_line() {
    let turns = turns(1);
    let mut first = turns.join(1);
    let gone = AtomicBool::new(false);
    thread::scope(|scope| {
        let _turn = first.begin(never).unwrap();
        let waiting = scope.spawn(|| turns.join(1).begin(|| gone.load(Ordering::SeqCst)).is_none());
        until_waiting(&turns, 1);
        gone.store(true, Ordering::SeqCst);
        assert!(waiting.join().unwrap(), "the place is taken all the while");
        assert_eq!(turns.occupancy(), Occupancy { places: 1, running: 1, waiting: 0 });
    });
    // One that keeps its place for a pass to come, and ends instead.
    thread::scope(|scope| {
        let turn = first.begin(never).unwrap();
        let other = scope.spawn(|| turns.join(1).begin(never).unwrap().end(false));
        until_waiting(&turns, 1);
        turn.end(true);
        drop(first);
        other.join().unwrap();
    });
    assert_eq!(turns.occupancy().running, 0);
}

#[test]
fn a_user_without_a_place_runs_beside_those_that_have_one() {
    let turns = turns(1);
    let (mut first, mut other, mut third) = (turns.join(1), turns.join(2), turns.join(3));
    // Taken without a decision, and none is left.
    let long = first.begin(never).unwrap();
    let beside = other.begin(never).unwrap();
    assert_eq!(turns.occupancy(), Occupancy { places: 1, running: 2, waiting: 0 });
    // One more of a user who has a place, and more than twice as many as there are places, wait.
    let mut own = turns.join(2);
    assert!(own.begin(|| true).is_none());
    assert!(third.begin(|| true).is_none());
    beside.end(false);
    // Whose session has gone is not taken for one who has a place.
    drop(own);
    let beside = third.begin(never).unwrap();
    long.end(false);
    beside.end(false);
    assert_eq!(turns.occupancy().running, 0);
}

#[test]
fn who_stepped_back_from_a_place_that_was_kept_has_none() {
    let turns = turns(1);
    let (mut first, mut other) = (turns.join(1), turns.join(2));
    let long = first.begin(never).unwrap();
    thread::scope(|scope| {
        let turn = other.begin(never).unwrap();
        let waits = scope.spawn(|| turns.join(2).begin(never).unwrap().end(false));
        until_waiting(&turns, 1);
        turn.end(true);
        other.withdraw();
        waits.join().unwrap();
        other.begin(never).unwrap().end(false);
    });
    long.end(false);
    assert_eq!(turns.occupancy().running, 0);
}

#[test]
fn one_user_with_ten_sessions_gets_no_more_than_another_with_one() {
    let turns = Turns::new(TurnsSettings { places: 1, quantum: Duration::ZERO, weights: Vec::new() });
    let (many, one) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let is_over = AtomicBool::new(false);
    // Passes that are as long as they are measured to be: until the clock has gone on by so much.
    let pass = || {
        let began = Instant::now();
        while began.elapsed() < Duration::from_micros(50) {
            std::hint::spin_loop();
        }
    };
    let (mut gate, mut beside) = (turns.join(0), turns.join(3));
    let closed = [gate.begin(never).unwrap(), beside.begin(never).unwrap()];
    thread::scope(|scope| {
        for session in 0..11 {
            let (turns, is_over, pass) = (&turns, &is_over, &pass);
            let (uid, time) = if session < 10 { (1, &many) } else { (2, &one) };
            scope.spawn(move || {
                let mut entrant = turns.join(uid);
                while !is_over.load(Ordering::SeqCst) {
                    let turn = entrant.begin(never).unwrap();
                    pass();
                    // Always with the next pass at hand: both users want all there is.
                    let used = turn.end(true);
                    let sum = time.fetch_add((used.ended - used.began).as_nanos() as usize, Ordering::SeqCst);
                    if sum > 200_000_000 {
                        is_over.store(true, Ordering::SeqCst);
                    }
                }
                entrant.withdraw();
            });
        }
        until_waiting(&turns, 11);
        for turn in closed {
            turn.end(false);
        }
    });
    let (many, one) = (many.into_inner() as f64, one.into_inner() as f64);
    // Whoever was first to the mark stops all; what is measured beyond is the passes that were still in line then.
    assert!(one / (many + one) >= 0.4, "{one} ns of {many} and {one}");
}
