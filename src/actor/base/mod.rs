//! What every control-plane actor stands on: an address that outlives a respawn, bounded asking, and
//! respawning after a panic within a budget.
//!
//! `actix::Supervisor` does not bring an actor back after a panic in a handler, so the supervisor keeps a
//! factory for each actor, learns of its end from the [`Life`] it holds, and publishes the new address
//! through the [`Handle`] that everybody else keeps.

mod budget;
mod frames;
mod handle;
mod life;
mod supervised;
#[cfg(test)]
mod tests;

pub use budget::{RestartBudget, RestartPolicy};
pub use frames::Frames;
pub use handle::{AskError, Handle};
pub use life::{Exit, Life};
pub(crate) use supervised::stops_in_order;
pub use supervised::{ActorReport, Child, StopActor, Supervised};
