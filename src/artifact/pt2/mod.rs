//! PT2 archives of `torch.export.save`: a graph in JSON and raw weights.

mod expression;
mod inputs;
mod program;
mod reader;
mod schema;
mod ssa;

pub(super) use program::Program;
pub(super) use reader::read;

#[cfg(test)]
mod tests;
