//! Tests of the graph layer: gradients against finite differences, what inference refuses.

mod conventions;
mod gradients;
mod refusals;
mod single;
mod table;

pub(crate) use gradients::noise;
pub(crate) use single::{convolutions, single};
pub(crate) use table::cases;
