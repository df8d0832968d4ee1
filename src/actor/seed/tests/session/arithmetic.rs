//! What a layer computes, in plain numbers of 64 bits: nothing is shared with the engine but the definition. Gradients
//! are differences.

use super::kernels::{ELEMENTS, WIDTH, value};
use crate::wire::Blend;

/// A seed that takes part in a pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Part {
    pub(super) seed: usize,
    pub(super) kernel: usize,
    pub(super) alpha: f32,
    /// Whether it learns behind the layer.
    pub(super) behind: bool,
}

/// What a pass is made of.
#[derive(Clone, Debug)]
pub(super) struct Sum {
    pub(super) blend: Blend,
    pub(super) parts: Vec<Part>,
    /// The host's kernel, where the daemon runs it.
    pub(super) host: Option<usize>,
    pub(super) x: Vec<f32>,
}

/// What its backward gives.
#[derive(Clone, Debug)]
pub(super) struct Gradients {
    pub(super) of_x: Vec<f64>,
    /// In the order of the slots, the host last.
    pub(super) of_weights: Vec<Vec<f64>>,
    /// In the order of the parts; 0 of one that learns behind the layer. None where the sum of the factors is so near
    /// to 1 that rounding decides on which side of the bend it lies.
    pub(super) of_alphas: Option<Vec<f64>>,
}

/// Everything a loss depends on.
#[derive(Clone)]
struct Point {
    x: Vec<f64>,
    alphas: Vec<f64>,
    /// Added to the weights, by part, the host last.
    weights: Vec<[f64; WIDTH]>,
}

const STEP: f64 = 1e-6;

impl Sum {
    /// For the gradient `g` of what the daemon writes, and `straight`, that of the layer's output.
    pub(super) fn gradients(&self, g: &[f32], straight: &[f32]) -> Gradients {
        let point = self.point();
        let dot =
            |values: &[f64], g: &[f32]| -> f64 { values.iter().zip(g).map(|(y, g)| y * f64::from(*g)).sum() };
        let of_y = |point: &Point| dot(&self.output_at(point), g);
        // What learns behind the layer sees x, and x does not see it.
        let of_all = |moved: &Point| {
            let still = Point { x: point.x.clone(), ..moved.clone() };
            let behind = (0..self.parts.len()).filter(|&n| self.parts[n].behind);
            of_y(moved) + behind.map(|n| dot(&self.kernel_at(&still, n), straight)).sum::<f64>()
        };
        let slots = self.parts.len() + usize::from(self.host.is_some());
        let total: f64 = self.blended().map(|n| point.alphas[n]).sum();
        let of_alpha = |n: usize| match self.parts[n].behind {
            true => 0.0,
            false => from_below(&point, |p| &mut p.alphas[n], of_y),
        };
        let is_on_the_bend = total != 1.0 && (total - 1.0).abs() < 1e-5;
        Gradients {
            of_x: (0..ELEMENTS).map(|i| slope(&point, |p| &mut p.x[i], of_y)).collect(),
            of_weights: (0..slots)
                .map(|n| (0..WIDTH).map(|c| slope(&point, |p| &mut p.weights[n][c], of_all)).collect())
                .collect(),
            of_alphas: (!is_on_the_bend).then(|| (0..self.parts.len()).map(of_alpha).collect()),
        }
    }

    pub(super) fn output(&self) -> Vec<f64> {
        self.output_at(&self.point())
    }

    fn point(&self) -> Point {
        Point {
            x: self.x.iter().map(|&x| f64::from(x)).collect(),
            alphas: self.parts.iter().map(|part| f64::from(part.alpha)).collect(),
            weights: vec![[0.0; WIDTH]; self.parts.len() + 1],
        }
    }

    fn blended(&self) -> impl Iterator<Item = usize> {
        (0..self.parts.len()).filter(|&n| !self.parts[n].behind)
    }

    /// The output of the n-th part; of the host after the last.
    fn kernel_at(&self, point: &Point, n: usize) -> Vec<f64> {
        let kernel = self.parts.get(n).map_or_else(|| self.host.unwrap_or(0), |part| part.kernel);
        (0..ELEMENTS).map(|i| value(kernel, i % WIDTH, point.weights[n][i % WIDTH], point.x[i])).collect()
    }

    fn output_at(&self, point: &Point) -> Vec<f64> {
        let total: f64 = self.blended().map(|n| point.alphas[n]).sum();
        let scale = if self.blend == Blend::Convex { 1.0 / total.max(1.0) } else { 1.0 };
        let outputs: Vec<(f64, Vec<f64>)> =
            self.blended().map(|n| (point.alphas[n], self.kernel_at(point, n))).collect();
        let host = self.host.map(|_| self.kernel_at(point, self.parts.len()));
        let at = |i: usize| -> f64 {
            let h = host.as_ref().map(|host| host[i]);
            match self.blend {
                Blend::Multiply => {
                    let factor = |(alpha, k): &(f64, Vec<f64>)| 1.0 + alpha * (k[i] - point.x[i]).tanh();
                    h.unwrap_or(1.0) * outputs.iter().map(factor).product::<f64>()
                }
                blend => {
                    let rest = if blend == Blend::Convex { 1.0 - total.min(1.0) } else { 1.0 };
                    let sum: f64 = outputs.iter().map(|(alpha, k)| alpha * scale * k[i]).sum();
                    rest * h.unwrap_or(0.0) + sum
                }
            }
        };
        (0..ELEMENTS).map(at).collect()
    }
}

fn moved(point: &Point, place: &impl Fn(&mut Point) -> &mut f64, by: f64) -> Point {
    let mut moved = point.clone();
    *place(&mut moved) += by;
    moved
}

fn slope(point: &Point, place: impl Fn(&mut Point) -> &mut f64, loss: impl Fn(&Point) -> f64) -> f64 {
    (loss(&moved(point, &place, STEP)) - loss(&moved(point, &place, -STEP))) / (2.0 * STEP)
}

/// Of the second order and from one side, for the bend of a convex blend where its factors' sum is 1.
fn from_below(point: &Point, place: impl Fn(&mut Point) -> &mut f64, loss: impl Fn(&Point) -> f64) -> f64 {
    let at = |by: f64| loss(&moved(point, &place, by));
    (3.0 * at(0.0) - 4.0 * at(-STEP) + at(-2.0 * STEP)) / (2.0 * STEP)
}
