//! Writes `docs/ops.md` out of what the code does: inference, differentiation, compiling and a run beside the
//! reference evaluator decide each cell.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    panic::catch_unwind,
};

use super::{Backend, CompileOptions, RunContext, conformance::fill, cpu::CpuBackend, run_on_host};
use crate::{
    artifact::samples,
    graph::{
        Builder, Graph, GraphError, Op, Sink, Source, Wants, differentiate, reference::evaluate, tests::noise,
    },
    tensor::{DType, HostTensor, PackedLayout},
};

const TYPES: [DType; 6] = [DType::F32, DType::F64, DType::BF16, DType::F16, DType::I64, DType::Bool];

/// Whether the CPU takes a graph, and whether what it then computes is what the graph says.
fn runs(graph: &Graph) -> bool {
    let none = PackedLayout::default();
    let buffers: Vec<_> = {
        let mut all: Vec<_> = graph
            .sources
            .iter()
            .filter_map(
                |&(source, value)| if let Source::Buffer(n) = source { Some((n, value)) } else { None },
            )
            .collect();
        all.sort_unstable();
        all.into_iter().map(|(_, value)| graph.info(value)).collect()
    };
    let buffers = PackedLayout::new(buffers.iter().map(|info| (&info.shape, info.dtype))).unwrap();
    let options =
        CompileOptions { parameters: &none, buffers: &buffers, limit_bytes: usize::MAX, deadline: None };
    let backend = CpuBackend::new(1);
    let Ok(executable) = backend.compile(graph, &options) else { return false };
    let feed = |source: Source| {
        let info = graph.info(graph.source(source).unwrap());
        let salt = match source {
            Source::Input(n) | Source::Saved(n) => 100 + u64::from(n),
            _ => 7,
        };
        if info.dtype == DType::I64 {
            // None of them 0, by which nobody divides, and none past the end of a dimension.
            let values: Vec<i64> = noise(&info.shape, salt, 1.0, 3.0).into_iter().map(|v| v as i64).collect();
            return HostTensor::from_values(info.shape.clone(), &values).unwrap();
        }
        fill(&info.shape, info.dtype, salt, (0.5, 2.0))
    };
    let context = RunContext { seed: 42, deadline: None, threads: 1 };
    let ours = run_on_host(&backend, executable.as_ref(), graph, [&none, &buffers], feed, &context).unwrap();
    let truth = evaluate(graph, feed, 42).unwrap();
    for ((sink, ours), (_, truth)) in ours.iter().zip(&truth) {
        let (a, b) = (ours.to_f64(), truth.to_f64());
        let norm = b.iter().filter(|v| v.is_finite()).map(|v| v * v).sum::<f64>().sqrt();
        let error =
            a.iter().zip(&b).filter(|(_, b)| b.is_finite()).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
        assert!(error.sqrt() <= 5e-2 * (1.0 + norm), "{sink:?}: {a:?} instead of {b:?} in\n{graph}");
    }
    true
}

/// What differentiation says of a graph all of whose inputs want a gradient, but running statistics.
fn gradient(graph: &Graph) -> &'static str {
    let statistics = graph.nodes.iter().any(|node| matches!(node.op, Op::BatchNormEval { .. }));
    let inputs = if statistics { &[true, true, true, false, false][..] } else { &[true; 8] };
    let wants = Wants { inputs, parameters: &[] };
    match differentiate(graph, &wants) {
        Ok(both) if both.backward.sinks.is_empty() => "none",
        Ok(_) => "yes",
        Err(GraphError::NoGradient { .. }) => "refused",
        Err(error) => panic!("{error}"),
    }
}

/// One operation alone, with its floating-point operands and attributes in another type.
fn alone(graph: &Graph, node: &crate::graph::Node, dtype: DType) -> Option<Graph> {
    let retyped = |known: DType| if known.is_floating_point() { dtype } else { known };
    let mut builder = Builder::new();
    let mut inputs = Vec::new();
    for (n, &value) in node.inputs.iter().enumerate() {
        let info = graph.info(value);
        // The logarithms of attention's sums stay wide.
        let is_wide = matches!(node.op, Op::AttentionGrad { .. }) && n == 4 && dtype.size_bytes() == 2;
        let own = if is_wide { DType::F32 } else { retyped(info.dtype) };
        inputs.push(builder.source(Source::Input(n as u32), info.shape.clone(), own).unwrap());
    }
    let op = match node.op.clone() {
        Op::Full { shape, dtype, value } => Op::Full { shape, dtype: retyped(dtype), value },
        Op::Arange { start, step, len, dtype } => Op::Arange { start, step, len, dtype: retyped(dtype) },
        other => other,
    };
    let results = builder.push(op, &inputs).ok()?;
    for (n, &value) in results.iter().enumerate() {
        builder.sink(Sink::Output(n as u32), value);
    }
    Some(builder.finish())
}

fn mark(holds: bool) -> &'static str {
    if holds { "yes" } else { "" }
}

fn graph_operations(page: &mut String) {
    let mut examples: BTreeMap<&str, Vec<(Graph, usize)>> = BTreeMap::new();
    for graph in super::conformance::graphs(DType::F64) {
        for (index, node) in graph.nodes.iter().enumerate() {
            let large = node.inputs.iter().any(|&v| graph.info(v).shape.elements() > 3000);
            let known = examples.entry(node.op.name()).or_default();
            if known.len() < 24 && !large {
                known.push((graph.clone(), index));
            }
        }
    }
    for (name, examples) in examples {
        let mut cells = String::new();
        for dtype in TYPES {
            let mut any = false;
            for (graph, index) in &examples {
                any |= alone(graph, &graph.nodes[*index], dtype).is_some_and(|graph| runs(&graph));
            }
            write!(cells, " {} |", mark(any)).unwrap();
        }
        // The first result alone: what stands beside it are statistics and indices.
        let all: BTreeSet<&str> = examples
            .iter()
            .filter_map(|(graph, index)| alone(graph, &graph.nodes[*index], DType::F32))
            .map(|mut graph| {
                graph.sinks.truncate(1);
                gradient(&graph)
            })
            .collect();
        let gradient =
            ["yes", "refused", "none"].into_iter().find(|word| all.contains(word)).unwrap_or("none");
        writeln!(page, "| `{name}` |{cells} {gradient} |").unwrap();
    }
}

fn aten_operations(page: &mut String) {
    let by_type: Vec<_> = TYPES.iter().map(|&dtype| samples(dtype, 2)).collect();
    let empty = samples(DType::F32, 0);
    for (row, sample) in by_type[0].iter().enumerate() {
        let mut cells = String::new();
        for samples in &by_type {
            let holds = samples[row].graph.as_ref().is_ok_and(runs);
            write!(cells, " {} |", mark(holds)).unwrap();
        }
        let none = mark(empty[row].graph.as_ref().is_ok_and(runs));
        let example = by_type.iter().find_map(|samples| samples[row].graph.as_ref().ok());
        let (gradient, becomes) = match example {
            Some(graph) => {
                let mut graph = graph.clone();
                graph.sinks.retain(|(sink, _)| *sink == Sink::Output(0));
                let names: BTreeSet<_> = graph.nodes.iter().map(|node| node.op.name()).collect();
                (gradient(&graph), names.into_iter().collect::<Vec<_>>().join(", "))
            }
            None => ("", String::new()),
        };
        writeln!(page, "| `{}` |{cells} {none} | {gradient} | {becomes} |", sample.name).unwrap();
    }
}

fn page() -> String {
    let mut page = String::from(
        "# Operations

Written by the code; a test holds this page to it. After a change:

    KASMINA_WRITE_DOCS=1 cargo test --lib ops_page

A cell says yes where shape inference and the CPU backend take the operation in that type and the result of a
run equals the reference evaluator's. bfloat16 and float16 are computed in float32 and rounded after each
operation. The gradient is `none` where PyTorch's autograd gives none, and `refused` where a backward pass
through the operation is an error; a gradient of zeros (`sign`, `floor`, …) is a gradient. Gradients are
checked against finite differences in float64.

## The graph's operations, on `cpu`

| operation | float32 | float64 | bfloat16 | float16 | int64 | bool | gradient |
| --- | --- | --- | --- | --- | --- | --- | --- |
",
    );
    graph_operations(&mut page);
    page.push_str(
        "
## ATen's operations

By name and, where several are told apart, overload; an overload that has no row of its own goes to the row
that takes its arguments, and `name_` writes back what `name` gives. One example call each, in train mode,
with all tensors of the type; *empty* is the same call on a batch of nothing. A blank means that this
example is refused, as PyTorch does for many types, not that every call is. Rows that become nothing are
views, numbers known beforehand, or the argument itself.

| operation | float32 | float64 | bfloat16 | float16 | int64 | bool | empty | gradient | becomes |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
",
    );
    aten_operations(&mut page);
    page
}

#[test]
fn the_page_says_what_the_code_does() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/ops.md");
    let page = page();
    if std::env::var_os("KASMINA_WRITE_DOCS").is_some() {
        std::fs::write(&path, page).unwrap();
        return;
    }
    let known = std::fs::read_to_string(&path).unwrap_or_default();
    for (ours, theirs) in page.lines().zip(known.lines()) {
        assert_eq!(ours, theirs, "docs/ops.md is old: see its head");
    }
    assert!(page == known, "docs/ops.md is old: see its head");
}

/// The example of each signature in float32, or in bool where it takes nothing else.
fn working(n: usize) -> Vec<(&'static str, Result<Graph, String>)> {
    let (numbers, bools) = (samples(DType::F32, n), samples(DType::Bool, n));
    let pairs = numbers.into_iter().zip(bools);
    pairs
        .map(|(number, bool)| (number.name, number.graph.or_else(|error| bool.graph.map_err(|_| error))))
        .collect()
}

#[test]
fn every_signature_lowers() {
    let examples = working(2).into_iter();
    let failed: Vec<_> =
        examples.filter_map(|(name, graph)| graph.err().map(|error| format!("{name}: {error}"))).collect();
    assert!(failed.is_empty(), "{} do not:\n{}", failed.len(), failed.join("\n"));
}

#[test]
fn every_signature_takes_a_batch_of_nothing() {
    // Of nothing none is the largest: PyTorch refuses them too.
    let undefined = ["argmax", "argmin", "amax", "amin", "max.default", "min.default"];
    let failed: Vec<_> = working(0)
        .into_iter()
        .filter(|(name, _)| !undefined.contains(name))
        .filter_map(|(name, graph)| match graph {
            Ok(graph) if catch_unwind(|| runs(&graph)).unwrap_or(false) => None,
            Ok(_) => Some(format!("{name}: does not run")),
            Err(error) => Some(format!("{name}: {error}")),
        })
        .collect();
    assert!(failed.is_empty(), "{} do not:\n{}", failed.len(), failed.join("\n"));
}
