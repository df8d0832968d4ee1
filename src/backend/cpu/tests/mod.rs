//! The CPU as a device: what every device is held to, and sizes that only it has a way of its own for.

mod convolutions;
mod norms;
mod products;

use std::time::Instant;

use super::*;

use crate::{
    backend::{
        RunContext,
        conformance::{attends_to_what_is_not_finite, conforms},
        run_on_host,
    },
    graph::{Builder, Op, Sink, Source, Unary},
    tensor::{DType, HostTensor, PackedLayout},
};

/// The first result of a graph on all threads of a CPU.
fn result(graph: &Graph, cpu: &CpuBackend, feed: impl Fn(Source) -> HostTensor) -> Vec<f64> {
    results(graph, cpu, feed).swap_remove(0).1
}

/// All of them.
fn results(graph: &Graph, cpu: &CpuBackend, feed: impl Fn(Source) -> HostTensor) -> Vec<(Sink, Vec<f64>)> {
    let none = PackedLayout::default();
    let options =
        CompileOptions { parameters: &none, buffers: &none, limit_bytes: usize::MAX, deadline: None };
    let executable = cpu.compile(graph, &options).unwrap();
    let context = RunContext { seed: 1, deadline: None, threads: cpu.threads() };
    let all = run_on_host(cpu, &*executable, graph, [&none, &none], feed, &context).unwrap();
    all.into_iter().map(|(sink, tensor)| (sink, tensor.to_f64())).collect()
}

#[test]
fn planning_looks_at_the_clock() {
    let mut builder = Builder::new();
    let x = builder.source(Source::Input(0), [3].into(), DType::F32).unwrap();
    let y = builder.apply(Op::Unary(Unary::Exp), &[x]).unwrap();
    builder.sink(Sink::Output(0), y);
    let none = PackedLayout::default();
    let mut options =
        CompileOptions { parameters: &none, buffers: &none, limit_bytes: 1 << 20, deadline: None };
    let (graph, cpu) = (builder.finish(), CpuBackend::new(1));
    assert!(cpu.compile(&graph, &options).is_ok());
    options.deadline = Some(Instant::now());
    assert_eq!(cpu.compile(&graph, &options).unwrap_err(), BuildError::Time { done: 0, total: 1 });
}

#[test]
fn the_cpu_conforms() {
    conforms(&CpuBackend::new(3));
    conforms(&CpuBackend::new(3).with_winograd(Winograd::Always));
}

#[test]
fn attention_to_what_is_not_finite_is_what_softmax_has() {
    attends_to_what_is_not_finite(&CpuBackend::new(2));
}
