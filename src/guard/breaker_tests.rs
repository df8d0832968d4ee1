//! The breaker's cases one by one.

use std::{sync::Arc, time::Duration};

use super::{Breaker, BreakerOpen, BreakerPolicy, BreakerState, Permit, WindowPolicy};
use crate::{
    clock::ManualClock,
    fault::{ErrorClass, Fault},
};

#[derive(Debug, thiserror::Error)]
#[error("it was {0}")]
pub(super) struct Failed(ErrorClass);

impl Fault for Failed {
    fn class(&self) -> ErrorClass {
        self.0
    }

    fn code(&self) -> &'static str {
        "test"
    }
}

pub(super) fn breaker(policy: BreakerPolicy) -> (Breaker, ManualClock) {
    let clock = ManualClock::default();
    (Breaker::new("urza", policy, Arc::new(clock.clone())), clock)
}

fn call(breaker: &Breaker, class: Option<ErrorClass>) -> Result<(), BreakerOpen> {
    let permit = breaker.admit()?;
    record(permit, class);
    Ok(())
}

pub(super) fn record(permit: Permit<'_>, class: Option<ErrorClass>) {
    match class {
        None => permit.record::<Failed>(Ok(())),
        Some(class) => permit.record(Err(&Failed(class))),
    }
}

pub(super) const DOWN: Option<ErrorClass> = Some(ErrorClass::Unavailable);

#[test]
fn five_failures_open_it_and_three_trials_close_it() {
    let (breaker, clock) = breaker(BreakerPolicy::default());
    (0..5).for_each(|_| call(&breaker, DOWN).unwrap());
    clock.advance(Duration::from_millis(59_999));
    let error = call(&breaker, None).unwrap_err();
    assert_eq!(error.code(), "origin.breaker_open");
    let text = error.to_string();
    assert!(
        text.contains("urza is not asked after 5 failures in a row (the last failure: it was unavailable)")
            && text.contains("again in 1 ms"),
        "{text}"
    );
    assert_eq!(breaker.status().retry_in_ms, Some(1));

    clock.advance(Duration::from_millis(1));
    let trial = breaker.admit().unwrap();
    let busy = breaker.admit().unwrap_err();
    assert!(matches!(busy, BreakerOpen { retry_in: Duration::ZERO, .. }));
    assert!(busy.to_string().contains("a trial call is under way"), "{busy}");
    record(trial, None);
    call(&breaker, None).unwrap();
    assert_eq!(breaker.status().state, BreakerState::HalfOpen);
    call(&breaker, None).unwrap();
    let status = breaker.status();
    assert_eq!((status.state, status.failures, status.refused), (BreakerState::Closed, 0, 2));
    assert_eq!((status.opened, status.half_opened, status.closed), (1, 1, 1));
    assert_eq!(status.last_failure.as_deref(), Some("it was unavailable"));
}

#[test]
fn a_failed_trial_opens_it_again() {
    let (breaker, clock) = breaker(BreakerPolicy::default());
    (0..5).for_each(|_| call(&breaker, DOWN).unwrap());
    clock.advance(Duration::from_secs(60));
    call(&breaker, None).unwrap();
    call(&breaker, DOWN).unwrap();
    assert_eq!(breaker.status().retry_in_ms, Some(60_000));
    assert_eq!(breaker.status().opened, 2);
}

#[test]
fn answers_that_are_errors_do_not_open_it() {
    let (breaker, _) = breaker(BreakerPolicy::default());
    let answers = [ErrorClass::NotFound, ErrorClass::Invalid, ErrorClass::Corrupt];
    let silent = [ErrorClass::Overloaded, ErrorClass::Cancelled, ErrorClass::Bug];
    for class in answers.into_iter().chain(silent) {
        (0..10).for_each(|_| call(&breaker, Some(class)).unwrap());
    }
    // An answer ends a row of failures, what tells nothing does not.
    (0..4).for_each(|_| call(&breaker, DOWN).unwrap());
    call(&breaker, Some(ErrorClass::NotFound)).unwrap();
    (0..4).for_each(|_| call(&breaker, DOWN).unwrap());
    call(&breaker, Some(ErrorClass::Cancelled)).unwrap();
    assert_eq!(breaker.status().state, BreakerState::Closed);
    call(&breaker, DOWN).unwrap();
    assert_eq!(breaker.status().state, BreakerState::Open);
}

#[test]
fn a_lost_trial_gives_its_place_back() {
    let (breaker, clock) = breaker(BreakerPolicy::default());
    (0..5).for_each(|_| call(&breaker, DOWN).unwrap());
    clock.advance(Duration::from_secs(60));
    for _ in 0..100 {
        drop(breaker.admit().unwrap());
    }
    (0..3).for_each(|_| call(&breaker, None).unwrap());
    assert_eq!(breaker.status().state, BreakerState::Closed);
}

#[test]
fn a_late_result_of_an_earlier_period_counts_for_nothing() {
    let (breaker, clock) = breaker(BreakerPolicy::default());
    let (late, later) = (breaker.admit().unwrap(), breaker.admit().unwrap());
    (0..5).for_each(|_| call(&breaker, DOWN).unwrap());
    clock.advance(Duration::from_secs(60));
    call(&breaker, None).unwrap();
    record(late, DOWN);
    record(later, None);
    call(&breaker, None).unwrap();
    assert_eq!(breaker.status().state, BreakerState::HalfOpen);
    call(&breaker, None).unwrap();
    assert_eq!(breaker.status().state, BreakerState::Closed);
}

fn wait(clock: &ManualClock, ms: u64) {
    clock.advance(Duration::from_millis(ms));
}

/// A call that takes so long.
fn long_call(breaker: &Breaker, clock: &ManualClock, ms: u64, class: Option<ErrorClass>) {
    let permit = breaker.admit().unwrap();
    wait(clock, ms);
    record(permit, class);
}

fn by_window(failure_rate: u32, slow_call_rate: u32) -> BreakerPolicy {
    let slow_call = Duration::from_millis(100);
    let window = WindowPolicy { size: 10, minimum_calls: 5, failure_rate, slow_call_rate, slow_call };
    BreakerPolicy { failure_threshold: 1000, window, ..BreakerPolicy::default() }
}

#[test]
fn a_share_of_failures_opens_it_once_there_are_enough_calls() {
    let (breaker, _) = breaker(by_window(50, 0));
    for class in [DOWN, None, DOWN, Some(ErrorClass::Overloaded)] {
        call(&breaker, class).unwrap();
    }
    call(&breaker, None).unwrap();
    assert_eq!((breaker.status().state, breaker.status().failure_percent), (BreakerState::Closed, None));
    call(&breaker, None).unwrap();
    assert_eq!(breaker.status().failure_percent, Some(40));
    call(&breaker, DOWN).unwrap();
    let refused = breaker.admit().unwrap_err().to_string();
    assert!(refused.contains("as 50 % of its last 6 calls failed (the last failure: it was"), "{refused}");
}

#[test]
fn old_calls_leave_the_window() {
    let (breaker, _) = breaker(by_window(50, 0));
    // Four of ten, and then the ten good ones that push them out.
    (0..6).for_each(|_| call(&breaker, None).unwrap());
    (0..4).for_each(|_| call(&breaker, DOWN).unwrap());
    assert_eq!(breaker.status().failure_percent, Some(40));
    (0..6).for_each(|_| call(&breaker, None).unwrap());
    assert_eq!(breaker.status().failure_percent, Some(40));
    (0..4).for_each(|_| call(&breaker, None).unwrap());
    assert_eq!(breaker.status().failure_percent, Some(0));
}

#[test]
fn slow_answers_open_it_and_a_slow_trial_opens_it_again() {
    let (breaker, clock) = breaker(by_window(0, 80));
    long_call(&breaker, &clock, 100, None);
    (0..4).for_each(|_| long_call(&breaker, &clock, 101, Some(ErrorClass::NotFound)));
    let refused = breaker.admit().unwrap_err().to_string();
    assert!(
        refused.contains("urza is not asked as 80 % of its last 5 calls took longer than 100 ms, it"),
        "{refused}"
    );
    wait(&clock, 60_000);
    long_call(&breaker, &clock, 700, None);
    let refused = breaker.admit().unwrap_err().to_string();
    assert!(refused.contains("as a trial call took 700 ms, longer than 100 ms"), "{refused}");
    wait(&clock, 60_000);
    (0..3).for_each(|_| long_call(&breaker, &clock, 100, None));
    let status = breaker.status();
    assert_eq!((status.state, status.slow_percent, status.cause), (BreakerState::Closed, None, None));
}

#[test]
fn each_failed_trial_doubles_the_wait_up_to_the_most() {
    let policy = BreakerPolicy { max_open_for: Duration::from_secs(300), ..BreakerPolicy::default() };
    let (breaker, clock) = breaker(policy);
    (0..5).for_each(|_| call(&breaker, DOWN).unwrap());
    for seconds in [60, 120, 240, 300, 300] {
        assert_eq!(breaker.status().retry_in_ms, Some(seconds * 1000));
        wait(&clock, seconds * 1000);
        call(&breaker, DOWN).unwrap();
    }
    wait(&clock, 300_000);
    (0..3).for_each(|_| call(&breaker, None).unwrap());
    (0..5).for_each(|_| call(&breaker, DOWN).unwrap());
    assert_eq!(breaker.status().retry_in_ms, Some(60_000));
}

#[test]
fn trials_that_never_answer_do_not_hold_it_half_open() {
    let (breaker, clock) = breaker(BreakerPolicy::default());
    (0..5).for_each(|_| call(&breaker, DOWN).unwrap());
    wait(&clock, 60_000);
    let hangs = breaker.admit().unwrap();
    wait(&clock, 59_999);
    assert!(breaker.admit().unwrap_err().retry_in.is_zero());
    assert_eq!(breaker.status().trials, 1);
    wait(&clock, 1);
    let refused = breaker.admit().unwrap_err().to_string();
    assert!(refused.contains("as 1 trial calls gave no answer in 60000 ms"), "{refused}");
    wait(&clock, 60_000);
    let next = breaker.admit().unwrap();
    drop(hangs);
    assert_eq!(breaker.status().trials, 1, "a call of an earlier period frees no place of this one");
    record(next, None);
    assert_eq!(breaker.status().state, BreakerState::HalfOpen);
}
