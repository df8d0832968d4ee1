//! The order of what is handed to a driver, judged over random graphs, and captures.

use std::sync::{Arc, OnceLock};

use proptest::prelude::*;

use super::{
    FREE,
    blocks::{Blocks, compiled},
    single,
};
use crate::{
    backend::{
        Backend as _,
        cuda::{
            CudaBackend,
            driver::record::{Did, Recorder},
            testing::{recorded_backend, settled_bytes},
        },
        random_graphs::graph,
    },
    graph::{Builder, Graph, Op, Sink, Source, Unary, Wants, differentiate, simplify},
    tensor::DType,
};

/// Runs the forward and backward passes of a graph on two queues, twice, so that the second is replayed; the backward
/// pass comes after the forward one, or after nothing. Gives what the judge says.
fn two_queues(
    (backend, recorder): &(Arc<CudaBackend>, Arc<Recorder>),
    graph: &Graph,
    is_ordered: bool,
) -> Vec<String> {
    let wants = Wants { inputs: &[true; 3], parameters: &[] };
    let mut halves = differentiate(graph, &wants).unwrap();
    simplify(&mut halves.backward);
    // Nothing of the case before is still being given back, of which this log would have a half.
    settled_bytes(backend);
    recorder.take();
    let (forward, backward) = (compiled(&**backend, &halves.forward), compiled(&**backend, &halves.backward));
    let graphs: [(&Graph, _); 2] = [(&halves.forward, &*forward), (&halves.backward, &*backward)];
    let blocks = Blocks::new(&**backend, &graphs);
    let [mut first, mut second] = [false, true].map(|goes_first| backend.open_queue(goes_first));
    blocks.feed(&mut *first, &halves.forward, 1);
    blocks.feed(&mut *first, &halves.backward, 1);
    for _ in 0..3 {
        if is_ordered {
            first.after(&mut *second).unwrap();
        }
        blocks.run(0, &*forward, &mut *first, &FREE).unwrap();
        if is_ordered {
            second.after(&mut *first).unwrap();
        }
        blocks.run(1, &*backward, &mut *second, &FREE).unwrap();
        if !is_ordered {
            break;
        }
    }
    second.finish(None).unwrap();
    drop((blocks, first, second, forward, backward));
    settled_bytes(backend);
    recorder.judge()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn every_use_comes_after_its_writer(
        choices in prop::collection::vec((any::<u8>(), 0usize..64, 0usize..64, 0usize..12), 1..40),
        outputs in prop::collection::vec(0usize..8, 1..4),
    ) {
        static SHARED: OnceLock<(Arc<CudaBackend>, Arc<Recorder>)> = OnceLock::new();
        let mut graph = graph(&choices, &outputs);
        simplify(&mut graph);
        let wrong = two_queues(SHARED.get_or_init(recorded_backend), &graph, true);
        prop_assert!(wrong.is_empty(), "{}\nin\n{graph}", wrong.join("\n"));
    }
}

#[test]
fn a_backward_that_waits_for_nobody_is_found() {
    let shapes = [(&[4, 6][..], DType::F64), (&[6], DType::F64), (&[6, 4], DType::F64)];
    let mut builder = Builder::new();
    let inputs = [0, 1, 2].map(|n| {
        builder.source(Source::Input(n), shapes[n as usize].0.into(), shapes[n as usize].1).unwrap()
    });
    let y = builder.apply(Op::Unary(Unary::Exp), &inputs[..1]).unwrap();
    builder.sink(Sink::Output(0), y);
    let (graph, shared) = (builder.finish(), recorded_backend());
    assert_eq!(two_queues(&shared, &graph, true), Vec::<String>::new());
    let wrong = two_queues(&shared, &graph, false);
    assert!(
        !wrong.is_empty() && wrong.iter().all(|words| words.contains("is not ordered after")),
        "{wrong:?}"
    );
}

#[test]
fn a_captured_pass_allocates_nothing_and_runs_again() {
    let (backend, recorder) = recorded_backend();
    let mut builder = Builder::new();
    let x = builder.source(Source::Input(0), [300, 40].into(), DType::F32).unwrap();
    let soft = builder.apply(Op::Softmax { dim: 1 }, &[x]).unwrap();
    let y = builder.apply(Op::Unary(Unary::Exp), &[soft]).unwrap();
    builder.sink(Sink::Output(0), y);
    let graph = builder.finish();
    let executable = compiled(&*backend, &graph);
    let blocks = Blocks::new(&*backend, &[(&graph, &*executable)]);
    let mut queue = backend.open_queue(true);
    let first = |bytes: &[Vec<u8>]| f32::from_le_bytes(bytes[0][..4].try_into().unwrap());
    let expected = (1.0f32 / 40.0).exp();
    for expected_captures in [0, 1, 1, 1] {
        blocks.forget(&mut *queue);
        blocks.run(0, &*executable, &mut *queue, &FREE).unwrap();
        let result = first(&blocks.read(&mut *queue));
        assert!((result - expected).abs() < 1e-6, "{result}");
        assert_eq!(recorder.count(|did| matches!(did, Did::BeginCapture(_))), expected_captures);
        assert_eq!(recorder.count(|did| matches!(did, Did::EndCapture(_))), expected_captures);
    }
    assert_eq!(recorder.count(|did| matches!(did, Did::Captured(_))), 2);
    assert_eq!(recorder.judge(), Vec::<String>::new());
    // Steady passes allocate nothing, and hand over one thing.
    recorder.take();
    blocks.run(0, &*executable, &mut *queue, &FREE).unwrap();
    let log: Vec<_> = recorder.take().into_iter().map(|call| call.did).collect();
    assert!(matches!(&log[..], [Did::Replay(..), Did::Work(..), Did::Work(..)]), "{log:?}");
}

#[test]
fn a_pass_of_one_launch_is_not_captured() {
    let (backend, recorder) = recorded_backend();
    let graph = single(&[(&[30], DType::F32)], Op::Unary(Unary::Exp));
    let executable = compiled(&*backend, &graph);
    let blocks = Blocks::new(&*backend, &[(&graph, &*executable)]);
    let mut queue = backend.open_queue(false);
    for _ in 0..3 {
        blocks.run(0, &*executable, &mut *queue, &FREE).unwrap();
    }
    assert_eq!(recorder.count(|did| matches!(did, Did::BeginCapture(_))), 0);
    drop((blocks, queue, executable));
    assert_eq!(recorder.judge(), Vec::<String>::new());
}
