//! PyTorch's operations in terms of the graph's: one table for both formats.
//!
//! What stands in [`ops`] is the whitelist. A format's reader brings a name and arguments by place or by
//! name; the schema binds them, and the operation appends to the graph.

mod call;
mod folding;
mod lowering;
mod memory;
mod ops;
#[cfg(test)]
mod samples;
mod schema;
mod value;

pub(super) use call::call;
use call::{Call, Operand, Outcome};
pub(super) use lowering::{Lowering, Ready};
#[cfg(test)]
pub(crate) use samples::samples;
pub(super) use schema::{Given, is_known};
pub(super) use value::{Known, Scalar, SequenceRef, Value, dtype_of_code};
