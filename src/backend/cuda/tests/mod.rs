//! The backend on the host: conformance, random graphs, what is refused; beside it, edges and order.

mod blocks;
mod convolutions;
mod memory;
mod numbers;
mod order;
mod places;
mod products;
mod queues;
mod replays;

use std::{
    sync::{Arc, OnceLock},
    time::Instant,
};

use proptest::prelude::*;

use super::{
    CudaBackend,
    testing::{backend_without_libraries, held_backend, settled_bytes},
};
use crate::{
    backend::{
        Backend as _, Bindings, BuildError, CompileOptions, HostMemory, HostQueue, Memory as _, RunContext,
        RunError,
        conformance::{attends_to_what_is_not_finite, conforms},
        random_graphs::agrees,
        run_on_host, test_device,
    },
    graph::{Binary, Builder, Conv2d, Graph, Op, Sink, Source, Unary, reference::evaluate, tests::single},
    tensor::{DType, HostTensor, PackedLayout},
};

/// One backend for all tests that need none of their own.
fn backend() -> &'static CudaBackend {
    test_device::cuda()
}

/// One on which our kernels compute everything.
fn alone() -> &'static CudaBackend {
    static BACKEND: OnceLock<Arc<CudaBackend>> = OnceLock::new();
    BACKEND.get_or_init(backend_without_libraries)
}

const FREE: RunContext = RunContext { seed: 42, deadline: None, threads: 1 };

fn options(none: &PackedLayout) -> CompileOptions<'_> {
    CompileOptions { parameters: none, buffers: none, limit_bytes: usize::MAX, deadline: None }
}

/// What the backend and the reference make of a graph.
fn both(graph: &Graph, feed: impl Fn(Source) -> HostTensor) -> [Vec<Vec<f64>>; 2] {
    let none = PackedLayout::default();
    let executable = backend().compile(graph, &options(&none)).unwrap();
    let ours = run_on_host(backend(), executable.as_ref(), graph, [&none, &none], &feed, &FREE).unwrap();
    let truth = evaluate(graph, &feed, FREE.seed).unwrap();
    [ours, truth].map(|all| all.into_iter().map(|(_, tensor)| tensor.to_f64()).collect())
}

#[test]
fn cuda_conforms() {
    conforms(backend());
}

#[test]
fn cuda_conforms_without_a_library() {
    conforms(alone());
}

#[test]
fn attention_to_what_is_not_finite_is_what_softmax_has() {
    attends_to_what_is_not_finite(backend());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn random_graphs_agree_on_cuda(
        choices in prop::collection::vec((any::<u8>(), 0usize..64, 0usize..64, 0usize..12), 1..40),
        outputs in prop::collection::vec(0usize..8, 1..4),
    ) {
        agrees(backend(), &choices, &outputs)?;
        agrees(alone(), &choices, &outputs)?;
    }
}

#[test]
fn what_has_no_kernel_is_refused_by_name() {
    let none = PackedLayout::default();
    let refused = |graph: &Graph| match backend().compile(graph, &options(&none)) {
        Err(BuildError::Unsupported { device, op, reason }) => format!("{device} {op}: {reason}"),
        other => panic!("{other:?}"),
    };
    let whole = single(&[(&[2], DType::I32), (&[2], DType::I32)], Op::Binary(Binary::Add));
    assert_eq!(refused(&whole), "cuda:0 add: whole numbers are computed in int64: cast the operands first");
    let conv = Conv2d { stride: [1 << 30, 1], padding: [0, 0], dilation: [1, 1], groups: 1 };
    let far = single(&[(&[1, 1, 4, 4], DType::F32), (&[1, 1, 3, 3], DType::F32)], Op::Conv2d(conv));
    assert!(refused(&far).starts_with("cuda:0 conv2d: it has a dimension of"), "{}", refused(&far));
}

#[test]
fn limits_of_time_and_memory_hold() {
    let none = PackedLayout::default();
    let mut builder = Builder::new();
    let x = builder.source(Source::Input(0), [3].into(), DType::F32).unwrap();
    let y = builder.apply(Op::Unary(Unary::Exp), &[x]).unwrap();
    let z = builder.apply(Op::Softmax { dim: 0 }, &[y]).unwrap();
    builder.sink(Sink::Output(0), z);
    let (graph, backend) = (builder.finish(), backend());
    let tight = CompileOptions { limit_bytes: 0, ..options(&none) };
    assert!(matches!(backend.compile(&graph, &tight), Err(BuildError::TooMuchMemory { limit_bytes: 0, .. })));
    let late = CompileOptions { deadline: Some(Instant::now()), ..options(&none) };
    assert_eq!(backend.compile(&graph, &late).unwrap_err(), BuildError::Time { done: 0, total: 2 });
    let executable = backend.compile(&graph, &options(&none)).unwrap();
    assert!(executable.held_bytes() > 0);
    let feed = |_| HostTensor::from_values([3].into(), &[1f32; 3]).unwrap();
    let late = RunContext { deadline: Some(Instant::now()), ..FREE };
    let stopped = run_on_host(backend, executable.as_ref(), &graph, [&none, &none], feed, &late).unwrap_err();
    assert_eq!(stopped, RunError::Timeout { done: 0, total: 2 });
}

#[test]
fn memory_of_another_device_is_refused_and_constants_are_given_back() {
    let (backend, driver) = held_backend();
    let none = PackedLayout::default();
    let mut builder = Builder::new();
    let x = builder.source(Source::Input(0), [3].into(), DType::F32).unwrap();
    let two = builder.apply(Op::Full { shape: [3].into(), dtype: DType::F32, value: 2.0 }, &[]).unwrap();
    let y = builder.apply(Op::Binary(Binary::Mul), &[x, two]).unwrap();
    builder.sink(Sink::Output(0), y);
    let graph = builder.finish();
    let executable = backend.compile(&graph, &options(&none)).unwrap();
    assert_eq!(driver.allocated(), 1);
    let feed = |_| HostTensor::from_values([3].into(), &[1f32, 2.0, 3.0]).unwrap();
    let results = run_on_host(&*backend, executable.as_ref(), &graph, [&none, &none], feed, &FREE).unwrap();
    assert_eq!(results[0].1.to_f64(), [2.0, 4.0, 6.0]);
    let (input, output) = (HostMemory::new(12), backend.allocate(12));
    let (inputs, outputs) = ([input.region()], [output.region()]);
    let bindings = Bindings { inputs: &inputs, outputs: &outputs, ..Bindings::EMPTY };
    let mut queue = backend.open_queue(false);
    let error = executable.run(&mut *queue, &bindings, &FREE).unwrap_err();
    assert_eq!(
        error.to_string(),
        "region Input(0) does not lie in the memory of cuda:0: copy it there first"
    );
    let error = executable.run(&mut HostQueue::default(), &bindings, &FREE).unwrap_err();
    assert_eq!(error.to_string(), "cuda:0 failed: a queue of another device was given");
    drop((output, executable));
    assert_eq!((settled_bytes(&backend), driver.allocated()), (0, 0));
}
