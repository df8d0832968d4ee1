//! Where kernels come from: a port, its implementations, and the guard through which they are asked.

mod breaker;
mod directory;
mod error;
mod file;
mod guarded;
mod guarded_tier;
mod port;
mod retry;

#[cfg(test)]
mod breaker_tests;
#[cfg(test)]
mod contract;
#[cfg(test)]
mod directory_tests;
#[cfg(test)]
mod guarded_tests;

pub use breaker::{Breaker, BreakerPolicy, BreakerState, BreakerStatus, Permit};
pub use directory::{DirectoryOptions, DirectoryOrigin};
pub use error::OriginError;
pub use file::read_file;
pub use guarded::{GuardPolicy, Guarded};
pub use guarded_tier::GuardedTier;
pub use port::Origin;
pub use retry::{Retry, RetryPolicy};
