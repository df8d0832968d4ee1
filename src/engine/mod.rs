//! The data plane: live seeds, their passes and tickets, on threads of their own.
//!
//! A [`Kernel`] in a seed's own memory is a [`LiveSeed`]. A layer's [`GradientSynchronizer`] fans a forward
//! pass out to its live seeds, blends what they give and leaves a ticket; the backward of that ticket runs
//! the same kernels with the same factors, whatever has been grafted since. In a steady state a pass
//! allocates no tensor, takes no contended lock and logs nothing.

mod alpha;
mod blend;
mod charge;
mod config;
mod error;
mod executor;
mod export;
mod job;
mod kernel;
mod lane;
mod ledger;
mod live;
mod norm;
mod plan_set;
mod pool;
mod program;
mod recent;
mod replay;
mod role;
mod schedule;
mod scratch;
mod series;
mod state;
mod stats;
mod synchronizer;
mod target;
#[cfg(test)]
mod tests;
mod ticket;
mod turns;

pub use alpha::Alpha;
pub use config::{EngineConfig, RecoveryPolicy};
pub use error::EngineError;
pub use kernel::{Kernel, KernelParts, Weight};
pub use lane::{
    Answer, EventSink, LaneCommand, LaneEnd, LaneEvent, LaneGauges, LaneHandle, LaneLimits, LaneParts,
    LaneSnapshot, LayerSnapshot, RecentWork, Upcoming,
};
pub use ledger::{
    Held, Holdings, Ledgers, QuotaLimits, QuotaSpent, SessionLedger, Share, UserHoldings, Whose,
};
pub use live::LiveSeed;
pub use plan_set::{Backward, PlanKey, PlanSet};
pub use program::Program;
pub use replay::{Activations, Range, Replay, ReplayError, Rerun, Trace, Traced};
pub use role::Role;
pub use schedule::{Course, Schedule};
pub use state::{is_active, transition};
pub use stats::{RanOn, SeedCounters};
pub use synchronizer::{
    BackwardReport, Failures, ForwardReport, GradientSynchronizer, LayerSpec, Reached, SeedFailure, Witness,
};
pub use ticket::Quota;
pub use turns::{Entrant, Occupancy, Turn, Turns, TurnsSettings, Used};
