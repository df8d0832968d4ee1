//! TorchScript archives: code in a small subset of Python, run by an abstract interpreter.
//!
//! Tensors are symbols with shape and type; everything else is concrete. So `if self.training` and loops
//! over modules vanish, and a branch on a tensor's data is refused.

mod builtin;
mod collection;
mod expression;
mod interpreter;
mod lexer;
mod objects;
mod parser;
mod program;
mod reader;
mod syntax;

pub(super) use program::Program;
pub(super) use reader::read;

#[cfg(test)]
mod tests;
mod text;
