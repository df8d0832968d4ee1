//! A circuit breaker: stops asking what keeps failing, and finds out with a few trial calls when it is back.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::{
    clock::Clock,
    config,
    fault::{ErrorClass, Fault},
};

/// When a breaker opens, for how long, and what closes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerPolicy {
    /// Failures in a row that open it, at least 1.
    pub failure_threshold: u32,
    /// How long it stays open.
    pub open_for: Duration,
    /// Successes in a row that close it again, at least 1.
    pub success_threshold: u32,
    /// Trial calls at a time, at least 1.
    pub trial_calls: u32,
}

impl Default for BreakerPolicy {
    /// 5 failures, 60 s, 3 successes, 1 trial at a time.
    fn default() -> Self {
        Self { failure_threshold: 5, open_for: Duration::from_secs(60), success_threshold: 3, trial_calls: 1 }
    }
}

impl From<&config::OriginBreaker> for BreakerPolicy {
    fn from(settings: &config::OriginBreaker) -> Self {
        Self {
            failure_threshold: settings.failure_threshold,
            open_for: settings.open_for,
            success_threshold: settings.success_threshold,
            trial_calls: settings.trial_calls,
        }
    }
}

/// A dependency has failed so often that it is not asked for a while.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{dependency} is not asked after {failures} failures in a row (the last: {last_failure}), {}", next_trial(*.retry_in))]
pub struct BreakerOpen {
    /// Which dependency.
    pub dependency: String,
    /// How many failures opened it.
    pub failures: u32,
    /// The last one's text.
    pub last_failure: String,
    /// When the next call may pass; zero while trial calls are under way.
    pub retry_in: Duration,
}

fn next_trial(retry_in: Duration) -> String {
    if retry_in.is_zero() {
        return "a trial call is under way, ask again when it is done".to_owned();
    }
    format!("it will be tried again in {} ms", retry_in.as_millis())
}

impl Fault for BreakerOpen {
    fn class(&self) -> ErrorClass {
        ErrorClass::Unavailable
    }

    fn code(&self) -> &'static str {
        "origin.breaker_open"
    }
}

/// What a breaker does with the next call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BreakerState {
    /// Lets it pass.
    Closed,
    /// Refuses it.
    Open,
    /// Lets it pass where a trial is free.
    HalfOpen,
}

/// A breaker seen from outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BreakerStatus {
    /// What it protects.
    pub dependency: String,
    /// What it does now.
    pub state: BreakerState,
    /// Failures in a row until now.
    pub failures: u32,
    /// Milliseconds until a trial call may pass, while it is open.
    pub retry_in_ms: Option<u64>,
    /// How often it has opened.
    pub opened: u64,
    /// How often it has let trials pass.
    pub half_opened: u64,
    /// How often it has closed again.
    pub closed: u64,
    /// Calls it refused.
    pub refused: u64,
    /// What the last failure said.
    pub last_failure: Option<String>,
}

#[derive(Debug)]
enum Mode {
    Closed { failures: u32 },
    Open { until: Instant },
    HalfOpen { trials: u32, successes: u32 },
}

#[derive(Debug)]
struct State {
    mode: Mode,
    /// Rises with every transition: a call counts only in the period it began in.
    period: u64,
    opened: u64,
    half_opened: u64,
    closed: u64,
    refused: u64,
    failures: u32,
    last_failure: Option<String>,
}

/// A circuit breaker for one dependency.
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
}

impl Breaker {
    /// A closed breaker.
    pub fn new(dependency: impl Into<String>, policy: BreakerPolicy, clock: Arc<dyn Clock>) -> Self {
        let state = State {
            mode: Mode::Closed { failures: 0 },
            period: 0,
            opened: 0,
            half_opened: 0,
            closed: 0,
            refused: 0,
            failures: 0,
            last_failure: None,
        };
        Self { dependency: dependency.into(), policy, clock, state: Mutex::new(state) }
    }

    /// Asks leave for a call.
    ///
    /// # Errors
    /// [`BreakerOpen`] while it is open, and while all trials are under way.
    pub fn admit(&self) -> Result<Permit<'_>, BreakerOpen> {
        let now = self.clock.now();
        let mut state = self.lock();
        if let Mode::Open { until } = state.mode
            && now >= until
        {
            state.enter(Mode::HalfOpen { trials: 0, successes: 0 });
            state.half_opened += 1;
            tracing::info!(dependency = self.dependency, "breaker half open");
        }
        let trials = self.policy.trial_calls.max(1);
        let retry_in = match &mut state.mode {
            Mode::Closed { .. } => None,
            Mode::Open { until } => Some(*until - now),
            Mode::HalfOpen { trials: under_way, .. } if *under_way < trials => {
                *under_way += 1;
                None
            }
            Mode::HalfOpen { .. } => Some(Duration::ZERO),
        };
        if let Some(retry_in) = retry_in {
            state.refused += 1;
            return Err(BreakerOpen {
                dependency: self.dependency.clone(),
                failures: state.failures,
                last_failure: state.last_failure.clone().unwrap_or_default(),
                retry_in,
            });
        }
        let trial = matches!(state.mode, Mode::HalfOpen { .. });
        Ok(Permit { breaker: self, period: state.period, trial })
    }

    /// What it does now and what it has done.
    pub fn status(&self) -> BreakerStatus {
        let now = self.clock.now();
        let state = self.lock();
        let (mode, retry_in) = match state.mode {
            Mode::Closed { .. } => (BreakerState::Closed, None),
            Mode::Open { until } => (BreakerState::Open, Some(until.saturating_duration_since(now))),
            Mode::HalfOpen { .. } => (BreakerState::HalfOpen, None),
        };
        BreakerStatus {
            dependency: self.dependency.clone(),
            state: mode,
            failures: state.failures,
            retry_in_ms: retry_in.map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
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
    fn enter(&mut self, mode: Mode) {
        self.mode = mode;
        self.period += 1;
    }

    fn succeed(&mut self, breaker: &Breaker) {
        match &mut self.mode {
            Mode::Closed { failures } => *failures = 0,
            Mode::Open { .. } => return,
            Mode::HalfOpen { successes, .. } => {
                *successes += 1;
                if *successes < breaker.policy.success_threshold {
                    return;
                }
                self.closed += 1;
                self.enter(Mode::Closed { failures: 0 });
                tracing::info!(dependency = breaker.dependency, "breaker closed");
            }
        }
        self.failures = 0;
    }

    fn fail(&mut self, breaker: &Breaker, text: String) {
        self.failures = self.failures.saturating_add(1);
        self.last_failure = Some(text);
        let opens = match &mut self.mode {
            Mode::Closed { failures } => {
                *failures += 1;
                *failures >= breaker.policy.failure_threshold
            }
            Mode::Open { .. } => false,
            Mode::HalfOpen { .. } => true,
        };
        if opens {
            self.opened += 1;
            self.enter(Mode::Open { until: breaker.clock.now() + breaker.policy.open_for });
            let open_for_ms = u64::try_from(breaker.policy.open_for.as_millis()).unwrap_or(u64::MAX);
            tracing::warn!(
                dependency = breaker.dependency,
                failures = self.failures,
                open_for_ms,
                last_failure = self.last_failure,
                "breaker open"
            );
        }
    }
}

impl Permit<'_> {
    /// Tells what came of the call: nothing wrong, or an error's class and text.
    pub fn record<E: Fault>(self, result: Result<(), &E>) {
        let mut state = self.breaker.lock();
        if state.period != self.period {
            return;
        }
        match result.map_err(|error| (error.class(), error)) {
            Err((ErrorClass::Unavailable, error)) => state.fail(self.breaker, error.to_string()),
            Err((ErrorClass::Overloaded | ErrorClass::Cancelled | ErrorClass::Bug, _)) => {}
            Ok(()) | Err((ErrorClass::Invalid | ErrorClass::NotFound | ErrorClass::Corrupt, _)) => {
                state.succeed(self.breaker);
            }
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
            && let Mode::HalfOpen { trials, .. } = &mut state.mode
        {
            *trials -= 1;
        }
    }
}
