//! The operator's socket: what `kasmina status` and its like ask, answered from the actors.

mod file;
mod serve;

pub use serve::{Control, serve_operator};
