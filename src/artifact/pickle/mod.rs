//! A restricted unpickler: it builds plain data and calls nothing.
//!
//! Classes become inert names, calls become records of what would be called, and every name must be on a
//! whitelist. Values live in one flat list and refer to each other by number, so that neither depth nor
//! self-reference can overflow a stack, in reading or in dropping.

mod document;
mod machine;
mod opcode;

pub(super) use document::{Document, Item, ItemId};
pub(super) use machine::read;

#[cfg(test)]
mod tests;
