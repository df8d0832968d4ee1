//! The Rust client: what a trainer written in Rust, the command line and the benches use. Blocking, without
//! an async runtime.
//!
//! A [`Client`] is one session. It opens [`Layer`]s, grafts kernels into their seeds, and runs passes: a
//! [`Pass`] holds the seeds' output, and its backward yields [`Gradients`]. A seed's parameters lie in memory
//! shared with the daemon ([`Grafted`]): an optimizer updates them in place. An [`Operator`] speaks to the
//! control socket, and [`Events`] tell what happens.

mod connection;
mod error;
mod export;
mod heap;
#[cfg(test)]
mod lane_tests;
mod layer;
mod operator;
mod pass;
mod session;
#[cfg(test)]
mod tests;
mod watch;

pub use error::ClientError;
pub use export::Exported;
pub use layer::{Grafted, Layer};
pub use operator::Operator;
pub use pass::{Gradients, Pass, PassRequest};
pub use session::{Client, ConnectOptions, LayerOptions, Offered};
pub use watch::Events;
