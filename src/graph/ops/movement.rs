//! Views and movement: the same elements in another place.

use smallvec::smallvec;

use super::{Checked as _, OperandGradients, Operands, Results, Rule, one};
use crate::{
    graph::{GraphError, Op, ValueId},
    tensor::{DType, Shape},
};

pub(super) fn infer(op: &Op, operands: Operands<'_>) -> Result<Results, GraphError> {
    let name = op.name();
    if let Op::Cat { dim } = op {
        return cat(*dim, operands);
    }
    if let Op::Pick { .. } | Op::Unpick { .. } = op {
        return pick(op, operands);
    }
    let [x] = operands.exactly()?;
    let rank = x.shape.rank();
    let with_dim = |dim: usize, size: usize| -> Shape {
        x.shape.iter().enumerate().map(|(i, &n)| if i == dim { size } else { n }).collect()
    };
    let shape = match op {
        Op::Reshape(shape) => {
            let (old, new) = (x.shape.elements(), shape.checked_elements().named(name)?);
            operands.ensure(old == new, || format!("{shape} has {new} elements, the operand {old}"))?;
            shape.clone()
        }
        Op::Permute(order) => {
            let mut seen = vec![false; rank];
            let fresh = |&d: &usize| d < rank && !std::mem::replace(&mut seen[d], true);
            let whole = order.len() == rank && order.iter().all(fresh);
            operands.ensure(whole, || format!("{order:?} is no order of {rank} dimensions"))?;
            order.iter().map(|&d| x.shape[d]).collect()
        }
        Op::Expand(shape) => {
            let reaches = x.shape.broadcast(shape).named(name)? == *shape;
            operands.ensure(reaches, || format!("{} does not broadcast to {shape}", x.shape))?;
            shape.clone()
        }
        Op::Detach => x.shape.clone(),
        Op::Slice { dim, start, len, step } => {
            operands.ensure(*dim < rank, || format!("there is no dimension {dim}"))?;
            operands.ensure(*step >= 1, || "the step must be at least 1".into())?;
            let fits = strided_end(*start, *len, *step).is_some_and(|end| end <= x.shape[*dim]);
            operands.ensure(*len == 0 || fits, || {
                format!(
                    "{len} indices from {start} by {step} pass the size {} of dimension {dim}",
                    x.shape[*dim]
                )
            })?;
            with_dim(*dim, *len)
        }
        Op::Unslice { dim, size, start, step } => {
            operands.ensure(*dim < rank, || format!("there is no dimension {dim}"))?;
            operands.ensure(*step >= 1, || "the step must be at least 1".into())?;
            let len = x.shape[*dim];
            let fits = strided_end(*start, len, *step).is_some_and(|end| end <= *size);
            operands.ensure(len == 0 || fits, || {
                format!("{len} indices from {start} by {step} pass the size {size} of dimension {dim}")
            })?;
            with_dim(*dim, *size)
        }
        _ => return operands.fail("it is no movement"),
    };
    Ok(one(shape, x.dtype))
}

/// One more than the last of `len` indices from `start` by `step`; `None` on overflow or where there is none.
fn strided_end(start: usize, len: usize, step: usize) -> Option<usize> {
    len.checked_sub(1)?.checked_mul(step)?.checked_add(start)?.checked_add(1)
}

fn pick(op: &Op, operands: Operands<'_>) -> Result<Results, GraphError> {
    let [first, second] = operands.exactly()?;
    let (tensor, indices, place) =
        if matches!(op, Op::Pick { .. }) { (first, second, 1) } else { (second, first, 0) };
    operands.rank(place, 1)?;
    operands.ensure(indices.dtype == DType::I64, || "the indices must be int64".into())?;
    let (dim, size) = match op {
        Op::Pick { dim } => (*dim, indices.shape[0]),
        Op::Unpick { dim, size } => {
            operands.ensure(tensor.dtype.is_floating_point(), || "it takes floating-point numbers".into())?;
            (*dim, *size)
        }
        _ => return operands.fail("it picks nothing"),
    };
    operands.ensure(dim < tensor.shape.rank(), || format!("there is no dimension {dim}"))?;
    let fits = matches!(op, Op::Pick { .. }) || tensor.shape[dim] == indices.shape[0];
    operands.ensure(fits, || format!("there must be an index for each element along dimension {dim}"))?;
    let shape = tensor.shape.iter().enumerate().map(|(i, &n)| if i == dim { size } else { n }).collect();
    Ok(one(shape, tensor.dtype))
}

fn cat(dim: usize, operands: Operands<'_>) -> Result<Results, GraphError> {
    let dtype = operands.same_dtype()?;
    let first = &operands.infos[0].shape;
    operands.ensure(dim < first.rank(), || format!("there is no dimension {dim}"))?;
    let mut total = 0usize;
    for info in operands.infos {
        let others_equal = info.shape.rank() == first.rank()
            && info.shape.iter().zip(first.iter()).enumerate().all(|(i, (a, b))| i == dim || a == b);
        operands.ensure(others_equal, || format!("all sizes but those of dimension {dim} must be equal"))?;
        let sum = total.checked_add(info.shape[dim]);
        let Some(sum) = sum else { return operands.fail("the sizes together overflow") };
        total = sum;
    }
    let shape = first.iter().enumerate().map(|(i, &n)| if i == dim { total } else { n }).collect();
    Ok(one(shape, dtype))
}

pub(super) fn vjp(rule: &mut Rule<'_>) -> Result<OperandGradients, GraphError> {
    let gy = rule.gradient()?;
    let shape = rule.input_shape(0);
    let gradient = match rule.node.op.clone() {
        Op::Reshape(_) => rule.op(Op::Reshape(shape), &[gy])?,
        Op::Permute(order) => {
            let mut inverse = vec![0; order.len()];
            order.iter().enumerate().for_each(|(to, &from)| inverse[from] = to);
            rule.op(Op::Permute(inverse), &[gy])?
        }
        // Each element was read many times: its gradients add up.
        Op::Expand(_) => rule.unbroadcast(gy, &shape)?,
        Op::Slice { dim, start, step, .. } => {
            rule.op(Op::Unslice { dim, size: shape[dim], start, step }, &[gy])?
        }
        Op::Unslice { dim, start, step, .. } => {
            rule.op(Op::Slice { dim, start, len: shape[dim], step }, &[gy])?
        }
        // Each element gets the gradients of all the places it was read for.
        Op::Pick { dim } => rule.op(Op::Unpick { dim, size: shape[dim] }, &[rule.input(1), gy])?,
        Op::Unpick { dim, .. } => {
            let gradient = rule.op(Op::Pick { dim }, &[gy, rule.input(0)])?;
            return Ok(smallvec![None, Some(gradient)]);
        }
        Op::Cat { dim } => return cat_vjp(rule, dim, gy),
        _ => return Err(rule.none()),
    };
    let mut gradients = smallvec![None; rule.node.inputs.len()];
    gradients[0] = Some(gradient);
    Ok(gradients)
}

fn cat_vjp(rule: &mut Rule<'_>, dim: usize, gy: ValueId) -> Result<OperandGradients, GraphError> {
    let (mut gradients, mut start) = (OperandGradients::new(), 0);
    for index in 0..rule.node.inputs.len() {
        let len = rule.input_shape(index)[dim];
        let slice = Op::Slice { dim, start, len, step: 1 };
        gradients.push(if rule.wanted[index] { Some(rule.op(slice, &[gy])?) } else { None });
        start += len;
    }
    Ok(gradients)
}
