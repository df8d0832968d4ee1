//! Asking again after a failure that may pass.

use std::sync::{Mutex, PoisonError};

use futures_util::future::BoxFuture;

use crate::{
    backoff::{Backoff, Jitter},
    fault::Fault,
};

/// How often to ask and how long to wait between.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryPolicy {
    /// Attempts in all; 0 counts as 1, which never asks again.
    pub attempts: u32,
    /// The delays between them.
    pub backoff: Backoff,
}

impl Default for RetryPolicy {
    /// 3 attempts, from 100 ms up to 2 s.
    fn default() -> Self {
        let backoff = Backoff { max: std::time::Duration::from_secs(2), ..Backoff::default() };
        Self { attempts: 3, backoff }
    }
}

/// Asks again, with jittered delays, what failed with a retryable class.
#[derive(Debug)]
pub struct Retry {
    policy: RetryPolicy,
    jitter: Mutex<Jitter>,
}

impl Retry {
    /// `jitter` decides the delays.
    pub fn new(policy: RetryPolicy, jitter: Jitter) -> Self {
        Self { policy, jitter: Mutex::new(jitter) }
    }

    /// Runs `attempt` until it succeeds, fails for good, or has run as often as the policy allows.
    ///
    /// # Errors
    /// The last attempt's.
    pub async fn run<'a, T, E: Fault>(
        &self,
        mut attempt: impl FnMut() -> BoxFuture<'a, Result<T, E>>,
    ) -> Result<T, E> {
        let mut failures = 0;
        loop {
            match attempt().await {
                Err(error) if error.class().is_retryable() && failures + 1 < self.policy.attempts => {
                    let asked = error.retry_after().unwrap_or_default();
                    if asked > self.policy.backoff.max {
                        return Err(error);
                    }
                    failures += 1;
                    let delay = {
                        let mut jitter = self.jitter.lock().unwrap_or_else(PoisonError::into_inner);
                        self.policy.backoff.delay(failures, &mut jitter).max(asked)
                    };
                    tracing::debug!(%error, failures, ?delay, "asking again");
                    tokio::time::sleep(delay).await;
                }
                result => return result,
            }
        }
    }
}
