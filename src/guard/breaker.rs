//! A circuit breaker: stops asking what keeps failing, and finds out with a few trial calls when it is back.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{BreakerOpen, BreakerPolicy, BreakerState, BreakerStatus, OpenCause, window::Window};
use crate::{
    clock::{Clock, whole_ms},
    fault::{ErrorClass, Fault},
};

#[derive(Debug)]
enum Mode {
    Closed,
    Open { until: Instant },
    HalfOpen { trials: Trials },
}

/// The places for trial calls.
#[derive(Debug, Default)]
struct Trials {
    under_way: u32,
    successes: u32,
    /// Since when every place is taken.
    full_since: Option<Instant>,
}

#[derive(Debug)]
struct State {
    mode: Mode,
    /// When the mode began.
    since: Instant,
    /// Rises with every transition: a call counts only in the period it began in.
    period: u64,
    window: Window,
    /// Failures since the last answer, over all modes.
    failures: u32,
    /// Trials that failed since it was last closed.
    failed_trials: u32,
    cause: OpenCause,
    opened: u64,
    half_opened: u64,
    closed: u64,
    refused: u64,
    last_failure: Option<String>,
}

/// A circuit breaker for one dependency.
///
/// Closed, it opens after failures in a row, or where the policy says so by the share of failures or of slow
/// calls among the last ones. Open, it refuses; after a while it is half open and lets a few trial calls pass
/// at a time: successes in a row close it, one failure or slow answer opens it again. A trial whose permit is
/// dropped gives its place back, and where every place is taken for too long without an answer, it opens too,
/// so that it is never stuck.
///
/// Only [`ErrorClass::Unavailable`] counts as a failure. What the dependency answered with, "no such kernel"
/// included, shows that it is there and counts as a success; [`Overloaded`](ErrorClass::Overloaded),
/// [`Cancelled`](ErrorClass::Cancelled) and [`Bug`](ErrorClass::Bug) tell nothing and count as neither.
#[derive(Debug)]
pub struct Breaker {
    dependency: String,
    policy: BreakerPolicy,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

/// Leave for one call. What came of it must be told by [`record`](Permit::record); a permit that is dropped
/// without counts as neither success nor failure, and a trial's place is free again.
#[derive(Debug)]
#[must_use = "a dropped permit records nothing"]
pub struct Permit<'a> {
    breaker: &'a Breaker,
    period: u64,
    trial: bool,
    began: Instant,
}

impl Breaker {
    /// A closed breaker.
    pub fn new(dependency: impl Into<String>, policy: BreakerPolicy, clock: Arc<dyn Clock>) -> Self {
        let state = State {
            mode: Mode::Closed,
            since: clock.now(),
            period: 0,
            window: Window::new(policy.window),
            failures: 0,
            failed_trials: 0,
            cause: OpenCause::Failures { failures: 0 },
            opened: 0,
            half_opened: 0,
            closed: 0,
            refused: 0,
            last_failure: None,
        };
        Self { dependency: dependency.into(), policy, clock, state: Mutex::new(state) }
    }

    /// What it protects.
    pub fn dependency(&self) -> &str {
        &self.dependency
    }

    /// Asks leave for a call.
    ///
    /// # Errors
    /// [`BreakerOpen`] while it is open, and while all trials are under way.
    pub fn admit(&self) -> Result<Permit<'_>, BreakerOpen> {
        let now = self.clock.now();
        let mut state = self.lock();
        state.move_on(self, now);
        let places = self.policy.trial_calls.max(1);
        let (refused_for, trial) = match &mut state.mode {
            Mode::Closed => (None, false),
            Mode::Open { until } => (Some(until.saturating_duration_since(now)), false),
            Mode::HalfOpen { trials } if trials.under_way < places => {
                trials.under_way += 1;
                if trials.under_way == places {
                    trials.full_since = Some(now);
                }
                (None, true)
            }
            Mode::HalfOpen { .. } => (Some(Duration::ZERO), false),
        };
        if let Some(retry_in) = refused_for {
            state.refused += 1;
            return Err(self.open(&state, retry_in));
        }
        Ok(Permit { breaker: self, period: state.period, trial, began: now })
    }

    /// What a call would be refused with while it is open, for whoever wants no leave: once its time is up, nothing.
    pub fn refusal(&self) -> Option<BreakerOpen> {
        let (now, state) = (self.clock.now(), self.lock());
        match &state.mode {
            Mode::Open { until } if now < *until => Some(self.open(&state, until.duration_since(now))),
            _ => None,
        }
    }

    fn open(&self, state: &State, retry_in: Duration) -> BreakerOpen {
        BreakerOpen {
            dependency: self.dependency.clone(),
            cause: state.cause,
            last_failure: state.last_failure.clone().unwrap_or_default(),
            retry_in,
        }
    }

    /// What it does now and what it has done.
    pub fn status(&self) -> BreakerStatus {
        let now = self.clock.now();
        let state = self.lock();
        let (mode, retry_in, trials) = match &state.mode {
            Mode::Closed => (BreakerState::Closed, None, 0),
            Mode::Open { until } => (BreakerState::Open, Some(until.saturating_duration_since(now)), 0),
            Mode::HalfOpen { trials } => (BreakerState::HalfOpen, None, trials.under_way),
        };
        let shares = state.window.percent();
        BreakerStatus {
            dependency: self.dependency.clone(),
            state: mode,
            since_ms: whole_ms(now.saturating_duration_since(state.since)),
            cause: (mode != BreakerState::Closed).then(|| state.cause.to_string()),
            failures: state.failures,
            failure_percent: shares.map(|(failed, _)| failed),
            slow_percent: shares.map(|(_, slow)| slow),
            retry_in_ms: retry_in.map(whole_ms),
            trials,
            opened: state.opened,
            half_opened: state.half_opened,
            closed: state.closed,
            refused: state.refused,
            last_failure: state.last_failure.clone(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn enter(&mut self, mode: Mode, now: Instant) {
        (self.mode, self.since) = (mode, now);
        self.period += 1;
    }

    /// What time alone brings about: trials after the open time, and an end to trials without an answer.
    fn move_on(&mut self, breaker: &Breaker, now: Instant) {
        match &self.mode {
            Mode::Open { until } if now >= *until => {
                self.half_opened += 1;
                self.enter(Mode::HalfOpen { trials: Trials::default() }, now);
                tracing::info!(dependency = breaker.dependency, "breaker half open");
            }
            Mode::HalfOpen { trials: Trials { under_way, full_since: Some(since), .. } } => {
                let (trials, waited) = (*under_way, now.saturating_duration_since(*since));
                if waited >= breaker.policy.max_wait_in_half_open {
                    self.failed_trials = self.failed_trials.saturating_add(1);
                    self.open(breaker, OpenCause::LostTrials { trials, waited }, now);
                }
            }
            _ => {}
        }
    }

    fn open(&mut self, breaker: &Breaker, cause: OpenCause, now: Instant) {
        let open_for = breaker.policy.open_time(self.failed_trials);
        self.opened += 1;
        self.cause = cause;
        // An Instant holds centuries more than any setting, but the sum's overflow would be a panic.
        let until = now.checked_add(open_for).unwrap_or(now);
        self.enter(Mode::Open { until }, now);
        tracing::warn!(
            dependency = breaker.dependency,
            %cause,
            open_for_ms = whole_ms(open_for),
            last_failure = self.last_failure,
            "breaker open"
        );
    }

    fn succeed(&mut self, breaker: &Breaker, took: Duration, now: Instant) {
        let slow = breaker.policy.window.is_slow(took);
        self.failures = 0;
        match &mut self.mode {
            Mode::Closed => {
                if let Some(cause) = self.window.push(false, slow) {
                    self.open(breaker, cause, now);
                }
            }
            Mode::Open { .. } => {}
            Mode::HalfOpen { .. } if slow => {
                self.failed_trials = self.failed_trials.saturating_add(1);
                let slow_call = breaker.policy.window.slow_call;
                self.open(breaker, OpenCause::SlowTrial { took, slow_call }, now);
            }
            Mode::HalfOpen { trials } => {
                trials.successes += 1;
                if trials.successes < breaker.policy.success_threshold {
                    return;
                }
                self.closed += 1;
                self.failed_trials = 0;
                self.window.clear();
                self.enter(Mode::Closed, now);
                tracing::info!(dependency = breaker.dependency, "breaker closed");
            }
        }
    }

    fn fail(&mut self, breaker: &Breaker, text: String, took: Duration, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        self.last_failure = Some(text);
        let in_a_row = OpenCause::Failures { failures: self.failures };
        match self.mode {
            Mode::Closed => {
                let share = self.window.push(true, breaker.policy.window.is_slow(took));
                if self.failures >= breaker.policy.failure_threshold {
                    self.open(breaker, in_a_row, now);
                } else if let Some(cause) = share {
                    self.open(breaker, cause, now);
                }
            }
            Mode::Open { .. } => {}
            Mode::HalfOpen { .. } => {
                self.failed_trials = self.failed_trials.saturating_add(1);
                self.open(breaker, in_a_row, now);
            }
        }
    }
}

impl Permit<'_> {
    /// Tells what came of the call: nothing wrong, or an error's class and text.
    pub fn record<E: Fault>(self, result: Result<(), &E>) {
        let breaker = self.breaker;
        let now = breaker.clock.now();
        let took = now.saturating_duration_since(self.began);
        // Its text is written before the lock is taken: it is foreign code.
        let failure = match result.map_err(|error| (error.class(), error)) {
            Err((ErrorClass::Unavailable, error)) => Some(error.to_string()),
            Err((ErrorClass::Overloaded | ErrorClass::Cancelled | ErrorClass::Bug, _)) => return,
            Ok(()) | Err((ErrorClass::Invalid | ErrorClass::NotFound | ErrorClass::Corrupt, _)) => None,
        };
        let mut state = breaker.lock();
        if state.period != self.period {
            return;
        }
        match failure {
            Some(text) => state.fail(breaker, text, took, now),
            None => state.succeed(breaker, took, now),
        }
        // Dropped after this, `self` gives a trial's place back where the period is still the same.
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if !self.trial {
            return;
        }
        let mut state = self.breaker.lock();
        if state.period == self.period
            && let Mode::HalfOpen { trials } = &mut state.mode
        {
            trials.under_way -= 1;
            trials.full_since = None;
        }
    }
}
