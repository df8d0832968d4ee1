//! Reductions and the softmax family, by index.

use super::tensor::{Tensor, for_each_index};
use crate::{
    graph::{Op, Reduction},
    tensor::Shape,
};

pub(super) fn run(op: &Op, operands: &[&Tensor]) -> Option<Vec<Tensor>> {
    let x = *operands.first()?;
    let result = match op {
        Op::Reduce { reduction, dims } => reduce(*reduction, dims, x),
        Op::Softmax { dim } => log_softmax(x, *dim).map(f64::exp),
        Op::LogSoftmax { dim } => log_softmax(x, *dim),
        Op::SoftmaxGrad { dim } => {
            let (y, gy) = (x, operands[1]);
            let dot = sum(&Tensor::broadcast([y, gy], |[y, gy]| y * gy), *dim);
            Tensor::broadcast([y, gy, &dot], |[y, gy, dot]| y * (gy - dot))
        }
        Op::LogSoftmaxGrad { dim } => {
            let (y, gy) = (x, operands[1]);
            Tensor::broadcast([y, gy, &sum(gy, *dim)], |[y, gy, sum]| gy - y.exp() * sum)
        }
        _ => return None,
    };
    Some(vec![result])
}

fn sum(x: &Tensor, dim: usize) -> Tensor {
    reduce(Reduction::Sum, &[dim], x)
}

fn log_softmax(x: &Tensor, dim: usize) -> Tensor {
    if x.data.is_empty() {
        return x.clone();
    }
    let largest = reduce(Reduction::Amax, &[dim], x);
    let shifted = Tensor::broadcast([x, &largest], |[x, m]| x - m);
    let total = sum(&shifted.map(f64::exp), dim);
    Tensor::broadcast([&shifted, &total], |[s, total]| s - total.ln())
}

fn reduce(reduction: Reduction, dims: &[usize], x: &Tensor) -> Tensor {
    let shape: Shape =
        x.shape.iter().enumerate().map(|(d, &n)| if dims.contains(&d) { 1 } else { n }).collect();
    let mut y = Tensor::zeros(shape);
    if reduction == Reduction::Amax {
        y.data.fill(f64::NEG_INFINITY);
    }
    for_each_index(&x.shape, |index| {
        let to: Vec<usize> =
            index.iter().enumerate().map(|(d, &i)| if dims.contains(&d) { 0 } else { i }).collect();
        let (value, slot) = (x.at(index), y.at_mut(&to));
        match reduction {
            Reduction::Sum | Reduction::Mean => *slot += value,
            Reduction::SumOfSquares => *slot += value * value,
            Reduction::Amax if value > *slot || value.is_nan() => *slot = value,
            Reduction::Amax => {}
        }
    });
    if reduction == Reduction::Mean {
        let count: usize = dims.iter().map(|&d| x.shape[d]).product();
        y.data.iter_mut().for_each(|v| *v /= count as f64);
    }
    y
}
