//! Reductions and the softmax family.

use super::{Operands, Results, one};
use crate::graph::{GraphError, Op, Reduction};

pub(super) fn infer(op: &Op, operands: Operands<'_>) -> Result<Results, GraphError> {
    match op {
        Op::Reduce { reduction, dims } => {
            let [x] = operands.exactly()?;
            let rank = x.shape.rank();
            let ascending = dims.windows(2).all(|pair| pair[0] < pair[1]);
            let within = dims.last().is_none_or(|&last| last < rank);
            operands.ensure(ascending && within, || format!("{dims:?} are no ascending dimensions"))?;
            let dtype = match reduction {
                Reduction::Sum => operands.same_dtype()?,
                Reduction::Mean | Reduction::Amax => operands.floating()?,
            };
            let empty = dims.iter().any(|&d| x.shape[d] == 0);
            let undefined = empty
                && *reduction == Reduction::Amax
                && x.shape.iter().enumerate().all(|(i, &n)| n != 0 || dims.contains(&i));
            operands.ensure(!undefined, || "the largest of no elements is undefined".into())?;
            let shape = x.shape.iter().enumerate().map(|(i, &n)| if dims.contains(&i) { 1 } else { n });
            Ok(one(shape.collect(), dtype))
        }
        Op::Softmax { dim } | Op::LogSoftmax { dim } => {
            let [x] = operands.exactly()?;
            operands.ensure(*dim < x.shape.rank(), || format!("there is no dimension {dim}"))?;
            Ok(one(x.shape.clone(), operands.floating()?))
        }
        Op::SoftmaxGrad { dim } | Op::LogSoftmaxGrad { dim } => {
            let [y, _] = operands.exactly()?;
            operands.ensure(*dim < y.shape.rank(), || format!("there is no dimension {dim}"))?;
            operands.shape(1, &y.shape)?;
            Ok(one(y.shape.clone(), operands.floating()?))
        }
        _ => operands.fail("it is no reduction"),
    }
}
