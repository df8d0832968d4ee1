//! Kernels small enough to compute by hand: k(x) = w·x + b, with one weight and one bias for each feature,
//! and a buffer that counts the passes in training mode.

use std::sync::Arc;

use crate::{
    backend::test_device::device,
    digest::Digest,
    engine::{Kernel, KernelParts, LiveSeed, PlanKey, Program, Weight},
    fault::Fault,
    graph::{Binary, Builder, Graph, GraphError, Limits, Op, Sink, Source, Unary},
    id::Generation,
    tensor::{DType, HostTensor, Shape},
    validation::Metadata,
    wire::SharedMemory,
};

pub(super) const FEATURES: usize = 3;
/// Bytes of a kernel's block of parameters: two tensors of three numbers, a cache line each.
pub(super) const GRADIENT_BYTES: usize = 128;

#[derive(Debug)]
struct Affine {
    /// Gives one feature more than it should.
    is_too_wide: bool,
}

impl Program for Affine {
    fn lower(&self, key: &PlanKey, limits: &Limits) -> Result<Graph, Box<dyn Fault + Send + Sync>> {
        self.graph(key, limits).map_err(|error| Box::new(error) as Box<dyn Fault + Send + Sync>)
    }
}

impl Affine {
    fn graph(&self, key: &PlanKey, limits: &Limits) -> Result<Graph, GraphError> {
        let mut builder = Builder::with_limits(*limits);
        let row = Shape::from([FEATURES]);
        let x = builder.source(Source::Input(0), key.input_shape.clone(), key.dtype)?;
        let w = builder.source(Source::Parameter(0), row.clone(), DType::F32)?;
        let b = builder.source(Source::Parameter(1), row, DType::F32)?;
        let scaled = builder.apply(Op::Binary(Binary::Mul), &[x, w])?;
        let mut y = builder.apply(Op::Binary(Binary::Add), &[scaled, b])?;
        if self.is_too_wide {
            y = builder.apply(Op::Cat { dim: 1 }, &[y, y])?;
        }
        builder.sink(Sink::Output(0), y);
        if key.train {
            let count = builder.source(Source::Buffer(0), Shape::from([1]), DType::F32)?;
            let next = builder.apply(Op::Unary(Unary::AddScalar { value: 1.0 }), &[count])?;
            builder.sink(Sink::BufferUpdate(0), next);
        }
        Ok(builder.finish())
    }
}

pub(super) fn kernel(id: &str, w: [f32; FEATURES], b: [f32; FEATURES]) -> Arc<Kernel> {
    make(id, w, b, false)
}

pub(super) fn too_wide(id: &str) -> Arc<Kernel> {
    make(id, [1.0; FEATURES], [0.0; FEATURES], true)
}

fn make(id: &str, w: [f32; FEATURES], b: [f32; FEATURES], is_too_wide: bool) -> Arc<Kernel> {
    let weight = |name: &str, values: &[f32], requires_grad| {
        let tensor = HostTensor::from_values(Shape::from([values.len()]), values).unwrap();
        Weight { name: name.to_owned(), tensor, requires_grad, aliases: Vec::new(), persistent: true }
    };
    let id = id.parse::<crate::id::KernelId>().unwrap();
    let parts = KernelParts {
        id: id.clone(),
        digest: Digest::of(id.as_str().as_bytes()),
        metadata: Metadata::bare(id),
        verdict: None,
        parameters: vec![weight("w", &w, true), weight("b", &b, true)],
        buffers: vec![weight("passes", &[0.0], false)],
        program: Box::new(Affine { is_too_wide }),
    };
    Arc::new(Kernel::new(parts).unwrap())
}

/// A live seed in shared memory, and that memory.
pub(super) fn live(kernel: &Arc<Kernel>, generation: u64) -> (Arc<LiveSeed>, Arc<SharedMemory>) {
    let memory = Arc::new(SharedMemory::create("test-seed", kernel.memory_bytes()).unwrap());
    assert!(kernel.initialise(memory.region()));
    let live =
        LiveSeed::new(kernel.clone(), device(1).share(memory.clone()).unwrap(), Generation(generation))
            .unwrap();
    (Arc::new(live), memory)
}

/// How many passes in training mode a seed has committed.
pub(super) fn passes(memory: &SharedMemory) -> f32 {
    memory.floats(GRADIENT_BYTES as u64, 1).unwrap().get(0).unwrap()
}
