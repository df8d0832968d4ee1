//! What stands before everything that can be down: circuit breakers, and retries within them.

mod breaker;
mod retry;

#[cfg(test)]
mod breaker_tests;

pub use breaker::{Breaker, BreakerOpen, BreakerPolicy, BreakerState, BreakerStatus, Permit};
pub use retry::{Retry, RetryPolicy};
