//! What stands before everything that can be down: circuit breakers, and retries within them.

mod breaker;
mod policy;
mod retry;
mod status;
mod window;

#[cfg(test)]
mod breaker_model_tests;
#[cfg(test)]
mod breaker_tests;

pub use breaker::{Breaker, Permit};
pub use policy::{BreakerPolicy, WindowPolicy};
pub use retry::{Retry, RetryPolicy};
pub use status::{BreakerOpen, BreakerState, BreakerStatus, OpenCause};
