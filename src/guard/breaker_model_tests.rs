//! The breaker against a model of it, over random schedules of calls that begin, end, get lost and take time.

use std::time::Duration;

use proptest::prelude::*;

use super::{
    BreakerPolicy, BreakerState, Permit, WindowPolicy,
    breaker_tests::{DOWN, breaker, record},
};
use crate::fault::ErrorClass;

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
        6 => Just(None),
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

fn policy() -> impl Strategy<Value = BreakerPolicy> {
    let rates = (prop_oneof![Just(0u32), 20u32..=100], prop_oneof![Just(0u32), 20u32..=100]);
    let window = (1u32..8, 1u32..10, rates, 0u64..6);
    (1u32..6, 1u32..4, 1u32..4, 0u64..50, 1u64..25, window).prop_map(
        |(failures, successes, trials, max_open, max_wait, (size, minimum_calls, rates, slow))| {
            BreakerPolicy {
                failure_threshold: failures,
                open_for: Duration::from_secs(10),
                max_open_for: Duration::from_secs(max_open),
                success_threshold: successes,
                trial_calls: trials,
                max_wait_in_half_open: Duration::from_secs(max_wait),
                window: WindowPolicy {
                    size,
                    minimum_calls,
                    failure_rate: rates.0,
                    slow_call_rate: rates.1,
                    slow_call: Duration::from_secs(slow),
                },
            }
        },
    )
}

/// A call under way.
#[derive(Clone, Copy, Debug)]
struct Call {
    period: usize,
    began: u64,
}

/// What happened in one period: it began, calls ended in it.
#[derive(Debug)]
struct Period {
    state: BreakerState,
    began: u64,
    until: u64,
    /// Each answer or failure: failed, slow.
    ended: Vec<(bool, bool)>,
    /// When the last place for a trial was taken.
    full: u64,
}

/// The rules again, written over the whole history: nothing is counted along, all is looked up afresh.
#[derive(Debug)]
struct Model {
    policy: BreakerPolicy,
    now: u64,
    periods: Vec<Period>,
}

impl Model {
    fn new(policy: BreakerPolicy) -> Self {
        let mut model = Self { policy, now: 0, periods: Vec::new() };
        model.enter(BreakerState::Closed);
        model
    }

    fn state(&self) -> BreakerState {
        self.periods.last().unwrap().state
    }

    fn enter(&mut self, state: BreakerState) {
        let (mut until, began) = (0, self.now);
        if state == BreakerState::Open {
            // Every half-open period since it was last closed ended in a failed trial.
            let since_closed = self.periods.iter().rev().take_while(|p| p.state != BreakerState::Closed);
            let mut open_for = self.policy.open_for.as_secs();
            for _ in since_closed.filter(|p| p.state == BreakerState::HalfOpen) {
                let most = self.policy.max_open_for.as_secs().max(self.policy.open_for.as_secs());
                open_for = (open_for * 2).min(most);
            }
            until = began + open_for;
        }
        self.periods.push(Period { state, began, until, ended: Vec::new(), full: began });
    }

    /// Whether a call may begin while these are under way.
    fn begin(&mut self, under_way: &[Call]) -> bool {
        let of = |period: usize| under_way.iter().filter(|call| call.period == period).count();
        let places = self.policy.trial_calls as usize;
        let here = self.periods.len() - 1;
        let period = &self.periods[here];
        match period.state {
            BreakerState::Open if self.now >= period.until => self.enter(BreakerState::HalfOpen),
            BreakerState::HalfOpen
                if of(here) == places
                    && self.now - period.full >= self.policy.max_wait_in_half_open.as_secs() =>
            {
                self.enter(BreakerState::Open);
            }
            _ => {}
        }
        let here = self.periods.len() - 1;
        match self.periods[here].state {
            BreakerState::Closed => true,
            BreakerState::Open => false,
            BreakerState::HalfOpen if of(here) == places => false,
            BreakerState::HalfOpen => {
                if of(here) + 1 == places {
                    self.periods[here].full = self.now;
                }
                true
            }
        }
    }

    fn end(&mut self, call: Call, outcome: Option<ErrorClass>) {
        let here = self.periods.len() - 1;
        if call.period != here || outcome == Some(ErrorClass::Overloaded) {
            return;
        }
        let window = self.policy.window;
        let slow = window.slow_call_rate > 0 && self.now - call.began > window.slow_call.as_secs();
        let failed = outcome == DOWN;
        let period = &mut self.periods[here];
        period.ended.push((failed, slow));
        let row = |good: &dyn Fn(&(bool, bool)) -> bool| {
            period.ended.iter().rev().take_while(|call| good(call)).count() as u32
        };
        let (failures, successes) = (row(&|call| call.0), row(&|call| !call.0));
        match period.state {
            BreakerState::Open => unreachable!("no call begins while it is open"),
            BreakerState::HalfOpen if failed || slow => self.enter(BreakerState::Open),
            BreakerState::HalfOpen if successes >= self.policy.success_threshold => {
                self.enter(BreakerState::Closed);
            }
            BreakerState::HalfOpen => {}
            BreakerState::Closed => {
                let last: Vec<_> = period.ended.iter().rev().take(window.size as usize).collect();
                let enough = last.len() as u32 >= window.minimum_calls.min(window.size);
                let share = |part: usize, rate: u32| {
                    rate > 0 && enough && part as f64 >= f64::from(rate) / 100.0 * last.len() as f64
                };
                let failed = last.iter().filter(|call| call.0).count();
                let slow = last.iter().filter(|call| call.1).count();
                if failures >= self.policy.failure_threshold
                    || share(failed, window.failure_rate)
                    || share(slow, window.slow_call_rate)
                {
                    self.enter(BreakerState::Open);
                }
            }
        }
    }

    fn count(&self, state: BreakerState) -> u64 {
        self.periods.iter().skip(1).filter(|period| period.state == state).count() as u64
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn it_does_what_the_model_does(policy in policy(), steps in prop::collection::vec(step(), 1..250)) {
        let (breaker, clock) = breaker(policy);
        let mut model = Model::new(policy);
        let mut calls: Vec<(Call, Permit<'_>)> = Vec::new();
        let mut refused = 0;
        for step in steps {
            match step {
                Step::Begin => {
                    let under_way: Vec<Call> = calls.iter().map(|(call, _)| *call).collect();
                    let permit = breaker.admit();
                    prop_assert_eq!(permit.is_ok(), model.begin(&under_way));
                    refused += u64::from(permit.is_err());
                    let call = Call { period: model.periods.len() - 1, began: model.now };
                    calls.extend(permit.ok().map(|permit| (call, permit)));
                }
                Step::End(n, outcome) if n < calls.len() => {
                    let (call, permit) = calls.swap_remove(n);
                    record(permit, outcome);
                    model.end(call, outcome);
                }
                Step::Lose(n) if n < calls.len() => drop(calls.swap_remove(n)),
                Step::Wait(seconds) => {
                    model.now += seconds;
                    clock.advance(Duration::from_secs(seconds));
                }
                Step::End(..) | Step::Lose(_) => {}
            }
            let status = breaker.status();
            let last = model.periods.last().unwrap();
            prop_assert_eq!(status.state, model.state());
            prop_assert_eq!(status.since_ms, (model.now - last.began) * 1000);
            let left = (last.state == BreakerState::Open).then(|| last.until.saturating_sub(model.now) * 1000);
            prop_assert_eq!(status.retry_in_ms, left);
            prop_assert_eq!(
                (status.opened, status.half_opened, status.closed, status.refused),
                (model.count(BreakerState::Open), model.count(BreakerState::HalfOpen), model.count(BreakerState::Closed), refused)
            );
        }
        // Whatever has happened, it is not stuck: without any answer, and with the lost calls still held, it
        // lets a call pass again within the longest open time and the longest wait for trials.
        let longest = policy.max_open_for.max(policy.open_for) + policy.max_wait_in_half_open;
        clock.advance(longest);
        let passes = breaker.admit().is_ok() || {
            clock.advance(longest);
            breaker.admit().is_ok()
        };
        prop_assert!(passes, "{:?}", breaker.status());
    }
}
