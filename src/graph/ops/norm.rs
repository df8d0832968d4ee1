//! Normalisation: batch, layer and group.

use smallvec::smallvec;

use super::{Operands, Results};
use crate::{
    graph::{GraphError, Op, ValueInfo},
    tensor::{DType, Shape},
};

pub(super) fn infer(op: &Op, operands: Operands<'_>) -> Result<Results, GraphError> {
    let dtype = operands.floating()?;
    match op {
        Op::BatchNorm { .. } => {
            let [x, _, _] = operands.exactly()?;
            let channels = per_channel(operands, 1..3)?;
            let per = x.shape.elements().checked_div(x.shape[1]).unwrap_or(0);
            operands.ensure(per != 1, || {
                "training needs more than one value per channel: use a larger batch or eval mode".into()
            })?;
            Ok(results(dtype, [&x.shape, &channels, &channels, &channels]))
        }
        Op::BatchNormGrad => {
            let [x, _, _, _, _] = operands.exactly()?;
            let channels = per_channel(operands, 1..4)?;
            operands.shape(4, &x.shape)?;
            Ok(results(dtype, [&x.shape, &channels, &channels]))
        }
        Op::BatchNormEval { .. } => {
            let [x, _, _, _, _] = operands.exactly()?;
            per_channel(operands, 1..5)?;
            Ok(results(dtype, [&x.shape]))
        }
        Op::BatchNormEvalGrad { .. } => {
            let [x, _, _, _, _] = operands.exactly()?;
            let channels = per_channel(operands, 1..4)?;
            operands.shape(4, &x.shape)?;
            Ok(results(dtype, [&x.shape, &channels, &channels]))
        }
        Op::LayerNorm { dims, .. } => {
            let [x, _, _] = operands.exactly()?;
            let (outer, inner) = split(*dims, operands)?;
            operands.shape(1, &inner)?;
            operands.shape(2, &inner)?;
            Ok(results(dtype, [&x.shape, &outer, &outer]))
        }
        Op::LayerNormGrad { dims } => {
            let [x, _, _, _, _] = operands.exactly()?;
            let (outer, inner) = split(*dims, operands)?;
            operands.shape(1, &inner)?;
            operands.shape(2, &outer)?;
            operands.shape(3, &outer)?;
            operands.shape(4, &x.shape)?;
            Ok(results(dtype, [&x.shape, &inner, &inner]))
        }
        Op::GroupNorm { groups, .. } => {
            let [x, _, _] = operands.exactly()?;
            per_channel(operands, 1..3)?;
            let statistics = grouped(*groups, operands)?;
            Ok(results(dtype, [&x.shape, &statistics, &statistics]))
        }
        Op::GroupNormGrad { groups } => {
            let [x, _, _, _, _] = operands.exactly()?;
            let channels = per_channel(operands, 1..2)?;
            let statistics = grouped(*groups, operands)?;
            operands.shape(2, &statistics)?;
            operands.shape(3, &statistics)?;
            operands.shape(4, &x.shape)?;
            Ok(results(dtype, [&x.shape, &channels, &channels]))
        }
        _ => operands.fail("it is no normalisation"),
    }
}

fn results<const N: usize>(dtype: DType, shapes: [&Shape; N]) -> Results {
    let mut infos: Results = smallvec![];
    infos.extend(shapes.into_iter().map(|shape| ValueInfo { shape: shape.clone(), dtype }));
    infos
}

/// Checks that x has channels and that the operands of the range hold one number for each: [C].
fn per_channel(operands: Operands<'_>, range: std::ops::Range<usize>) -> Result<Shape, GraphError> {
    let x = &operands.infos[0].shape;
    operands.ensure(x.rank() >= 2, || "it takes [N, C, …], at least 2 dimensions".into())?;
    let channels = Shape::from([x[1]]);
    for index in range {
        operands.shape(index, &channels)?;
    }
    Ok(channels)
}

/// The outer and the inner dimensions of a layer norm.
fn split(dims: usize, operands: Operands<'_>) -> Result<(Shape, Shape), GraphError> {
    let x = &operands.infos[0].shape;
    operands.ensure((1..=x.rank()).contains(&dims), || format!("it cannot normalise {dims} dimensions"))?;
    let (outer, inner) = x.split_at(x.rank() - dims);
    Ok((outer.into(), inner.into()))
}

/// The shape of a group norm's statistics.
fn grouped(groups: usize, operands: Operands<'_>) -> Result<Shape, GraphError> {
    let x = &operands.infos[0].shape;
    let divides = groups >= 1 && x[1].is_multiple_of(groups);
    operands.ensure(divides, || format!("{groups} groups must divide {} channels", x[1]))?;
    Ok([x[0], groups].into())
}
