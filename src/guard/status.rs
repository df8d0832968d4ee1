//! A breaker seen from outside: its state, why it is open, and what it tells those it refuses.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    clock::whole_ms,
    fault::{ErrorClass, Fault},
    wire::BreakerReport,
};

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

impl BreakerState {
    /// The word in reports and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

/// Why a breaker opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenCause {
    /// So many failures in a row, failed trials included.
    Failures {
        /// How many.
        failures: u32,
    },
    /// So large a share of the last calls failed.
    FailureRate {
        /// The share.
        percent: u32,
        /// Of how many.
        calls: u32,
    },
    /// So large a share of the last calls was slow.
    SlowCallRate {
        /// The share.
        percent: u32,
        /// Of how many.
        calls: u32,
        /// What counts as slow.
        slow_call: Duration,
    },
    /// A trial call succeeded, but slowly.
    SlowTrial {
        /// How long it took.
        took: Duration,
        /// What counts as slow.
        slow_call: Duration,
    },
    /// No trial call gave an answer.
    LostTrials {
        /// How many were under way.
        trials: u32,
        /// For how long.
        waited: Duration,
    },
}

impl fmt::Display for OpenCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Failures { failures } => write!(f, "after {failures} failures in a row"),
            Self::FailureRate { percent, calls } => {
                write!(f, "as {percent} % of its last {calls} calls failed")
            }
            Self::SlowCallRate { percent, calls, slow_call } => {
                let ms = slow_call.as_millis();
                write!(f, "as {percent} % of its last {calls} calls took longer than {ms} ms")
            }
            Self::SlowTrial { took, slow_call } => {
                let (took, most) = (took.as_millis(), slow_call.as_millis());
                write!(f, "as a trial call took {took} ms, longer than {most} ms")
            }
            Self::LostTrials { trials, waited } => {
                write!(f, "as {trials} trial calls gave no answer in {} ms", waited.as_millis())
            }
        }
    }
}

/// A dependency has failed so often that it is not asked for a while.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{dependency} is not asked {cause}{}, {}", last(.last_failure), next_trial(*.retry_in))]
pub struct BreakerOpen {
    /// Which dependency.
    pub dependency: String,
    /// What opened it.
    pub cause: OpenCause,
    /// The last failure's text; empty where nothing failed.
    pub last_failure: String,
    /// When the next call may pass; zero while trial calls are under way.
    pub retry_in: Duration,
}

fn last(failure: &str) -> String {
    if failure.is_empty() { String::new() } else { format!(" (the last failure: {failure})") }
}

fn next_trial(retry_in: Duration) -> String {
    if retry_in.is_zero() {
        return "a trial call is under way, ask again when it is done".to_owned();
    }
    format!("it will be tried again in {} ms", whole_ms(retry_in))
}

impl Fault for BreakerOpen {
    fn class(&self) -> ErrorClass {
        ErrorClass::Unavailable
    }

    fn code(&self) -> &'static str {
        "origin.breaker_open"
    }
}

/// A breaker seen from outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BreakerStatus {
    /// What it protects.
    pub dependency: String,
    /// What it does now.
    pub state: BreakerState,
    /// For how long it has, in milliseconds.
    pub since_ms: u64,
    /// Why it opened; none while it is closed.
    pub cause: Option<String>,
    /// Failures in a row until now.
    pub failures: u32,
    /// The share of failures among the last calls, in percent; none before there are enough, or where no share
    /// counts.
    pub failure_percent: Option<u32>,
    /// The share of slow calls among the last calls, in percent; none as above.
    pub slow_percent: Option<u32>,
    /// Milliseconds until a trial call may pass, while it is open.
    pub retry_in_ms: Option<u64>,
    /// Trial calls under way.
    pub trials: u32,
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

impl From<BreakerStatus> for BreakerReport {
    fn from(status: BreakerStatus) -> Self {
        Self {
            name: status.dependency,
            state: status.state.as_str().to_owned(),
            since_ms: status.since_ms,
            cause: status.cause,
            failures: status.failures,
            failure_percent: status.failure_percent,
            slow_percent: status.slow_percent,
            retry_after_ms: status.retry_in_ms,
            trials: status.trials,
            opened: status.opened,
            half_opened: status.half_opened,
            closed: status.closed,
            refused: status.refused,
            last_failure: status.last_failure,
        }
    }
}
