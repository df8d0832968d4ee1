//! Allocations of a plan's run.
//!
//! What is small goes through the `gemm` crate, which allocates; what is as large as a layer of a network must not.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use kasmina::{
    backend::{
        Backend, Bindings, CompileOptions, Executable, MemoryNeeds, PassBlocks, Queue, RunContext, RunError,
        cpu::CpuBackend,
    },
    graph::{Builder, Conv2d, Graph, Op, Sink, Source, Unary, ValueId},
    tensor::{DType, HostTensor, PackedLayout, Shape},
};

use crate::{counted, numbers};

/// A plan that tells the least that a run of it has allocated: a backend's threads allocate when they come to start.
#[derive(Debug)]
struct Counted {
    plan: Arc<dyn Executable>,
    allocations: AtomicUsize,
}

impl Executable for Counted {
    fn needs(&self) -> &MemoryNeeds {
        self.plan.needs()
    }

    fn held_bytes(&self) -> usize {
        self.plan.held_bytes()
    }

    fn run(
        &self,
        queue: &mut dyn Queue,
        bindings: &Bindings<'_>,
        context: &RunContext,
    ) -> Result<(), RunError> {
        let (result, allocations) = counted(|| self.plan.run(queue, bindings, context));
        self.allocations.fetch_min(allocations, Ordering::Relaxed);
        result
    }
}

/// Allocations of a run of a graph's plan, once it has run before.
fn allocations(graph: &Graph) -> usize {
    let (backend, none) = (CpuBackend::new(2), PackedLayout::default());
    let options =
        CompileOptions { parameters: &none, buffers: &none, limit_bytes: usize::MAX, deadline: None };
    let plan = backend.compile(graph, &options).unwrap();
    let plan = Counted { plan, allocations: AtomicUsize::new(usize::MAX) };
    let mut blocks = PassBlocks::new(&backend, [&none, &none], &none);
    for &(source, value) in &graph.sources {
        let shape = &graph.info(value).shape;
        let tensor = HostTensor::from_values(shape.clone(), &numbers(shape.elements())).unwrap();
        blocks.feed(source, tensor.bytes()).unwrap();
    }
    let context = RunContext { seed: 1, deadline: None, threads: 2 };
    for _ in 0..8 {
        blocks.run(&plan, graph, &context).unwrap();
    }
    plan.allocations.into_inner()
}

/// A graph of one operation on inputs of these shapes.
fn of(op: Op, shapes: &[&[usize]]) -> Graph {
    let mut builder = Builder::new();
    let inputs: Vec<ValueId> = (0..)
        .zip(shapes)
        .map(|(n, &shape)| builder.source(Source::Input(n), Shape::from(shape), DType::F32).unwrap())
        .collect();
    let y = builder.apply(op, &inputs).unwrap();
    builder.sink(Sink::Output(0), y);
    builder.finish()
}

/// Which of many plans allocate.
pub(crate) fn check() -> Vec<String> {
    let conv = |groups, padding| Conv2d { stride: [1, 1], padding: [padding; 2], dilation: [1, 1], groups };
    let (x, map): (&[usize], &[usize]) = (&[4, 32, 16, 16], &[64, 64]);
    let convolutions = [
        ("3×3", conv(1, 1), [32, 32, 3, 3]),
        ("1×1", conv(1, 0), [32, 32, 1, 1]),
        ("5×5", conv(1, 2), [32, 32, 5, 5]),
        ("3×3 of each channel", conv(32, 1), [32, 1, 3, 3]),
    ];
    let mut failures = Vec::new();
    let mut check = |name: &str, graph: &Graph| {
        let count = allocations(graph);
        println!("{count:4} allocations: {name}");
        if count > 0 {
            failures.push(format!("{name}: {count} allocations, where a plan makes none"));
        }
    };
    for (name, conv, w) in convolutions {
        check(name, &of(Op::Conv2d(conv), &[x, &w]));
        let to_input = Op::Conv2dGradInput { conv, input_size: [x[2], x[3]] };
        check(&format!("{name}, its input's gradient"), &of(to_input, &[&w, x]));
        let to_weight = Op::Conv2dGradWeight { conv, kernel_size: [w[2], w[3]] };
        check(&format!("{name}, its weight's gradient"), &of(to_weight, &[x, x]));
    }
    for [transpose_a, transpose_b] in [[false, false], [false, true], [true, false]] {
        check("a product", &of(Op::MatMul { transpose_a, transpose_b }, &[map, map]));
    }
    check("BatchNorm", &of(Op::BatchNorm { eps: 1e-5 }, &[x, &[32], &[32]]));
    check("LayerNorm", &of(Op::LayerNorm { dims: 1, eps: 1e-5 }, &[map, &[64], &[64]]));
    check("softmax", &of(Op::Softmax { dim: 1 }, &[map]));
    check("GELU", &of(Op::Unary(Unary::Gelu), &[map]));
    failures
}
