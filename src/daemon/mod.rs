//! The daemon: the only place that puts the parts together.
//!
//! Phases: starting → ready → draining → stopping. [`run()`] is all that `kasminad` calls.

mod access;
mod device;
mod error;
mod listen;
mod metrics;
mod phase;
mod run;
mod tiers;
mod wiring;

pub use error::DaemonError;
pub use phase::Phase;
pub use run::{DaemonEnvironment, run};
