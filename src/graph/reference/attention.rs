//! Scaled dot product attention, row by row.

use super::tensor::Tensor;
use crate::{graph::Op, tensor::Shape};

pub(super) fn run(op: &Op, operands: &[&Tensor]) -> Option<Vec<Tensor>> {
    match (op, operands) {
        (Op::Attention { causal, scale }, [q, k, v]) => Some(forward(Heads::of(q, k, v, *causal, *scale))),
        (Op::AttentionGrad { causal, scale }, [q, k, v, y, lse, gy]) => {
            Some(backward(Heads::of(q, k, v, *causal, *scale), y, lse, gy))
        }
        _ => None,
    }
}

/// Queries, keys and values, head after head.
struct Heads<'a> {
    q: &'a Tensor,
    k: &'a Tensor,
    v: &'a Tensor,
    queries: usize,
    keys: usize,
    width: usize,
    value_width: usize,
    causal: bool,
    scale: f64,
}

impl<'a> Heads<'a> {
    fn of(q: &'a Tensor, k: &'a Tensor, v: &'a Tensor, causal: bool, scale: f64) -> Self {
        let rank = q.shape.rank();
        let (queries, keys) = (q.shape[rank - 2], k.shape[rank - 2]);
        let (width, value_width) = (q.shape[rank - 1], v.shape[rank - 1]);
        Self { q, k, v, queries, keys, width, value_width, causal, scale }
    }

    /// How many queries all heads have.
    fn rows(&self) -> usize {
        self.q.shape[..self.q.shape.rank() - 1].iter().product()
    }

    /// The n-th row of queries, and where the keys that it sees begin and end, counted over all heads.
    fn row(&self, n: usize) -> (&'a [f64], std::ops::Range<usize>) {
        let (head, query) = (n / self.queries, n % self.queries);
        let first = head * self.keys;
        let seen = if self.causal { (query + 1).min(self.keys) } else { self.keys };
        (&self.q.data[n * self.width..][..self.width], first..first + seen)
    }

    fn scores(&self, n: usize) -> Vec<f64> {
        let (q, seen) = self.row(n);
        seen.map(|key| self.scale * dot(q, &self.k.data[key * self.width..])).collect()
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn forward(heads: Heads<'_>) -> Vec<Tensor> {
    let leading = &heads.q.shape[..heads.q.shape.rank() - 1];
    let width = heads.value_width;
    let mut y = Tensor::zeros(leading.iter().copied().chain([width]).collect());
    let mut lse = Tensor::zeros(Shape::from(leading));
    for n in 0..heads.rows() {
        let scores = heads.scores(n);
        let larger = |m: f64, &s: &f64| if s > m || s.is_nan() { s } else { m };
        let largest = scores.iter().fold(f64::NEG_INFINITY, larger);
        let powers: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
        let sum: f64 = powers.iter().sum();
        lse.data[n] = largest + sum.ln();
        for (key, power) in heads.row(n).1.zip(powers) {
            let values = &heads.v.data[key * width..][..width];
            for (y, v) in y.data[n * width..][..width].iter_mut().zip(values) {
                *y += power / sum * v;
            }
        }
    }
    vec![y, lse]
}

fn backward(heads: Heads<'_>, y: &Tensor, lse: &Tensor, gy: &Tensor) -> Vec<Tensor> {
    let [mut gq, mut gk, mut gv] = [heads.q, heads.k, heads.v].map(|x| Tensor::zeros(x.shape.clone()));
    let (width, value_width) = (heads.width, heads.value_width);
    for n in 0..heads.rows() {
        let (q, seen) = heads.row(n);
        let [y, gy] = [y, gy].map(|x| &x.data[n * value_width..][..value_width]);
        let shared = dot(y, gy);
        for (key, score) in seen.zip(heads.scores(n)) {
            let weight = (score - lse.data[n]).exp();
            let gradient = heads.scale * weight * (dot(gy, &heads.v.data[key * value_width..]) - shared);
            let k = &heads.k.data[key * width..][..width];
            for d in 0..width {
                gq.data[n * width + d] += gradient * k[d];
                gk.data[key * width + d] += gradient * q[d];
            }
            for (gv, gy) in gv.data[key * value_width..].iter_mut().zip(gy) {
                *gv += weight * gy;
            }
        }
    }
    vec![gq, gk, gv]
}
