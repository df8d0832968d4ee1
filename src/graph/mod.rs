//! The intermediate representation: a kernel's program lowered for one input shape and mode, as a list of
//! whitelisted operations in SSA form, and the rules that make its backward pass from it.
//!
//! [`Op`] is the whitelist. Nothing here knows a device or a file.

mod attention;
mod autodiff;
mod builder;
mod cost;
mod def_use;
mod display;
mod error;
mod ir;
mod op;
mod ops;
pub mod reference;
mod simplify;
#[cfg(test)]
pub(crate) mod tests;

pub use autodiff::{Differentiated, Wants, differentiate, differentiate_within};
pub use builder::{Builder, Limits, MAX_RANK};
pub use cost::{Cost, cost, node_cost};
pub(crate) use def_use::DefUse;
pub use error::GraphError;
pub use ir::{Graph, Node, Sink, Source, ValueId, ValueInfo};
pub use op::{Binary, Compare, Conv2d, Op, Pool2d, Reduction, Unary};
pub use ops::{infer, keep};
pub use simplify::simplify;
