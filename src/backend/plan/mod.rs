//! Planning, the same for every device: which memory each value lives in, fixed before anything runs.
//!
//! Views cost nothing where the reader takes strides. Operations on elements that follow each other are one step, and so is a
//! product with its bias, and a normalisation of batches with what comes before or after it. A value that leaves the graph is computed where it
//! has to end up. Everything else shares one workspace, by liveness.

mod addmm;
mod bounds;
mod chain;
mod joined;
mod place;
mod planner;
mod widen;
mod workspace;

pub use addmm::Addmm;
pub use bounds::{Bounds, block};
pub use chain::{Chain, Link, LinkOp, MOST_INPUTS, MOST_LINKS, MOST_OUTPUTS};
pub use joined::{Joined, Order};
pub use place::{Home, Place};
pub use planner::{Plan, Scratch, Step, StepKind, Target, plan};
pub use widen::widen;
