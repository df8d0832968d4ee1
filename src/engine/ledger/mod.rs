//! Ledgers: what sessions hold, counted for each session and for each user over all of their sessions.
//!
//! Whatever costs memory, a descriptor or a thread is entered here before it is made, and struck off when it is
//! gone. What would pass a limit is refused with the key of the setting that bounds it.

mod allowance;
mod held;
mod session;
mod spent;
mod users;

#[cfg(test)]
mod tests;

pub use held::{Held, Holdings, QuotaLimits};
pub use session::{SessionLedger, Share};
pub use spent::{QuotaSpent, Whose};
pub use users::{Ledgers, UserHoldings};
