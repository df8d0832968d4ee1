//! Tests of the graph layer: gradients against finite differences, what inference refuses.

mod gradients;
mod refusals;
mod table;
