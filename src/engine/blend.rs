//! How the outputs of a layer's seeds are put together, as graphs: the device that runs the kernels runs
//! the blend, and its gradient comes by the same rules.
//!
//! The daemon computes the seeds' part alone, S = Σ w_s·k_s(x) or P = Π (1 + α_s·tanh(k_s(x) − x)); the
//! default transform's output and the factor (1 − A) are the trainer's.

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

/// By seed that runs: the factors of its output.
pub(super) type Factors = SmallVec<[f32; 4]>;

/// A, the part of the layer's output that the seeds take: min(1, Σ α_s).
pub(super) fn total_weight(alphas: &[f32]) -> f32 {
    alphas.iter().sum::<f32>().min(1.0)
}

/// The factor of each seed's output in the blend: w_s = A·α_s/Σα_s where convex, else α_s.
pub(super) fn weights(blend: Blend, alphas: &[f32]) -> Factors {
    let total: f32 = alphas.iter().sum();
    let scale = if blend == Blend::Convex && total > 1.0 { 1.0 / total } else { 1.0 };
    alphas.iter().map(|alpha| alpha * scale).collect()
}

/// The gradient of each α from the gradient of each factor: the seeds' part of it. Where convex, the
/// trainer subtracts ⟨h, g⟩ as long as Σ α ≤ 1.
///
/// With T = Σα > 1: w_s = α_s/T, so ∂/∂α_s = (d_s − Σ w_j·d_j)/T.
pub(super) fn alpha_gradients(blend: Blend, alphas: &[f32], of_weights: &[f32]) -> Factors {
    let total: f32 = alphas.iter().sum();
    if blend != Blend::Convex || total <= 1.0 {
        return of_weights.into();
    }
    let mean: f32 = alphas.iter().zip(of_weights).map(|(alpha, d)| alpha / total * d).sum();
    of_weights.iter().map(|d| (d - mean) / total).collect()
}

/// What a blend's plan depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BlendKey {
    pub(super) blend: Blend,
    /// How many outputs are blended.
    pub(super) count: usize,
    pub(super) shape: Shape,
    pub(super) dtype: DType,
    /// Whether a backward will want the gradients of the outputs.
    pub(super) wants_outputs: bool,
    /// Whether a backward will want the gradients of the factors.
    pub(super) wants_factors: bool,
    /// Whether a backward will want the gradient of x, where the blend itself reads it.
    pub(super) wants_input: bool,
}

/// A blend placed on a device. Inputs: the outputs in seed order, then their factors (f32 scalars), then x
/// where the blend multiplies. Output 0 is S or P.
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
        let mut wanted = vec![key.wants_outputs; key.count];
        wanted.resize(2 * key.count, key.wants_factors);
        wanted.push(key.wants_input && key.blend == Blend::Multiply);
        let compile = |graph: &Graph| compile(graph, backend, config);
        if key.count == 0 || !wanted.contains(&true) {
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

    fn factor(&mut self, n: usize) -> Result<ValueId, GraphError> {
        let value =
            self.builder.source(Source::Input((self.key.count + n) as u32), Shape::scalar(), DType::F32)?;
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
        let (k, factor) = (drawing.tensor(n)?, drawing.factor(n)?);
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
    drawing.finish(result, if key.blend == Blend::Multiply { 1.0 } else { 0.0 })
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

    fn key(blend: Blend, count: usize) -> BlendKey {
        let wanted = (true, true, true);
        BlendKey {
            blend,
            count,
            shape: SHAPE.into(),
            dtype: DType::F64,
            wants_outputs: wanted.0,
            wants_factors: wanted.1,
            wants_input: wanted.2,
        }
    }

    fn tensor(n: usize) -> Vec<f64> {
        (0..6).map(|i| ((n * 7 + i * 3) as f64 * 0.71).sin()).collect()
    }

    /// S or P by the graph, with factors by [`weights`].
    fn blended(blend: Blend, alphas: &[f32]) -> Vec<f64> {
        let key = key(blend, alphas.len());
        let factors = weights(blend, alphas);
        let results = evaluate(&graph(&key).unwrap(), |source| feed(source, &factors), 0).unwrap();
        results[0].1.to_f64()
    }

    fn feed(source: Source, factors: &[f32]) -> HostTensor {
        let Source::Input(n) = source else { panic!("{source:?}") };
        let (n, count) = (n as usize, factors.len());
        if (count..2 * count).contains(&n) {
            return HostTensor::from_values(Shape::scalar(), &[factors[n - count]]).unwrap();
        }
        HostTensor::from_values(SHAPE.into(), &tensor(n)).unwrap()
    }

    #[test]
    fn blends_follow_their_formulas() {
        for (alphas, total) in [(vec![0.25f32, 0.5], 0.75), (vec![1.0, 0.5, 0.5], 2.0), (vec![], 0.0)] {
            let count = alphas.len();
            for i in 0..6 {
                let sum =
                    |scale: f64| (0..count).map(|s| f64::from(alphas[s]) * scale * tensor(s)[i]).sum::<f64>();
                let x = tensor(2 * count)[i];
                let product: f64 =
                    (0..count).map(|s| 1.0 + f64::from(alphas[s]) * (tensor(s)[i] - x).tanh()).product();
                let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-6, "{alphas:?}: {a} {b}");
                close(blended(Blend::Residual, &alphas)[i], sum(1.0));
                close(blended(Blend::Convex, &alphas)[i], sum(1.0 / f64::max(total, 1.0)));
                close(blended(Blend::Multiply, &alphas)[i], product);
            }
            assert_eq!(total_weight(&alphas), (total as f32).min(1.0));
        }
    }

    #[test]
    fn gradients_of_alphas_equal_finite_differences() {
        for blend in [Blend::Convex, Blend::Residual, Blend::Multiply] {
            for alphas in [vec![0.25f32, 0.5], vec![0.75, 0.5, 0.5]] {
                let g = tensor(99);
                let loss =
                    |alphas: &[f32]| blended(blend, alphas).iter().zip(&g).map(|(y, g)| y * g).sum::<f64>();
                let key = key(blend, alphas.len());
                let mut wanted = vec![true; 2 * key.count];
                wanted.push(blend == Blend::Multiply);
                let both = differentiate(&graph(&key).unwrap(), &Wants { inputs: &wanted, parameters: &[] })
                    .unwrap();
                let factors = weights(blend, &alphas);
                let forward = evaluate(&both.forward, |source| feed(source, &factors), 0).unwrap();
                let backward = evaluate(
                    &both.backward,
                    |source| match source {
                        Source::GradOutput(_) => HostTensor::from_values(SHAPE.into(), &g).unwrap(),
                        Source::Saved(n) => {
                            forward.iter().find(|(s, _)| *s == Sink::Saved(n)).unwrap().1.clone()
                        }
                        other => feed(other, &factors),
                    },
                    0,
                )
                .unwrap();
                let of_factors: Vec<f32> = (0..key.count)
                    .map(|s| {
                        let sink = Sink::GradInput((key.count + s) as u32);
                        backward.iter().find(|(found, _)| *found == sink).unwrap().1.to_f64()[0] as f32
                    })
                    .collect();
                for (s, gradient) in alpha_gradients(blend, &alphas, &of_factors).into_iter().enumerate() {
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
}
