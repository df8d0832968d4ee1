//! L2: artifacts in Redis, which nodes share.
//!
//! Each kernel is one hash under one key, so that every request has one slot of a cluster and what belongs
//! together changes together. Room is Redis's own business (`maxmemory` and its policy).

mod link;
mod record;
mod tier;
mod trouble;

#[cfg(test)]
mod tests;

pub(super) use link::Link;
pub use link::RedisOptions;
pub use tier::RedisTier;
pub(super) use trouble::explain;
