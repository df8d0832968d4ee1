//! Graphs that nobody thought of: planned, run, and held against the reference evaluator.

use proptest::prelude::*;

use super::{Backend, CompileOptions, RunContext, cpu::CpuBackend, run_on_host};
use crate::{
    graph::{
        Binary, Builder, Compare, Graph, Op, Reduction, Sink, Source, Unary, ValueId, Wants, differentiate,
        reference::evaluate, simplify, tests::noise,
    },
    tensor::{DType, HostTensor, PackedLayout, Shape},
};

/// One step of a random program: what to do, and numbers that choose operands and attributes.
pub(super) type Choice = (u8, usize, usize, usize);

/// Appends what a choice says, as far as the shapes allow.
fn append(builder: &mut Builder, values: &mut Vec<ValueId>, (kind, a, b, n): Choice) {
    let (x, y) = (values[a % values.len()], values[b % values.len()]);
    let shape = builder.shape(x).clone();
    let (rank, elements) = (shape.rank(), shape.elements());
    let dim = if rank == 0 { 0 } else { n % rank };
    let unaries = [Unary::Tanh, Unary::Relu, Unary::Neg, Unary::Sin, Unary::MulScalar { value: 0.5 }];
    let binaries = [Binary::Add, Binary::Sub, Binary::Mul, Binary::Maximum];
    let (op, operands) = match kind % 16 {
        0 | 1 => (Op::Unary(unaries[n % unaries.len()]), vec![x]),
        2 | 3 => (Op::Binary(binaries[n % binaries.len()]), vec![x, y]),
        4 => (Op::Permute((0..rank).map(|d| (d + n) % rank).collect()), vec![x]),
        5 => {
            let part =
                [1, 2, 3, 4].into_iter().filter(|p| elements.is_multiple_of(*p)).nth(n % 2).unwrap_or(1);
            (Op::Reshape([elements / part, part].into()), vec![x])
        }
        6 if rank > 0 => {
            let start = n % (shape[dim] + 1);
            let len = (shape[dim] - start).div_ceil(2);
            (Op::Slice { dim, start, len, step: 1 + usize::from(len > 1 && start == 0) }, vec![x])
        }
        7 => (Op::Cat { dim }, vec![x, y, x]),
        8 => (Op::Reduce { reduction: Reduction::Sum, dims: vec![dim] }, vec![x]),
        9 => (Op::Softmax { dim }, vec![x]),
        10 => (Op::MatMul { transpose_a: n & 1 == 1, transpose_b: n & 2 == 2 }, vec![x, y]),
        11 => (Op::Expand([&[1 + n % 3], shape.dims()].concat().into()), vec![x]),
        12 => (Op::Detach, vec![x]),
        13 => (Op::Attention { causal: n & 1 == 1, scale: 0.5 }, vec![x, y, [x, y][n >> 1 & 1]]),
        // Planes that are worth a chain's while, with the second source as weights and biases.
        14 if (22..=27).contains(&elements) => {
            let row = builder.apply(Op::Reshape([1, 1, 1, elements].into()), &[x]).unwrap();
            let planes = builder.apply(Op::Expand([2, 6, 12, elements].into()), &[row]).unwrap();
            (Op::BatchNorm { eps: 0.1 }, vec![planes, values[1], values[1]])
        }
        _ => {
            let condition = builder.apply(Op::Compare(Compare::Gt), &[x, y]);
            let Ok(condition) = condition else { return };
            (Op::Where, vec![condition, x, y])
        }
    };
    if let Ok(results) = builder.push(op, &operands)
        && builder.shape(results[0]).elements() <= 4000
        && builder.shape(results[0]).rank() <= 5
    {
        values.push(results[0]);
    }
}

pub(super) fn graph(choices: &[Choice], outputs: &[usize]) -> Graph {
    let mut builder = Builder::new();
    let shapes: [&[usize]; 3] = [&[4, 6], &[6], &[6, 4]];
    let mut values: Vec<ValueId> = shapes
        .iter()
        .enumerate()
        .map(|(n, &shape)| builder.source(Source::Input(n as u32), shape.into(), DType::F64).unwrap())
        .collect();
    choices.iter().for_each(|&choice| append(&mut builder, &mut values, choice));
    for (n, at) in outputs.iter().enumerate() {
        // Late values most of the time, so that much has to be kept.
        builder.sink(Sink::Output(n as u32), values[values.len() - 1 - at % values.len()]);
    }
    builder.finish()
}

fn feed(graph: &Graph, source: Source, saved: &[(Sink, HostTensor)]) -> HostTensor {
    let shape: Shape = graph.info(graph.source(source).unwrap()).shape.clone();
    let salt = match source {
        Source::Saved(n) => return saved.iter().find(|(sink, _)| *sink == Sink::Saved(n)).unwrap().1.clone(),
        Source::Input(n) => 11 + u64::from(n),
        Source::GradOutput(n) => 31 + u64::from(n),
        _ => 5,
    };
    HostTensor::from_values(shape.clone(), &noise(&shape, salt, -1.0, 1.0)).unwrap()
}

/// Runs a graph on a backend and on the reference evaluator, and gives what came out.
fn agree(
    backend: &dyn Backend,
    graph: &Graph,
    saved: &[(Sink, HostTensor)],
) -> Result<Vec<(Sink, HostTensor)>, TestCaseError> {
    let truth = evaluate(graph, |source| feed(graph, source, saved), 1).unwrap();
    let none = PackedLayout::default();
    let options =
        CompileOptions { parameters: &none, buffers: &none, limit_bytes: usize::MAX, deadline: None };
    let executable = backend.compile(graph, &options).unwrap();
    let context = RunContext { seed: 1, deadline: None, threads: 1 };
    let ours = run_on_host(
        backend,
        executable.as_ref(),
        graph,
        [&none, &none],
        |source| feed(graph, source, saved),
        &context,
    );
    let ours = ours.unwrap();
    for ((sink, ours), (_, truth)) in ours.iter().zip(&truth) {
        for (a, b) in ours.to_f64().iter().zip(truth.to_f64()) {
            let same = (a - b).abs() <= 1e-9 * (1.0 + b.abs()) || a.is_nan() && b.is_nan() || *a == b;
            prop_assert!(same, "{sink:?}: {a} instead of {b} in\n{graph}");
        }
    }
    Ok(truth)
}

/// Makes a graph of choices and has a backend run it, and its forward and backward, as the reference does.
pub(super) fn agrees(
    backend: &dyn Backend,
    choices: &[Choice],
    outputs: &[usize],
) -> Result<(), TestCaseError> {
    let mut graph = graph(choices, outputs);
    agree(backend, &graph, &[])?;
    simplify(&mut graph);
    let wants = Wants { inputs: &[true; 3], parameters: &[] };
    let mut both = differentiate(&graph, &wants).unwrap();
    simplify(&mut both.backward);
    let saved = agree(backend, &both.forward, &[])?;
    agree(backend, &both.backward, &saved)?;
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_plan_computes_what_the_graph_says(
        choices in prop::collection::vec((any::<u8>(), 0usize..64, 0usize..64, 0usize..12), 1..40),
        outputs in prop::collection::vec(0usize..8, 1..4),
    ) {
        agrees(&CpuBackend::new(1), &choices, &outputs)?;
    }
}
