//! Kernels of the reference passes.

use std::sync::Arc;

use kasmina::{
    digest::Digest,
    engine::{Kernel, KernelParts, PlanKey, Program, Weight},
    fault::Fault,
    graph::{Binary, Builder, Conv2d, Graph, GraphError, Limits, Op, Sink, Source, Unary, ValueId},
    id::KernelId,
    tensor::{DType, HostTensor, Shape},
    validation::Metadata,
};

use crate::numbers;

/// A kernel whose output has its input's shape.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Subject {
    /// Linear, GELU, linear.
    Perceptron,
    /// 3×3 convolution, BatchNorm, ReLU.
    Convolution,
}

/// Channels of the convolution.
pub(crate) const CHANNELS: usize = 32;
/// Features of the perceptron's input and output, and between its layers.
pub(crate) const OUTER: usize = 128;
pub(crate) const INNER: usize = 256;

impl Subject {
    /// As large as what goes by Winograd's algorithm and by blocks.
    pub(crate) fn shape(self) -> Shape {
        match self {
            Self::Perceptron => [32, OUTER].into(),
            Self::Convolution => [8, CHANNELS, 16, 16].into(),
        }
    }

    fn parameters(self) -> Vec<Shape> {
        match self {
            Self::Perceptron => {
                vec![[INNER, OUTER].into(), [INNER].into(), [OUTER, INNER].into(), [OUTER].into()]
            }
            Self::Convolution => {
                vec![[CHANNELS, CHANNELS, 3, 3].into(), [CHANNELS].into(), [CHANNELS].into()]
            }
        }
    }

    /// The running mean and variance.
    fn buffers(self) -> Vec<Shape> {
        match self {
            Self::Perceptron => Vec::new(),
            Self::Convolution => vec![[CHANNELS].into(), [CHANNELS].into()],
        }
    }

    fn graph(self, key: &PlanKey) -> Result<Graph, GraphError> {
        let mut builder = Builder::new();
        let b = &mut builder;
        let x = b.source(Source::Input(0), key.input_shape.clone(), key.dtype)?;
        let sources = |b: &mut Builder, shapes: Vec<Shape>, of: fn(u32) -> Source| {
            let sources = (0..).zip(shapes).map(|(n, shape)| b.source(of(n), shape, DType::F32));
            sources.collect::<Result<Vec<ValueId>, _>>()
        };
        let parameters = sources(b, self.parameters(), Source::Parameter)?;
        let buffers = sources(b, self.buffers(), Source::Buffer)?;
        let y = match self {
            Self::Perceptron => {
                let inner = linear(b, x, &parameters[..2])?;
                let inner = b.apply(Op::Unary(Unary::Gelu), &[inner])?;
                linear(b, inner, &parameters[2..])?
            }
            Self::Convolution => {
                let conv = Conv2d { stride: [1, 1], padding: [1, 1], dilation: [1, 1], groups: 1 };
                let y = b.apply(Op::Conv2d(conv), &[x, parameters[0]])?;
                let y = if key.train {
                    let of = b.push(Op::BatchNorm { eps: 1e-5 }, &[y, parameters[1], parameters[2]])?;
                    for (n, new) in (0..).zip([of[1], of[3]]) {
                        let old =
                            b.apply(Op::Unary(Unary::MulScalar { value: 0.9 }), &[buffers[n as usize]])?;
                        let new = b.apply(Op::Unary(Unary::MulScalar { value: 0.1 }), &[new])?;
                        let next = b.apply(Op::Binary(Binary::Add), &[old, new])?;
                        b.sink(Sink::BufferUpdate(n), next);
                    }
                    of[0]
                } else {
                    let operands = [&[y, parameters[1], parameters[2]], &buffers[..]].concat();
                    b.apply(Op::BatchNormEval { eps: 1e-5 }, &operands)?
                };
                b.apply(Op::Unary(Unary::Relu), &[y])?
            }
        };
        b.sink(Sink::Output(0), y);
        Ok(builder.finish())
    }

    pub(crate) fn kernel(self) -> Arc<Kernel> {
        let id: KernelId = format!("{self:?}").parse().unwrap();
        let weight = |shape: Shape, values: Vec<f32>, requires_grad| Weight {
            name: "w".into(),
            tensor: HostTensor::from_values(shape, &values).unwrap(),
            requires_grad,
            aliases: Vec::new(),
            persistent: true,
        };
        let parts = KernelParts {
            digest: Digest::of(id.as_str().as_bytes()),
            metadata: Metadata::bare(id.clone()),
            id,
            verdict: None,
            parameters: self
                .parameters()
                .into_iter()
                .map(|shape| (numbers(shape.elements()), shape))
                .map(|(values, shape)| weight(shape, values, true))
                .collect(),
            buffers: self
                .buffers()
                .into_iter()
                .map(|shape| (vec![1.0; shape.elements()], shape))
                .map(|(values, shape)| weight(shape, values, false))
                .collect(),
            program: Box::new(self),
        };
        Arc::new(Kernel::new(parts).unwrap())
    }
}

impl Program for Subject {
    fn lower(&self, key: &PlanKey, _limits: &Limits) -> Result<Graph, Box<dyn Fault + Send + Sync>> {
        self.graph(key).map_err(|error| Box::new(error) as _)
    }
}

fn linear(b: &mut Builder, x: ValueId, parameters: &[ValueId]) -> Result<ValueId, GraphError> {
    let y = b.apply(Op::MatMul { transpose_a: false, transpose_b: true }, &[x, parameters[0]])?;
    b.apply(Op::Binary(Binary::Add), &[y, parameters[1]])
}
