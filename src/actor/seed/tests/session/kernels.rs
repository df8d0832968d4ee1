//! Kernels that can be computed by hand, some of which fail.

use std::sync::Arc;

use crate::{
    digest::Digest,
    engine::{Kernel, KernelParts, PlanKey, Program, Weight},
    fault::Fault,
    graph::{Binary, Builder, Graph, GraphError, Limits, Op, Sink, Source, Unary},
    id::KernelId,
    tensor::{DType, HostTensor, Shape},
    validation::Metadata,
};

pub(super) const BATCH: usize = 2;
pub(super) const WIDTH: usize = 3;
pub(super) const ELEMENTS: usize = BATCH * WIDTH;
/// Bytes of a kernel's block of parameters.
pub(super) const GRADIENT_BYTES: usize = 64;

/// Two that never fail, one that cannot have negative numbers, one that gives too much, and one that there is not.
pub(super) const NAMES: [&str; 5] = ["a", "b", "root", "wide", "absent"];
pub(super) const ROOT: usize = 2;
pub(super) const WIDE: usize = 3;
pub(super) const ABSENT: usize = 4;

const WEIGHTS: [[f32; WIDTH]; 4] = [[0.75, -0.5, 1.25], [-1.0, 0.5, 0.625], [0.5, 1.0, -0.75], [1.0; WIDTH]];

/// One number of what a kernel gives, with `more` added to its weight.
pub(super) fn value(kernel: usize, column: usize, more: f64, x: f64) -> f64 {
    let w = f64::from(WEIGHTS[kernel][column]) + more;
    if kernel == ROOT { w * x.sqrt() } else { (w * x).tanh() }
}

pub(super) fn id(kernel: usize) -> KernelId {
    NAMES[kernel].parse().unwrap()
}

/// tanh(w·x) or w·√x, with a weight for each feature; buffer 0 counts training passes.
#[derive(Debug)]
struct Small {
    kernel: usize,
}

impl Small {
    fn graph(&self, key: &PlanKey, limits: &Limits) -> Result<Graph, GraphError> {
        let mut builder = Builder::with_limits(*limits);
        let x = builder.source(Source::Input(0), key.input_shape.clone(), key.dtype)?;
        let w = builder.source(Source::Parameter(0), [WIDTH].into(), DType::F32)?;
        let mut y = if self.kernel == ROOT {
            let root = builder.apply(Op::Unary(Unary::Sqrt), &[x])?;
            builder.apply(Op::Binary(Binary::Mul), &[root, w])?
        } else {
            let product = builder.apply(Op::Binary(Binary::Mul), &[x, w])?;
            builder.apply(Op::Unary(Unary::Tanh), &[product])?
        };
        if self.kernel == WIDE {
            y = builder.apply(Op::Cat { dim: 1 }, &[y, y])?;
        }
        builder.sink(Sink::Output(0), y);
        if key.train {
            let count = builder.source(Source::Buffer(0), Shape::scalar(), DType::F32)?;
            let next = builder.apply(Op::Unary(Unary::AddScalar { value: 1.0 }), &[count])?;
            builder.sink(Sink::BufferUpdate(0), next);
        }
        Ok(builder.finish())
    }
}

impl Program for Small {
    fn lower(&self, key: &PlanKey, limits: &Limits) -> Result<Graph, Box<dyn Fault + Send + Sync>> {
        self.graph(key, limits).map_err(|error| Box::new(error) as Box<dyn Fault + Send + Sync>)
    }
}

pub(super) fn kernel(n: usize) -> Arc<Kernel> {
    let weight = |name: &str, tensor, requires_grad| Weight {
        name: name.to_owned(),
        tensor,
        requires_grad,
        aliases: Vec::new(),
        persistent: true,
    };
    let parts = KernelParts {
        id: id(n),
        digest: Digest::of(NAMES[n].as_bytes()),
        metadata: Metadata::bare(id(n)),
        verdict: None,
        parameters: vec![weight("w", HostTensor::from_values([WIDTH].into(), &WEIGHTS[n]).unwrap(), true)],
        buffers: vec![weight("count", HostTensor::from_values(Shape::scalar(), &[0f32]).unwrap(), false)],
        program: Box::new(Small { kernel: n }),
    };
    Arc::new(Kernel::new(parts).unwrap())
}
