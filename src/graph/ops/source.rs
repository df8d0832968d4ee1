//! Values made of nothing but attributes.

use super::{Operands, Results, one};
use crate::graph::{GraphError, Op};

pub(super) fn infer(op: &Op, operands: Operands<'_>) -> Result<Results, GraphError> {
    let [] = operands.exactly()?;
    match op {
        Op::Full { shape, dtype, .. } => Ok(one(shape.clone(), *dtype)),
        Op::Arange { len, dtype, .. } => Ok(one([*len].into(), *dtype)),
        _ => operands.fail("it is no source"),
    }
}
