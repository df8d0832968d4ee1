//! The lane: a session's own thread, which serves its trainer's submissions and, between two of them, the
//! control plane's commands.
//!
//! It sleeps at the session's doorbell. A submission is copied out of shared memory, checked, run and
//! answered by exactly one completion, in order; in the steady state that takes no allocation, and no lock but that of
//! the line where passes wait for their turn.
//! A plan for a batch size that was never seen is made on first use, here; a kernel that comes later is planned beside,
//! for what the latest passes were. A peer that breaks the protocol or
//! dies ends its own lane and nothing else; what the lane held is freed with it.

mod command;
mod event;
mod gauges;
mod handle;
mod layers;
mod on_device;
mod thread;

#[cfg(test)]
mod tests;

pub use command::{Answer, LaneCommand, LaneSnapshot, LayerSnapshot, Upcoming};
pub use event::{EventSink, LaneEnd, LaneEvent};
pub use gauges::{LaneGauges, RecentWork};
pub use handle::{LaneHandle, LaneLimits, LaneParts};
