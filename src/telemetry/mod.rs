//! What the daemon says of itself: log lines, numbers counted on the hot path, and its state to systemd.
//!
//! Counting is lock-free and allocates nothing, so the data plane may do it during a pass.

mod counter;
mod histogram;
mod logging;
mod notify;
mod process;
mod recent;
pub mod step_path;

pub use counter::Counter;
pub use histogram::{Histogram, Summary};
pub use logging::start_logging;
pub use notify::Notifier;
pub use process::resident_bytes;
pub use recent::Recent;
