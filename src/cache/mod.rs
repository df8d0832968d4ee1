//! Where kernels are kept: ready to run on the device (L1), and as bytes in the tiers below.
//!
//! [`DeviceCache`] holds values by name within a budget. [`Lookup`] finds an artifact's bytes: tier by
//! tier, then at the [`Source`].

mod counters;
mod device;
mod error;
mod fetch_budget;
mod fleet;
mod guarded;
mod lookup;
mod negatives;
mod redis;
mod seal;
mod secret;
mod single_flight;
mod source;
mod sql;
mod stats;
mod tier;

#[cfg(test)]
mod contract;
#[cfg(test)]
mod fleet_tests;
#[cfg(test)]
mod servers;

pub use device::{Budget, Condemned, DeviceCache, Lease};
pub use error::CacheError;
pub use fetch_budget::{FETCH_PATIENCE, FetchBudget, FetchBudgetSpent, FetchBudgetStats, Reservation};
pub use fleet::{Fleet, FleetStats, Hear, Heard};
pub use guarded::GuardedTier;
pub use lookup::{
    Found, InTier, Lookup, LookupError, LookupOptions, LookupStats, RouteStats, Search, Step, StepOutcome,
    Unfound, Word,
};
pub use redis::{RedisOptions, RedisTier};
pub(crate) use secret::read_secret;
#[cfg(test)]
pub(crate) use servers::certificates;
pub use single_flight::SingleFlight;
pub use source::{Fetched, SharedFault, Source};
pub use sql::{Database, PostgresOptions, SqlTier, SqliteOptions};
pub use stats::{EntryStats, Eviction, EvictionReason, Evictor, LeavingStats, TierStats};
pub use tier::{Answer, Held, Negative, Stored, Tier, TierError};
