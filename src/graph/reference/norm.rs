//! Normalisation, from the definitions: every kind is one function over sets of elements that share a mean.

use super::tensor::{Tensor, for_each_index};
use crate::{graph::Op, tensor::Shape};

pub(super) fn run(op: &Op, operands: &[&Tensor]) -> Option<Vec<Tensor>> {
    let x = *operands.first()?;
    let channels = || Shape::from([x.shape[1]]);
    Some(match *op {
        Op::BatchNorm { eps } => {
            forward(x, operands[1], operands[2], eps, &channels(), |i| vec![i[1]], |i| vec![i[1]])
        }
        Op::BatchNormGrad => {
            backward(x, operands[1], operands[2], operands[3], operands[4], |i| vec![i[1]], |i| vec![i[1]])
        }
        Op::BatchNormEval { eps } => {
            let (weight, bias, mean, var) = (operands[1], operands[2], operands[3], operands[4]);
            vec![Tensor::build(x.shape.clone(), |i| {
                let c = &i[1..2];
                (x.at(i) - mean.at(c)) / (var.at(c) + eps).sqrt() * weight.at(c) + bias.at(c)
            })]
        }
        Op::BatchNormEvalGrad { eps } => {
            let (weight, mean, var, gy) = (operands[1], operands[2], operands[3], operands[4]);
            let (mut gw, mut gb) = (Tensor::zeros(channels()), Tensor::zeros(channels()));
            let gx = Tensor::build(x.shape.clone(), |i| {
                let c = &i[1..2];
                let rstd = 1.0 / (var.at(c) + eps).sqrt();
                *gw.at_mut(c) += gy.at(i) * (x.at(i) - mean.at(c)) * rstd;
                *gb.at_mut(c) += gy.at(i);
                gy.at(i) * weight.at(c) * rstd
            });
            vec![gx, gw, gb]
        }
        Op::LayerNorm { dims, eps } => {
            let outer = x.shape.rank() - dims;
            let shape = x.shape[..outer].into();
            let of = move |i: &[usize]| i[..outer].to_vec();
            let scale = move |i: &[usize]| i[outer..].to_vec();
            let mut results = forward(x, operands[1], operands[2], eps, &shape, of, scale);
            results.truncate(3);
            results
        }
        Op::LayerNormGrad { dims } => {
            let outer = x.shape.rank() - dims;
            let of = move |i: &[usize]| i[..outer].to_vec();
            let scale = move |i: &[usize]| i[outer..].to_vec();
            backward(x, operands[1], operands[2], operands[3], operands[4], of, scale)
        }
        Op::GroupNorm { groups, eps } => {
            let shape = Shape::from([x.shape[0], groups]);
            let a_group = x.shape[1] / groups;
            let of = move |i: &[usize]| vec![i[0], i[1] / a_group];
            let mut results = forward(x, operands[1], operands[2], eps, &shape, of, |i| vec![i[1]]);
            results.truncate(3);
            results
        }
        Op::GroupNormGrad { groups } => {
            let a_group = x.shape[1] / groups;
            let of = move |i: &[usize]| vec![i[0], i[1] / a_group];
            backward(x, operands[1], operands[2], operands[3], operands[4], of, |i| vec![i[1]])
        }
        _ => return None,
    })
}

/// y, mean, rstd, var. `of` tells which mean an index belongs to, `scale` which weight.
fn forward(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
    statistics: &Shape,
    of: impl Fn(&[usize]) -> Vec<usize>,
    scale: impl Fn(&[usize]) -> Vec<usize>,
) -> Vec<Tensor> {
    let n = x.data.len() as f64 / statistics.elements() as f64;
    let (mut mean, mut var) = (Tensor::zeros(statistics.clone()), Tensor::zeros(statistics.clone()));
    for_each_index(&x.shape, |i| *mean.at_mut(&of(i)) += x.at(i) / n);
    for_each_index(&x.shape, |i| *var.at_mut(&of(i)) += (x.at(i) - mean.at(&of(i))).powi(2) / n);
    let rstd = var.map(|v| 1.0 / (v + eps).sqrt());
    let y = Tensor::build(x.shape.clone(), |i| {
        (x.at(i) - mean.at(&of(i))) * rstd.at(&of(i)) * weight.at(&scale(i)) + bias.at(&scale(i))
    });
    vec![y, mean, rstd, var]
}

/// gx, gweight, gbias.
fn backward(
    x: &Tensor,
    weight: &Tensor,
    mean: &Tensor,
    rstd: &Tensor,
    gy: &Tensor,
    of: impl Fn(&[usize]) -> Vec<usize>,
    scale: impl Fn(&[usize]) -> Vec<usize>,
) -> Vec<Tensor> {
    let n = x.data.len() as f64 / mean.data.len() as f64;
    let normal = Tensor::build(x.shape.clone(), |i| (x.at(i) - mean.at(&of(i))) * rstd.at(&of(i)));
    let (mut gw, mut gb) = (Tensor::zeros(weight.shape.clone()), Tensor::zeros(weight.shape.clone()));
    let (mut sum, mut dot) = (Tensor::zeros(mean.shape.clone()), Tensor::zeros(mean.shape.clone()));
    for_each_index(&x.shape, |i| {
        let (gy, normal, g) = (gy.at(i), normal.at(i), gy.at(i) * weight.at(&scale(i)));
        *gw.at_mut(&scale(i)) += gy * normal;
        *gb.at_mut(&scale(i)) += gy;
        *sum.at_mut(&of(i)) += g;
        *dot.at_mut(&of(i)) += g * normal;
    });
    let gx = Tensor::build(x.shape.clone(), |i| {
        let g = gy.at(i) * weight.at(&scale(i));
        rstd.at(&of(i)) * (g - sum.at(&of(i)) / n - normal.at(i) * dot.at(&of(i)) / n)
    });
    vec![gx, gw, gb]
}
