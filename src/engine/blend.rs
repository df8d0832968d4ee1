//! How the outputs of a layer's seeds are put together, as graphs: the device that runs the kernels runs
//! the blend, and its gradient comes by the same rules.
//!
//! Where the trainer holds the default transform, the daemon computes the seeds' part alone, S = Σ w_s·k_s(x) or
//! P = Π (1 + α_s·tanh(k_s(x) − x)), and h and the factor (1 − A) are the trainer's. Where the host is in the
//! daemon, the blend ends with it: (1 − A)·h + S, h + S or h·P, and h alone where no seed is blended.

use std::sync::Arc;

use smallvec::SmallVec;

use super::{EngineConfig, EngineError};
use crate::{
    backend::{Backend, CompileOptions, Executable},
    graph::{
        Binary, Builder, Graph, GraphError, Op, Sink, Source, Unary, ValueId, Wants, differentiate, simplify,
    },
    tensor::{DType, PackedLayout, Shape},
    wire::Blend,
};

/// By seed that is blended, in seed order.
pub(super) type Factors = SmallVec<[f32; 4]>;

/// What a blend multiplies with.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Mix {
    /// The factors of the seeds' outputs.
    pub(super) factors: Factors,
    /// 1 − A, the factor of the host's output where convex.
    pub(super) rest: f32,
}

impl Mix {
    pub(super) fn new(blend: Blend, alphas: &[f32]) -> Self {
        Self { factors: weights(blend, alphas), rest: 1.0 - total_weight(alphas) }
    }
}

/// A, the part of the layer's output that the seeds take: min(1, Σ α_s).
pub(super) fn total_weight(alphas: &[f32]) -> f32 {
    alphas.iter().sum::<f32>().min(1.0)
}

/// The factor of each seed's output in the blend: w_s = A·α_s/Σα_s where convex, else α_s.
fn weights(blend: Blend, alphas: &[f32]) -> Factors {
    let total: f32 = alphas.iter().sum();
    let scale = if blend == Blend::Convex && total > 1.0 { 1.0 / total } else { 1.0 };
    alphas.iter().map(|alpha| alpha * scale).collect()
}

/// The gradient of each α from the gradient of each factor, d_s, and that of 1 − A, which is 0 where the trainer
/// holds the host: then it subtracts ⟨h, g⟩ itself.
///
/// Convex with T = Σα ≤ 1: w_s = α_s and A = T, so ∂/∂α_s = d_s − ⟨h, g⟩.
/// With T > 1: w_s = α_s/T and A is constant, so ∂/∂α_s = (d_s − Σ w_j·d_j)/T.
pub(super) fn alpha_gradients(blend: Blend, alphas: &[f32], of_weights: &[f32], of_rest: f32) -> Factors {
    let total: f32 = alphas.iter().sum();
    if blend != Blend::Convex {
        return of_weights.into();
    }
    if total <= 1.0 {
        return of_weights.iter().map(|d| d - of_rest).collect();
    }
    let mean: f32 = alphas.iter().zip(of_weights).map(|(alpha, d)| alpha / total * d).sum();
    of_weights.iter().map(|d| (d - mean) / total).collect()
}

/// What a blend's plan depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BlendKey {
    pub(super) blend: Blend,
    /// How many seeds' outputs are blended.
    pub(super) count: usize,
    /// Whether the host's output ends the blend.
    pub(super) host: bool,
    pub(super) shape: Shape,
    pub(super) dtype: DType,
    /// Whether a backward will want the gradients of the outputs.
    pub(super) wants_outputs: bool,
    /// Whether a backward will want the gradients of the factors.
    pub(super) wants_factors: bool,
    /// Whether a backward will want the gradient of x, where the blend itself reads it.
    pub(super) wants_input: bool,
}

impl BlendKey {
    /// By input: whether a backward will want its gradient.
    fn wanted(&self) -> Vec<bool> {
        let mut wanted = vec![self.wants_outputs; self.count];
        wanted.resize(2 * self.count, self.wants_factors);
        wanted.push(self.reads_input() && self.wants_input);
        wanted.push(self.host && self.wants_outputs);
        wanted.push(self.reads_rest() && self.wants_factors);
        wanted
    }

    /// Whether the blend itself reads x.
    pub(super) fn reads_input(&self) -> bool {
        self.blend == Blend::Multiply && self.count > 0
    }

    /// Whether it reads 1 − A.
    fn reads_rest(&self) -> bool {
        self.host && self.blend == Blend::Convex && self.count > 0
    }
}

/// A blend placed on a device. Inputs: the outputs in seed order, then their factors (f32 scalars), then x, h and
/// 1 − A, each where the blend reads it. Output 0 is S or P, or y where the host ends the blend.
#[derive(Debug)]
pub(super) struct BlendPlan {
    pub(super) forward: Arc<dyn Executable>,
    pub(super) backward: Option<Arc<dyn Executable>>,
}

impl BlendPlan {
    pub(super) fn build(
        key: &BlendKey,
        backend: &dyn Backend,
        config: &EngineConfig,
    ) -> Result<Self, EngineError> {
        let failed = |reason: String| EngineError::Blend { reason };
        let graph = graph(key).map_err(|e| failed(e.to_string()))?;
        let wanted = key.wanted();
        let compile = |graph: &Graph| compile(graph, backend, config);
        if !wanted.contains(&true) {
            return Ok(Self { forward: compile(&graph)?, backward: None });
        }
        let mut both = differentiate(&graph, &Wants { inputs: &wanted, parameters: &[] })
            .map_err(|e| failed(e.to_string()))?;
        simplify(&mut both.backward);
        Ok(Self { forward: compile(&both.forward)?, backward: Some(compile(&both.backward)?) })
    }
}

fn compile(
    graph: &Graph,
    backend: &dyn Backend,
    config: &EngineConfig,
) -> Result<Arc<dyn Executable>, EngineError> {
    let none = PackedLayout::default();
    let options = CompileOptions {
        parameters: &none,
        buffers: &none,
        limit_bytes: config.max_plan_bytes,
        deadline: None,
    };
    backend.compile(graph, &options).map_err(|e| EngineError::Blend { reason: e.to_string() })
}

/// Adds gradients of one shape up, in order.
pub(super) fn sum_plan(
    count: usize,
    shape: &Shape,
    dtype: DType,
    backend: &dyn Backend,
    config: &EngineConfig,
) -> Result<Arc<dyn Executable>, EngineError> {
    let key = BlendKey {
        blend: Blend::Residual,
        count,
        host: false,
        shape: shape.clone(),
        dtype,
        wants_outputs: false,
        wants_factors: false,
        wants_input: false,
    };
    let graph = sum_graph(&key).map_err(|e| EngineError::Blend { reason: e.to_string() })?;
    compile(&graph, backend, config)
}

/// The type sums run in: at least f32.
fn wide(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

struct Drawing<'a> {
    key: &'a BlendKey,
    builder: Builder,
}

impl Drawing<'_> {
    /// A tensor input, widened.
    fn tensor(&mut self, n: usize) -> Result<ValueId, GraphError> {
        let value = self.builder.source(Source::Input(n as u32), self.key.shape.clone(), self.key.dtype)?;
        self.builder.apply(Op::Cast(wide(self.key.dtype)), &[value])
    }

    /// A scalar input, widened.
    fn factor(&mut self, n: usize) -> Result<ValueId, GraphError> {
        let value = self.builder.source(Source::Input(n as u32), Shape::scalar(), DType::F32)?;
        self.builder.apply(Op::Cast(wide(self.key.dtype)), &[value])
    }

    fn binary(&mut self, binary: Binary, a: ValueId, b: ValueId) -> Result<ValueId, GraphError> {
        self.builder.apply(Op::Binary(binary), &[a, b])
    }

    fn finish(mut self, result: Option<ValueId>, neutral: f64) -> Result<Graph, GraphError> {
        let result = match result {
            Some(value) => self.builder.apply(Op::Cast(self.key.dtype), &[value])?,
            None => {
                let (shape, dtype) = (self.key.shape.clone(), self.key.dtype);
                self.builder.apply(Op::Full { shape, dtype, value: neutral }, &[])?
            }
        };
        self.builder.sink(Sink::Output(0), result);
        let mut graph = self.builder.finish();
        simplify(&mut graph);
        Ok(graph)
    }
}

fn graph(key: &BlendKey) -> Result<Graph, GraphError> {
    let mut drawing = Drawing { key, builder: Builder::new() };
    let mut result = None;
    for n in 0..key.count {
        let (k, factor) = (drawing.tensor(n)?, drawing.factor(key.count + n)?);
        let (term, join) = match key.blend {
            Blend::Convex | Blend::Residual => (drawing.binary(Binary::Mul, k, factor)?, Binary::Add),
            Blend::Multiply => {
                let x = drawing.tensor(2 * key.count)?;
                let difference = drawing.binary(Binary::Sub, k, x)?;
                let bounded = drawing.builder.apply(Op::Unary(Unary::Tanh), &[difference])?;
                let scaled = drawing.binary(Binary::Mul, bounded, factor)?;
                (drawing.builder.apply(Op::Unary(Unary::AddScalar { value: 1.0 }), &[scaled])?, Binary::Mul)
            }
        };
        result = Some(match result {
            Some(before) => drawing.binary(join, before, term)?,
            None => term,
        });
    }
    if key.host {
        result = Some(with_host(&mut drawing, result)?);
    }
    drawing.finish(result, if key.blend == Blend::Multiply { 1.0 } else { 0.0 })
}

/// From S or P to y. The seeds' part is summed first, as it is where the trainer adds h.
fn with_host(drawing: &mut Drawing<'_>, seeds: Option<ValueId>) -> Result<ValueId, GraphError> {
    let key = drawing.key;
    let host = drawing.tensor(2 * key.count + 1)?;
    let Some(seeds) = seeds else { return Ok(host) };
    match key.blend {
        Blend::Residual => drawing.binary(Binary::Add, host, seeds),
        Blend::Multiply => drawing.binary(Binary::Mul, host, seeds),
        Blend::Convex => {
            let rest = drawing.factor(2 * key.count + 2)?;
            let part = drawing.binary(Binary::Mul, host, rest)?;
            drawing.binary(Binary::Add, part, seeds)
        }
    }
}

fn sum_graph(key: &BlendKey) -> Result<Graph, GraphError> {
    let mut drawing = Drawing { key, builder: Builder::new() };
    let mut sum = None;
    for n in 0..key.count {
        let term = drawing.tensor(n)?;
        sum = Some(match sum {
            Some(before) => drawing.binary(Binary::Add, before, term)?,
            None => term,
        });
    }
    drawing.finish(sum, 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{graph::reference::evaluate, tensor::HostTensor};

    const SHAPE: [usize; 2] = [2, 3];

    fn key(blend: Blend, count: usize, host: bool) -> BlendKey {
        let (shape, dtype) = (SHAPE.into(), DType::F64);
        let (wants_outputs, wants_factors, wants_input) = (true, true, true);
        BlendKey { blend, count, host, shape, dtype, wants_outputs, wants_factors, wants_input }
    }

    fn tensor(n: usize) -> Vec<f64> {
        (0..6).map(|i| ((n * 7 + i * 3) as f64 * 0.71).sin()).collect()
    }

    /// S or P, or y, by the graph.
    fn blended(blend: Blend, alphas: &[f32], host: bool) -> Vec<f64> {
        let key = key(blend, alphas.len(), host);
        let mix = Mix::new(blend, alphas);
        let results = evaluate(&graph(&key).unwrap(), |source| feed(source, &mix), 0).unwrap();
        results[0].1.to_f64()
    }

    fn feed(source: Source, mix: &Mix) -> HostTensor {
        let Source::Input(n) = source else { panic!("{source:?}") };
        let (n, count) = (n as usize, mix.factors.len());
        let scalar = |value: f32| HostTensor::from_values(Shape::scalar(), &[value]).unwrap();
        match n {
            n if (count..2 * count).contains(&n) => scalar(mix.factors[n - count]),
            n if n == 2 * count + 2 => scalar(mix.rest),
            n => HostTensor::from_values(SHAPE.into(), &tensor(n)).unwrap(),
        }
    }

    #[test]
    fn blends_follow_their_formulas() {
        for (alphas, total) in [(vec![0.25f32, 0.5], 0.75), (vec![1.0, 0.5, 0.5], 2.0), (vec![], 0.0)] {
            let count = alphas.len();
            for i in 0..6 {
                let sum =
                    |scale: f64| (0..count).map(|s| f64::from(alphas[s]) * scale * tensor(s)[i]).sum::<f64>();
                let (x, h) = (tensor(2 * count)[i], tensor(2 * count + 1)[i]);
                let product: f64 =
                    (0..count).map(|s| 1.0 + f64::from(alphas[s]) * (tensor(s)[i] - x).tanh()).product();
                let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-6, "{alphas:?}: {a} {b}");
                close(blended(Blend::Residual, &alphas, false)[i], sum(1.0));
                close(blended(Blend::Residual, &alphas, true)[i], h + sum(1.0));
                let convex = sum(1.0 / f64::max(total, 1.0));
                close(blended(Blend::Convex, &alphas, false)[i], convex);
                close(blended(Blend::Convex, &alphas, true)[i], (1.0 - total.min(1.0)) * h + convex);
                close(blended(Blend::Multiply, &alphas, false)[i], product);
                close(blended(Blend::Multiply, &alphas, true)[i], h * product);
            }
            assert_eq!(total_weight(&alphas), (total as f32).min(1.0));
        }
    }

    /// The gradients of α by the graphs, and of h.
    fn gradients(blend: Blend, alphas: &[f32], host: bool, g: &[f64]) -> (Factors, Option<Vec<f64>>) {
        let key = key(blend, alphas.len(), host);
        let mix = Mix::new(blend, alphas);
        let both =
            differentiate(&graph(&key).unwrap(), &Wants { inputs: &key.wanted(), parameters: &[] }).unwrap();
        let forward = evaluate(&both.forward, |source| feed(source, &mix), 0).unwrap();
        let backward = evaluate(
            &both.backward,
            |source| match source {
                Source::GradOutput(_) => HostTensor::from_values(SHAPE.into(), g).unwrap(),
                Source::Saved(n) => forward.iter().find(|(s, _)| *s == Sink::Saved(n)).unwrap().1.clone(),
                other => feed(other, &mix),
            },
            0,
        )
        .unwrap();
        let of = |input: usize| {
            let sink = Sink::GradInput(input as u32);
            backward.iter().find(|(found, _)| *found == sink).map(|(_, gradient)| gradient.to_f64())
        };
        let count = key.count;
        let of_factors: Vec<f32> = (0..count).map(|s| of(count + s).unwrap()[0] as f32).collect();
        let of_rest = of(2 * count + 2).map_or(0.0, |gradient| gradient[0] as f32);
        (alpha_gradients(blend, alphas, &of_factors, of_rest), of(2 * count + 1))
    }

    #[test]
    fn gradients_of_alphas_equal_finite_differences() {
        let g = tensor(99);
        for blend in [Blend::Convex, Blend::Residual, Blend::Multiply] {
            for (alphas, host) in [
                (vec![0.25f32, 0.5], false),
                (vec![0.75, 0.5, 0.5], false),
                (vec![0.25, 0.5], true),
                (vec![0.75, 0.5, 0.5], true),
            ] {
                let loss = |alphas: &[f32]| {
                    blended(blend, alphas, host).iter().zip(&g).map(|(y, g)| y * g).sum::<f64>()
                };
                for (s, gradient) in gradients(blend, &alphas, host, &g).0.into_iter().enumerate() {
                    let at = |delta: f32| {
                        let mut moved = alphas.clone();
                        moved[s] += delta;
                        loss(&moved)
                    };
                    let step = 1.0 / 256.0;
                    let numeric = (at(step) - at(-step)) / (2.0 * f64::from(step));
                    assert!((numeric - f64::from(gradient)).abs() < 1e-3, "{blend}: {numeric} {gradient}");
                }
            }
        }
    }

    #[test]
    fn a_host_alone_is_passed_through_both_ways() {
        let g = tensor(99);
        for blend in [Blend::Convex, Blend::Residual, Blend::Multiply] {
            assert_eq!(blended(blend, &[], true), tensor(1));
            let (alphas, of_host) = gradients(blend, &[], true, &g);
            assert_eq!((alphas.len(), of_host), (0, Some(g.clone())));
        }
    }
}
