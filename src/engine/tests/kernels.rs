//! Kernels simple enough to be computed by hand.

use std::sync::Arc;

use super::fixture::{BATCH, WIDTH};
use crate::{
    backend::{Backend, HostMemory, Memory as _, test_device::device},
    digest::Digest,
    engine::{Kernel, KernelParts, LiveSeed, PlanKey, Program, Weight},
    fault::Fault,
    graph::{Binary, Builder, Conv2d, Graph, GraphError, Limits, Op, Sink, Source, Unary},
    id::Generation,
    tensor::{DType, HostTensor, Shape},
    validation::Metadata,
};

/// k(x) = tanh(x·w), element by element, w repeated over the batch. In training mode buffer 0 counts passes.
#[derive(Debug)]
struct TanhProgram {
    /// Sizes of the output; another than the input's makes a kernel that does not fit.
    output: Shape,
}

impl TanhProgram {
    fn graph(&self, key: &PlanKey) -> Result<Graph, GraphError> {
        let mut b = Builder::new();
        let x = b.source(Source::Input(0), key.input_shape.clone(), key.dtype)?;
        let w = b.source(Source::Parameter(0), [WIDTH].into(), DType::F32)?;
        let product = b.apply(Op::Binary(Binary::Mul), &[x, w])?;
        let y = b.apply(Op::Unary(Unary::Tanh), &[product])?;
        let y = b.apply(Op::Reshape(self.output.clone()), &[y])?;
        b.sink(Sink::Output(0), y);
        if key.train {
            let count = b.source(Source::Buffer(0), Shape::scalar(), DType::F32)?;
            let next = b.apply(Op::Unary(Unary::AddScalar { value: 1.0 }), &[count])?;
            b.sink(Sink::BufferUpdate(0), next);
        }
        Ok(b.finish())
    }
}

impl Program for TanhProgram {
    fn lower(&self, key: &PlanKey, _limits: &Limits) -> Result<Graph, Box<dyn Fault + Send + Sync>> {
        self.graph(key).map_err(|error| Box::new(error) as Box<dyn Fault + Send + Sync>)
    }
}

/// k(x) = x + c.
#[derive(Debug)]
struct ShiftProgram(f32);

impl Program for ShiftProgram {
    fn lower(&self, key: &PlanKey, _limits: &Limits) -> Result<Graph, Box<dyn Fault + Send + Sync>> {
        let graph = || -> Result<Graph, GraphError> {
            let mut b = Builder::new();
            let x = b.source(Source::Input(0), key.input_shape.clone(), key.dtype)?;
            let y = b.apply(Op::Unary(Unary::AddScalar { value: self.0.into() }), &[x])?;
            b.sink(Sink::Output(0), y);
            Ok(b.finish())
        };
        graph().map_err(|error| Box::new(error) as Box<dyn Fault + Send + Sync>)
    }
}

/// k(x) = dropout(tanh(x·w))·(1 + passes), and buffer 0 counts passes in training mode: what it gives depends on the
/// pass's masks and on what earlier passes have left.
#[derive(Debug)]
struct MoodyProgram;

impl Program for MoodyProgram {
    fn lower(&self, key: &PlanKey, _limits: &Limits) -> Result<Graph, Box<dyn Fault + Send + Sync>> {
        let graph = || -> Result<Graph, GraphError> {
            let mut b = Builder::new();
            let x = b.source(Source::Input(0), key.input_shape.clone(), key.dtype)?;
            let w = b.source(Source::Parameter(0), [WIDTH].into(), DType::F32)?;
            let passes = b.source(Source::Buffer(0), Shape::scalar(), DType::F32)?;
            let product = b.apply(Op::Binary(Binary::Mul), &[x, w])?;
            let mut y = b.apply(Op::Unary(Unary::Tanh), &[product])?;
            let next = b.apply(Op::Unary(Unary::AddScalar { value: 1.0 }), &[passes])?;
            if key.train {
                y = b.apply(Op::Dropout { p: 0.5, site: 0 }, &[y])?;
                b.sink(Sink::BufferUpdate(0), next);
            }
            y = b.apply(Op::Binary(Binary::Mul), &[y, next])?;
            b.sink(Sink::Output(0), y);
            Ok(b.finish())
        };
        graph().map_err(|error| Box::new(error) as Box<dyn Fault + Send + Sync>)
    }
}

/// k(x) = tanh((x·w)·wᵀ): products of matrices, where w is one column.
#[derive(Debug)]
struct MixingProgram;

impl Program for MixingProgram {
    fn lower(&self, key: &PlanKey, _limits: &Limits) -> Result<Graph, Box<dyn Fault + Send + Sync>> {
        let graph = || -> Result<Graph, GraphError> {
            let mut b = Builder::new();
            let x = b.source(Source::Input(0), key.input_shape.clone(), key.dtype)?;
            let w = b.source(Source::Parameter(0), [WIDTH].into(), DType::F32)?;
            let w = b.apply(Op::Reshape([WIDTH, 1].into()), &[w])?;
            let y = b.apply(Op::MatMul { transpose_a: false, transpose_b: false }, &[x, w])?;
            let y = b.apply(Op::MatMul { transpose_a: false, transpose_b: true }, &[y, w])?;
            let y = b.apply(Op::Unary(Unary::Tanh), &[y])?;
            b.sink(Sink::Output(0), y);
            Ok(b.finish())
        };
        graph().map_err(|error| Box::new(error) as Box<dyn Fault + Send + Sync>)
    }
}

pub(super) fn mixing_on(backend: &dyn Backend, n: usize) -> Arc<LiveSeed> {
    live_on(backend, of_program(&format!("mixing-{n}"), &weights_of(n), Box::new(MixingProgram)), n as u64)
}

/// k(x) = tanh(x ∗ w), where each row of x is an image of two rows, and w one filter of as many taps as it has numbers.
#[derive(Debug)]
struct ConvolvingProgram;

impl Program for ConvolvingProgram {
    fn lower(&self, key: &PlanKey, _limits: &Limits) -> Result<Graph, Box<dyn Fault + Send + Sync>> {
        let graph = || -> Result<Graph, GraphError> {
            let mut b = Builder::new();
            let x = b.source(Source::Input(0), key.input_shape.clone(), key.dtype)?;
            let w = b.source(Source::Parameter(0), [WIDTH].into(), DType::F32)?;
            let images = [key.input_shape[0], 1, 2, WIDTH / 2];
            let x = b.apply(Op::Reshape(images.into()), &[x])?;
            let w = b.apply(Op::Reshape([1, 1, 2, WIDTH / 2].into()), &[w])?;
            // A row of zeros on both sides gives one row too many, of which the last is cut off.
            let conv = Conv2d { stride: [1, 1], padding: [1, WIDTH / 4], dilation: [1, 1], groups: 1 };
            let y = b.apply(Op::Conv2d(conv), &[x, w])?;
            let y = b.apply(Op::Slice { dim: 2, start: 0, len: 2, step: 1 }, &[y])?;
            let y = b.apply(Op::Reshape(key.input_shape.clone()), &[y])?;
            let y = b.apply(Op::Unary(Unary::Tanh), &[y])?;
            b.sink(Sink::Output(0), y);
            Ok(b.finish())
        };
        graph().map_err(|error| Box::new(error) as Box<dyn Fault + Send + Sync>)
    }
}

pub(super) fn convolving_on(backend: &dyn Backend, n: usize) -> Arc<LiveSeed> {
    let program = Box::new(ConvolvingProgram);
    live_on(backend, of_program(&format!("convolving-{n}"), &weights_of(n), program), n as u64)
}

pub(super) fn moody(n: usize) -> Arc<LiveSeed> {
    live(of_program(&format!("moody-{n}"), &weights_of(n), Box::new(MoodyProgram)), n as u64)
}

pub(super) fn shift_kernel(by: f32) -> Arc<Kernel> {
    let id: crate::id::KernelId = "shift".parse().unwrap();
    let parts = KernelParts {
        digest: Digest::of(b"shift"),
        metadata: Metadata::bare(id.clone()),
        id,
        verdict: None,
        parameters: Vec::new(),
        buffers: Vec::new(),
        program: Box::new(ShiftProgram(by)),
    };
    Arc::new(Kernel::new(parts).unwrap())
}

pub(super) fn kernel(name: &str, w: &[f32], output: [usize; 2]) -> Arc<Kernel> {
    of_program(name, w, Box::new(TanhProgram { output: output.into() }))
}

fn of_program(name: &str, w: &[f32], program: Box<dyn Program>) -> Arc<Kernel> {
    let id: crate::id::KernelId = name.parse().unwrap();
    let weight = |name: &str, tensor, requires_grad| Weight {
        name: name.to_owned(),
        tensor,
        requires_grad,
        aliases: Vec::new(),
        persistent: true,
    };
    let parts = KernelParts {
        digest: Digest::of(name.as_bytes()),
        metadata: Metadata::bare(id.clone()),
        id,
        verdict: None,
        parameters: vec![weight("w", HostTensor::from_values([WIDTH].into(), w).unwrap(), true)],
        buffers: vec![weight("count", HostTensor::from_values(Shape::scalar(), &[0f32]).unwrap(), false)],
        program,
    };
    Arc::new(Kernel::new(parts).unwrap())
}

pub(super) fn live(kernel: Arc<Kernel>, generation: u64) -> Arc<LiveSeed> {
    live_on(&*device(1), kernel, generation)
}

pub(super) fn live_on(backend: &dyn Backend, kernel: Arc<Kernel>, generation: u64) -> Arc<LiveSeed> {
    let memory = HostMemory::new(kernel.memory_bytes());
    assert!(kernel.initialise(memory.region()));
    let shared = backend.share(Arc::new(memory)).unwrap();
    Arc::new(LiveSeed::new(kernel, shared, Generation(generation)).unwrap())
}

/// Weights of the n-th kernel.
pub(super) fn weights_of(n: usize) -> Vec<f32> {
    (0..WIDTH).map(|i| ((n * 5 + i) as f32 * 0.83).sin()).collect()
}

pub(super) fn seed(n: usize) -> Arc<LiveSeed> {
    seed_on(&*device(1), n)
}

pub(super) fn seed_on(backend: &dyn Backend, n: usize) -> Arc<LiveSeed> {
    live_on(backend, kernel(&format!("tanh-{n}"), &weights_of(n), [BATCH, WIDTH]), n as u64)
}

pub(super) fn passes_counted(live: &LiveSeed) -> f32 {
    let mut bytes = [0; 4];
    assert!(live.buffers().read(&mut bytes));
    f32::from_le_bytes(bytes)
}

/// Overwrites a seed's parameters, as its trainer may.
pub(super) fn set_weights(live: &LiveSeed, w: &[f32]) {
    let bytes: Vec<u8> = w.iter().flat_map(|v| v.to_le_bytes()).collect();
    assert!(live.parameters().write(&bytes));
}
