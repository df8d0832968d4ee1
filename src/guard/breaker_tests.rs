//! The breaker against a model of it, and its cases one by one.

use std::{sync::Arc, time::Duration};

use proptest::prelude::*;

use super::{Breaker, BreakerOpen, BreakerPolicy, BreakerState, Permit};
use crate::{
    clock::ManualClock,
    fault::{ErrorClass, Fault},
};

#[derive(Debug, thiserror::Error)]
#[error("it was {0}")]
struct Failed(ErrorClass);

impl Fault for Failed {
    fn class(&self) -> ErrorClass {
        self.0
    }

    fn code(&self) -> &'static str {
        "test"
    }
}

fn breaker(policy: BreakerPolicy) -> (Breaker, ManualClock) {
    let clock = ManualClock::default();
    (Breaker::new("urza", policy, Arc::new(clock.clone())), clock)
}

fn call(breaker: &Breaker, class: Option<ErrorClass>) -> Result<(), BreakerOpen> {
    let permit = breaker.admit()?;
    record(permit, class);
    Ok(())
}

fn record(permit: Permit<'_>, class: Option<ErrorClass>) {
    match class {
        None => permit.record::<Failed>(Ok(())),
        Some(class) => permit.record(Err(&Failed(class))),
    }
}

const DOWN: Option<ErrorClass> = Some(ErrorClass::Unavailable);

#[test]
fn five_failures_open_it_and_three_trials_close_it() {
    let (breaker, clock) = breaker(BreakerPolicy::default());
    (0..5).for_each(|_| call(&breaker, DOWN).unwrap());
    clock.advance(Duration::from_millis(59_999));
    let error = call(&breaker, None).unwrap_err();
    assert_eq!(error.code(), "origin.breaker_open");
    let text = error.to_string();
    assert!(text.contains("urza is not asked after 5 failures") && text.contains("again in 1 ms"), "{text}");
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

#[derive(Clone, Debug)]
enum Step {
    Begin,
    End(usize, Option<ErrorClass>),
    Lose(usize),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let outcome = prop_oneof![
        4 => Just(DOWN),
        4 => Just(None),
        1 => Just(Some(ErrorClass::NotFound)),
        1 => Just(Some(ErrorClass::Overloaded)),
    ];
    prop_oneof![
        5 => Just(Step::Begin),
        5 => (0usize..4, outcome).prop_map(|(n, o)| Step::End(n, o)),
        1 => (0usize..4).prop_map(Step::Lose),
        2 => (0u64..15).prop_map(Step::Wait),
    ]
}

/// The rules again: calls are remembered with the period they began in, and all else is counted from them.
#[derive(Debug)]
struct Model {
    policy: BreakerPolicy,
    now: u64,
    state: BreakerState,
    period: u64,
    until: u64,
    row: u32,
}

impl Model {
    fn enter(&mut self, state: BreakerState) {
        (self.state, self.row) = (state, 0);
        self.period += 1;
        self.until = self.now + self.policy.open_for.as_secs();
    }

    /// Whether a call may begin while the calls of these periods are under way.
    fn begin(&mut self, under_way: &[u64]) -> bool {
        if self.state == BreakerState::Open && self.now >= self.until {
            self.enter(BreakerState::HalfOpen);
        }
        let trials = under_way.iter().filter(|&&period| period == self.period).count();
        match self.state {
            BreakerState::Closed => true,
            BreakerState::Open => false,
            BreakerState::HalfOpen => trials < self.policy.trial_calls as usize,
        }
    }

    fn end(&mut self, period: u64, outcome: Option<ErrorClass>) {
        if period != self.period || outcome == Some(ErrorClass::Overloaded) {
            return;
        }
        let failed = outcome == DOWN;
        match self.state {
            BreakerState::Closed if failed => {
                self.row += 1;
                if self.row == self.policy.failure_threshold {
                    self.enter(BreakerState::Open);
                }
            }
            BreakerState::Closed => self.row = 0,
            BreakerState::Open => unreachable!("no call begins while it is open"),
            BreakerState::HalfOpen if failed => self.enter(BreakerState::Open),
            BreakerState::HalfOpen => {
                self.row += 1;
                if self.row == self.policy.success_threshold {
                    self.enter(BreakerState::Closed);
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn it_does_what_the_model_does(
        failure_threshold in 1u32..4,
        success_threshold in 1u32..4,
        trial_calls in 1u32..3,
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let open_for = Duration::from_secs(10);
        let policy = BreakerPolicy { failure_threshold, open_for, success_threshold, trial_calls };
        let (breaker, clock) = breaker(policy);
        let mut model = Model { policy, now: 0, state: BreakerState::Closed, period: 0, until: 0, row: 0 };
        let mut calls: Vec<(u64, Permit<'_>)> = Vec::new();
        for step in steps {
            match step {
                Step::Begin => {
                    let under_way: Vec<u64> = calls.iter().map(|(period, _)| *period).collect();
                    let permit = breaker.admit();
                    prop_assert_eq!(permit.is_ok(), model.begin(&under_way));
                    calls.extend(permit.ok().map(|permit| (model.period, permit)));
                }
                Step::End(n, outcome) if n < calls.len() => {
                    let (period, permit) = calls.swap_remove(n);
                    record(permit, outcome);
                    model.end(period, outcome);
                }
                Step::Lose(n) if n < calls.len() => drop(calls.swap_remove(n)),
                Step::Wait(seconds) => {
                    model.now += seconds;
                    clock.advance(Duration::from_secs(seconds));
                }
                Step::End(..) | Step::Lose(_) => {}
            }
            prop_assert_eq!(breaker.status().state, model.state);
        }
    }
}
