//! Scaled dot product attention.

use smallvec::smallvec;

use super::{OperandGradients, Operands, Results, Rule};
use crate::{
    graph::{GraphError, Op, ValueInfo},
    tensor::{DType, Shape},
};

pub(super) fn infer(op: &Op, operands: Operands<'_>) -> Result<Results, GraphError> {
    match op {
        Op::Attention { .. } => {
            let [_, _, _] = operands.exactly()?;
            let (y, lse) = results(operands)?;
            Ok(smallvec![y, lse])
        }
        Op::AttentionGrad { .. } => {
            let [q, k, v, _, lse, _] = operands.exactly()?;
            let (y, sums) = results(Operands { infos: &operands.infos[..3], ..operands })?;
            operands.shape(3, &y.shape)?;
            operands.shape(4, &sums.shape)?;
            operands.shape(5, &y.shape)?;
            let same = [3, 5].into_iter().all(|n| operands.infos[n].dtype == y.dtype);
            operands.ensure(same && lse.dtype == sums.dtype, || {
                format!("y and its gradient must be {}, the sums' logarithms {}", y.dtype, sums.dtype)
            })?;
            let mut infos: Results = smallvec![];
            infos.extend([q, k, v].map(|info| info.clone()));
            Ok(infos)
        }
        _ => operands.fail("it is no attention"),
    }
}

/// What queries, keys and values give: y, and the logarithm of each row's sum.
fn results(operands: Operands<'_>) -> Result<(ValueInfo, ValueInfo), GraphError> {
    let [q, k, v] = operands.exactly()?;
    let dtype = operands.floating()?;
    let rank = q.shape.rank();
    operands.ensure(rank >= 2, || "it takes matrices, at least 2 dimensions".into())?;
    operands.rank(1, rank)?;
    operands.rank(2, rank)?;
    let batch = rank - 2;
    let equal = [k, v].into_iter().all(|info| info.shape[..batch] == q.shape[..batch]);
    operands.ensure(equal, || "the batch dimensions must be equal: expand first".into())?;
    let ([queries, width], [keys, key_width]) = (matrix(&q.shape), matrix(&k.shape));
    let [values, value_width] = matrix(&v.shape);
    operands.ensure(width == key_width, || {
        format!("queries of width {width} do not meet keys of width {key_width}")
    })?;
    operands.ensure(keys == values, || format!("{keys} keys do not meet {values} values"))?;
    operands.ensure(queries >= 1 && keys >= 1, || "it takes at least one query and one key".into())?;
    let most = Op::MOST_HEAD_WIDTH;
    let fits = |width| (1..=most).contains(&width);
    operands.ensure(fits(width) && fits(value_width), || {
        format!("a head of {width} and {value_width} is too wide or has no width: 1 to {most}")
    })?;
    let shape = |inner: &[usize]| -> Shape { q.shape[..batch].iter().chain(inner).copied().collect() };
    let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let y = ValueInfo { shape: shape(&[queries, value_width]), dtype };
    Ok((y, ValueInfo { shape: shape(&[queries]), dtype: wide }))
}

fn matrix(shape: &Shape) -> [usize; 2] {
    let rank = shape.rank();
    [shape[rank - 2], shape[rank - 1]]
}

pub(super) fn vjp(rule: &mut Rule<'_>) -> Result<OperandGradients, GraphError> {
    let gy = rule.gradient()?;
    // With p = exp(scale·q·kᵀ − lse), y = p·v: gv = pᵀ·gy; gs = scale·p·(gy·vᵀ − Σ gy·y), gq = gs·k, gk = gsᵀ·q.
    let Op::Attention { causal, scale } = rule.node.op else { return Err(rule.none()) };
    let [q, k, v] = [0, 1, 2].map(|n| rule.input(n));
    let (y, lse) = (rule.output(0), rule.output(1));
    let results = rule.builder.push(Op::AttentionGrad { causal, scale }, &[q, k, v, y, lse, gy])?;
    Ok(results.into_iter().map(Some).collect())
}
