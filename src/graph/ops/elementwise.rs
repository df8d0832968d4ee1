//! Element by element: activations, arithmetic, comparisons, selection, casts.

use super::{Checked as _, Operands, Results, one};
use crate::{
    graph::{GraphError, Op},
    tensor::DType,
};

pub(super) fn infer(op: &Op, operands: Operands<'_>) -> Result<Results, GraphError> {
    let name = op.name();
    match op {
        Op::Unary(_) => {
            let [x] = operands.exactly()?;
            Ok(one(x.shape.clone(), operands.floating()?))
        }
        Op::UnaryGrad(_) => {
            let [x, _] = operands.exactly()?;
            operands.shape(1, &x.shape)?;
            Ok(one(x.shape.clone(), operands.floating()?))
        }
        Op::Binary(_) => {
            let [a, b] = operands.exactly()?;
            let dtype = operands.same_dtype()?;
            operands.ensure(dtype != DType::Bool, || "it takes numbers: cast first".into())?;
            Ok(one(a.shape.broadcast(&b.shape).named(name)?, dtype))
        }
        Op::Compare(_) => {
            let [a, b] = operands.exactly()?;
            operands.same_dtype()?;
            Ok(one(a.shape.broadcast(&b.shape).named(name)?, DType::Bool))
        }
        Op::Where => {
            let [condition, a, b] = operands.exactly()?;
            operands.ensure(condition.dtype == DType::Bool, || "the condition must be bool".into())?;
            operands.ensure(a.dtype == b.dtype, || "both choices must be of one type".into())?;
            let shape =
                a.shape.broadcast(&b.shape).and_then(|s| s.broadcast(&condition.shape)).named(name)?;
            Ok(one(shape, a.dtype))
        }
        Op::Cast(dtype) => {
            let [x] = operands.exactly()?;
            Ok(one(x.shape.clone(), *dtype))
        }
        _ => operands.fail("it is no elementwise operation"),
    }
}
