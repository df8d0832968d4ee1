//! Views and movement, by index.

use super::tensor::{Tensor, for_each_index};
use crate::graph::Op;

pub(super) fn run(op: &Op, operands: &[&Tensor]) -> Option<Vec<Tensor>> {
    let x = *operands.first()?;
    let result = match op {
        Op::Reshape(shape) => Tensor { shape: shape.clone(), data: x.data.clone() },
        Op::Permute(order) => {
            let shape = order.iter().map(|&d| x.shape[d]).collect();
            Tensor::build(shape, |index| {
                let mut from = vec![0; index.len()];
                order.iter().zip(index).for_each(|(&d, &i)| from[d] = i);
                x.at(&from)
            })
        }
        Op::Expand(shape) => Tensor::build(shape.clone(), |index| x.at_broadcast(index)),
        Op::Slice { dim, start, len, step } => {
            let mut dims = x.shape.to_vec();
            dims[*dim] = *len;
            Tensor::build(dims.into(), |index| {
                let mut from = index.to_vec();
                from[*dim] = start + step * index[*dim];
                x.at(&from)
            })
        }
        Op::Unslice { dim, size, start, step } => {
            let mut dims = x.shape.to_vec();
            dims[*dim] = *size;
            let mut y = Tensor::zeros(dims.into());
            for_each_index(&x.shape, |index| {
                let mut to = index.to_vec();
                to[*dim] = start + step * index[*dim];
                *y.at_mut(&to) = x.at(index);
            });
            y
        }
        Op::Detach => x.clone(),
        Op::Pick { dim } => {
            let indices = operands.get(1)?;
            let mut dims = x.shape.to_vec();
            dims[*dim] = indices.data.len();
            Tensor::build(dims.into(), |index| {
                let mut from = index.to_vec();
                match picked(indices.data[index[*dim]], x.shape[*dim]) {
                    Some(place) => {
                        from[*dim] = place;
                        x.at(&from)
                    }
                    None => f64::NAN,
                }
            })
        }
        Op::Unpick { dim, size } => {
            let gy = operands.get(1)?;
            let mut dims = gy.shape.to_vec();
            dims[*dim] = *size;
            let mut y = Tensor::zeros(dims.into());
            for_each_index(&gy.shape, |index| {
                let mut to = index.to_vec();
                if let Some(place) = picked(x.data[index[*dim]], *size) {
                    to[*dim] = place;
                    *y.at_mut(&to) += gy.at(index);
                }
            });
            y
        }
        Op::Cat { dim } => {
            let mut dims = x.shape.to_vec();
            dims[*dim] = operands.iter().map(|operand| operand.shape[*dim]).sum();
            Tensor::build(dims.into(), |index| {
                let mut from = index.to_vec();
                for operand in operands {
                    if from[*dim] < operand.shape[*dim] {
                        return operand.at(&from);
                    }
                    from[*dim] -= operand.shape[*dim];
                }
                unreachable!("the sizes add up to the result's")
            })
        }
        _ => return None,
    };
    Some(vec![result])
}

/// Where an index points; a negative one counts from the end.
fn picked(index: f64, size: usize) -> Option<usize> {
    let place = if index < 0.0 { index + size as f64 } else { index };
    (0.0..size as f64).contains(&place).then_some(place as usize)
}
