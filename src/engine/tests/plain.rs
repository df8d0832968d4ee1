//! What a layer with hosts and roles computes, written out in `f64`, with gradients by finite differences: nothing is
//! shared with the engine but the definition.

use super::fixture::{ELEMENTS, WIDTH, weights_of};
use crate::{engine::Role, wire::Blend};

/// A seed that takes part.
#[derive(Clone, Copy, Debug)]
pub(super) struct Runs {
    pub(super) seed: usize,
    /// Which of the [`seed`](super::fixture::seed)s is in it.
    pub(super) kernel: usize,
    pub(super) role: Role,
    pub(super) alpha: f32,
}

/// What a pass there and back gives.
pub(super) struct Plain {
    pub(super) output: Vec<f64>,
    pub(super) grad_input: Vec<f64>,
    /// In the order of the slots, the host last.
    pub(super) grad_w: Vec<Vec<f64>>,
    /// By seed of the layer; 0 for those that do not run.
    pub(super) grad_alphas: Vec<f64>,
}

/// Everything that a loss depends on.
#[derive(Clone)]
struct Point {
    x: Vec<f64>,
    alphas: Vec<f64>,
    /// By part, the host last.
    w: Vec<Vec<f64>>,
}

/// A layer whose seeds are [`seed`](super::fixture::seed)s, and so its host if it has one here.
pub(super) struct Composition<'a> {
    pub(super) blend: Blend,
    pub(super) runs: &'a [Runs],
    pub(super) host: Option<usize>,
    /// Seeds of the layer.
    pub(super) seeds: usize,
}

const STEP: f64 = 1e-6;

impl Composition<'_> {
    /// Output and gradients for x and the gradient g of what the daemon writes; `straight` is that of the layer's
    /// output for seeds in training.
    pub(super) fn at(&self, x: &[f32], g: &[f32], straight: &[f32]) -> Plain {
        let wide = |values: &[f32]| -> Vec<f64> { values.iter().map(|&v| f64::from(v)).collect() };
        let kernels = self.runs.iter().map(|runs| runs.kernel).chain(self.host);
        let point = Point {
            x: wide(x),
            alphas: self.runs.iter().map(|runs| f64::from(runs.alpha)).collect(),
            w: kernels.map(|n| wide(&weights_of(n))).collect(),
        };
        let (g, straight) = (wide(g), wide(straight));
        let dot = |values: &[f64]| -> f64 { values.iter().zip(&g).map(|(y, g)| y * g).sum() };
        // What reaches x and the alphas: y alone. What reaches parameters: the kernels in training too.
        let of_y = |point: &Point| dot(&self.output(point));
        let of_all = |point: &Point| of_y(point) + self.behind(point, &x_of(&point.x), &straight);
        let mut plain = Plain {
            output: self.output(&point),
            grad_input: Vec::new(),
            grad_w: Vec::new(),
            grad_alphas: vec![0.0; self.seeds],
        };
        plain.grad_input = (0..ELEMENTS).map(|i| slope(&point, |p| &mut p.x[i], of_y)).collect();
        for part in 0..point.w.len() {
            plain.grad_w.push((0..WIDTH).map(|c| slope(&point, |p| &mut p.w[part][c], of_all)).collect());
        }
        for (n, runs) in self.runs.iter().enumerate().filter(|(_, runs)| runs.role == Role::Blended) {
            plain.grad_alphas[runs.seed] = slope_from_below(&point, |p| &mut p.alphas[n], of_y);
        }
        plain
    }

    fn output(&self, point: &Point) -> Vec<f64> {
        let blended: Vec<usize> =
            (0..self.runs.len()).filter(|&n| self.runs[n].role == Role::Blended).collect();
        let total: f64 = blended.iter().map(|&n| point.alphas[n]).sum();
        let scale = if self.blend == Blend::Convex && total > 1.0 { 1.0 / total } else { 1.0 };
        let k = |part: usize, i: usize| (point.x[i] * point.w[part][i % WIDTH]).tanh();
        let output = |i: usize| -> f64 {
            let sum: f64 = blended.iter().map(|&n| point.alphas[n] * scale * k(n, i)).sum();
            let product: f64 =
                blended.iter().map(|&n| 1.0 + point.alphas[n] * (k(n, i) - point.x[i]).tanh()).product();
            let host = self.host.map(|_| k(self.runs.len(), i));
            match (self.blend, host) {
                (Blend::Convex, Some(h)) => (1.0 - total.min(1.0)) * h + sum,
                (Blend::Residual, Some(h)) => h + sum,
                (Blend::Multiply, Some(h)) => h * product,
                (Blend::Multiply, None) => product,
                (_, None) => sum,
            }
        };
        (0..ELEMENTS).map(output).collect()
    }

    /// ⟨k(stop(x)), g⟩ of the kernels that train behind the layer.
    fn behind(&self, point: &Point, stopped: &[f64], g: &[f64]) -> f64 {
        let training = (0..self.runs.len()).filter(|&n| self.runs[n].role == Role::Straight);
        training
            .flat_map(|n| (0..ELEMENTS).map(move |i| (n, i)))
            .map(|(n, i)| (stopped[i] * point.w[n][i % WIDTH]).tanh() * g[i])
            .sum()
    }
}

fn x_of(x: &[f64]) -> Vec<f64> {
    x.to_vec()
}

fn moved(point: &Point, place: &impl Fn(&mut Point) -> &mut f64, by: f64) -> Point {
    let mut moved = point.clone();
    *place(&mut moved) += by;
    moved
}

fn slope(point: &Point, place: impl Fn(&mut Point) -> &mut f64, loss: impl Fn(&Point) -> f64) -> f64 {
    (loss(&moved(point, &place, STEP)) - loss(&moved(point, &place, -STEP))) / (2.0 * STEP)
}

/// Of the second order and one-sided, for min(1, T) at T = 1.
fn slope_from_below(
    point: &Point,
    place: impl Fn(&mut Point) -> &mut f64,
    loss: impl Fn(&Point) -> f64,
) -> f64 {
    let at = |by: f64| loss(&moved(point, &place, by));
    (3.0 * at(0.0) - 4.0 * at(-STEP) + at(-2.0 * STEP)) / (2.0 * STEP)
}
