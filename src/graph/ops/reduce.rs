//! Reductions and the softmax family.

use smallvec::smallvec;

use super::{OperandGradients, Operands, Results, Rule, one};
use crate::graph::{Binary, Compare, GraphError, Op, Reduction, Unary};

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
                Reduction::SumOfSquares | Reduction::Mean | Reduction::Amax => operands.floating()?,
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

pub(super) fn vjp(rule: &mut Rule<'_>) -> Result<OperandGradients, GraphError> {
    let gy = rule.gradient()?;
    let (x, y, shape) = (rule.input(0), rule.output(0), rule.input_shape(0));
    let gradient = match rule.node.op.clone() {
        // gx = gy, repeated
        Op::Reduce { reduction: Reduction::Sum, .. } => rule.op(Op::Expand(shape), &[gy])?,
        // gx = 2x·gy
        Op::Reduce { reduction: Reduction::SumOfSquares, .. } => {
            let twice = rule.unary(Unary::MulScalar { value: 2.0 }, x)?;
            rule.binary(Binary::Mul, twice, gy)?
        }
        // gx = gy/n, repeated
        Op::Reduce { reduction: Reduction::Mean, dims } => {
            // A shape with a zero beside may have a product past the largest number; then nothing is shared.
            let count = dims.iter().fold(1usize, |n, &d| n.saturating_mul(shape[d]));
            let share = rule.unary(Unary::MulScalar { value: 1.0 / count.max(1) as f64 }, gy)?;
            rule.op(Op::Expand(shape), &[share])?
        }
        // gx = gy/(how many are the largest) where x is the largest, else 0
        Op::Reduce { reduction: Reduction::Amax, dims } => {
            let largest = rule.op(Op::Compare(Compare::Eq), &[x, y])?;
            let dtype = rule.builder.dtype(gy);
            let ones = rule.op(Op::Cast(dtype), &[largest])?;
            let count = rule.op(Op::Reduce { reduction: Reduction::Sum, dims }, &[ones])?;
            let share = rule.binary(Binary::Div, gy, count)?;
            rule.binary(Binary::Mul, ones, share)?
        }
        // gx = y·(gy − Σ gy·y)
        Op::Softmax { dim } => rule.op(Op::SoftmaxGrad { dim }, &[y, gy])?,
        // gx = gy − eʸ·Σ gy
        Op::LogSoftmax { dim } => rule.op(Op::LogSoftmaxGrad { dim }, &[y, gy])?,
        _ => return Err(rule.none()),
    };
    Ok(smallvec![Some(gradient)])
}
