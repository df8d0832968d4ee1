//! Replays: that they compute what launches do, what is updated, and what happens where the driver refuses.

use std::{
    sync::{Arc, OnceLock},
    time::Instant,
};

use proptest::prelude::*;

use super::{
    FREE,
    blocks::{Blocks, compiled},
};
use crate::{
    backend::{
        Backend as _, Executable, Queue, RunContext, RunError,
        cuda::{
            CudaBackend, CudaOptions,
            driver::{
                host::HostDriver,
                record::{Did, Recorder},
            },
            testing::{OPTIONS, backend_on, host_backend, recorded_backend, settled_bytes, stream_of},
        },
        random_graphs::graph,
    },
    graph::{Binary, Builder, Graph, Limits, Op, Sink, Source, Unary, simplify},
    tensor::DType,
};

/// x, w → dropout(exp(x))·w: three launches, of which the middle one has a seed.
fn chain() -> Graph {
    let mut builder = Builder::new();
    let [x, w] = [0, 1].map(|n| builder.source(Source::Input(n), [70, 3].into(), DType::F32).unwrap());
    // Sums in between, over which nothing is joined to one launch.
    let y = builder.apply(Op::Softmax { dim: 1 }, &[x]).unwrap();
    let y = builder.apply(Op::Dropout { p: 0.5, site: 3 }, &[y]).unwrap();
    let y = builder.apply(Op::Softmax { dim: 0 }, &[y]).unwrap();
    // Two in one launch, which no seed changes.
    let y = builder.apply(Op::Binary(Binary::Mul), &[y, w]).unwrap();
    let y = builder.apply(Op::Unary(Unary::Exp), &[y]).unwrap();
    builder.sink(Sink::Output(0), y);
    builder.finish()
}

fn seeded(seed: u64) -> RunContext {
    RunContext { seed, ..FREE }
}

/// A backend that hands every launch over by itself.
fn plain_backend() -> Arc<CudaBackend> {
    backend_on(&Arc::new(HostDriver::new()), CudaOptions { graphs: false, ..OPTIONS })
}

/// A graph on a backend, with two sets of memory.
struct Bench {
    executable: Arc<dyn Executable>,
    sets: [Blocks; 2],
    queue: Box<dyn Queue>,
}

impl Bench {
    fn new(backend: &CudaBackend, graph: &Graph) -> Self {
        let executable = compiled(backend, graph);
        let mut queue = backend.open_queue(false);
        let sets = [10, 20].map(|salt| {
            let blocks = Blocks::new(backend, &[(graph, &*executable)]);
            blocks.feed(&mut *queue, graph, salt);
            blocks
        });
        Self { executable, sets, queue }
    }

    /// Runs on one of the sets, and gives what the outputs of both hold then.
    fn run(&mut self, set: usize, seed: u64) -> Vec<Vec<u8>> {
        let queue = &mut *self.queue;
        self.sets.iter().for_each(|blocks| blocks.forget(queue));
        self.sets[set].run(0, &*self.executable, queue, &seeded(seed)).unwrap();
        self.sets.iter().flat_map(|blocks| blocks.read(queue)).collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn replays_compute_what_launches_do(
        choices in prop::collection::vec((any::<u8>(), 0usize..64, 0usize..64, 0usize..12), 1..40),
        outputs in prop::collection::vec(0usize..8, 1..4),
        turns in prop::collection::vec((0usize..2, 0u64..3), 3..8),
    ) {
        static BOTH: OnceLock<[Arc<CudaBackend>; 2]> = OnceLock::new();
        let [captures, plain] = BOTH.get_or_init(|| [host_backend(), plain_backend()]);
        let mut graph = graph(&choices, &outputs);
        simplify(&mut graph);
        let results = graph.sinks.clone();
        let mut builder = Builder::resume(graph, Limits::default());
        for (n, (sink, value)) in results.into_iter().enumerate() {
            let dropped = builder.apply(Op::Dropout { p: 0.3, site: n as u32 }, &[value]).unwrap();
            builder.sink(sink, dropped);
        }
        let graph = builder.finish();
        let (mut ours, mut theirs) = (Bench::new(captures, &graph), Bench::new(plain, &graph));
        for (set, seed) in turns {
            prop_assert!(ours.run(set, seed) == theirs.run(set, seed), "set {set}, seed {seed} in\n{graph}");
        }
    }
}

#[test]
fn only_what_changed_is_updated() {
    let (backend, recorder) = recorded_backend();
    let graph = chain();
    let mut bench = Bench::new(&backend, &graph);
    let updates = |recorder: &Recorder| {
        let calls = recorder.take();
        assert_eq!(calls.iter().filter(|call| matches!(call.did, Did::Replay(..))).count(), 1);
        let updated = calls.iter().filter_map(|call| match call.did {
            Did::Update(_, nth) => Some(nth),
            _ => None,
        });
        updated.collect::<Vec<_>>()
    };
    bench.run(0, 1);
    recorder.take();
    bench.run(0, 1);
    assert_eq!(updates(&recorder), [0; 0], "it was captured as it is");
    bench.run(0, 1);
    assert_eq!(updates(&recorder), [0; 0], "nothing changed");
    bench.run(0, 2);
    assert_eq!(updates(&recorder), [1], "dropout has another seed");
    bench.run(1, 2);
    assert_eq!(updates(&recorder), [0, 1, 2, 3], "all memory is another");
    bench.run(0, 1);
    assert_eq!(updates(&recorder), [0, 1, 2, 3]);
    let Bench { executable, sets, queue } = &mut bench;
    // The first set's memory, but for one operand of the second's.
    let other_operand = |input: usize, queue: &mut dyn Queue| {
        let other = sets[1].with_bindings(0, |bindings| bindings.inputs[input].start().expose_provenance());
        sets[0].with_bindings(0, |bindings| {
            let mut inputs = bindings.inputs.to_vec();
            // SAFETY: the second set's memory is as large, and is not dropped before the queue is done.
            inputs[input] =
                unsafe { crate::backend::Region::on_device(other as u64, inputs[input].len_bytes()) };
            let bindings = crate::backend::Bindings { inputs: &inputs, ..*bindings };
            executable.run(queue, &bindings, &seeded(1)).unwrap();
        });
    };
    other_operand(0, &mut **queue);
    assert_eq!(updates(&recorder), [0], "the first operand is read by the first launch");
    other_operand(1, &mut **queue);
    assert_eq!(updates(&recorder), [0, 3], "the first has its old operand again");
    queue.finish(None).unwrap();
}

#[test]
fn where_the_driver_refuses_launches_go_one_by_one() {
    let graph = chain();
    for (call, fails_at, expected_captures) in
        [("begin_capture", 1, 0), ("launch", 1, 1), ("end_capture", 1, 1), ("update", 2, 1), ("update", 3, 1)]
    {
        let driver = Arc::new(HostDriver::new());
        let recorder = Arc::new(Recorder::new(Arc::clone(&driver) as _));
        let backend = backend_on(&recorder, OPTIONS);
        let (mut ours, mut theirs) = (Bench::new(&backend, &graph), Bench::new(&plain_backend(), &graph));
        for turn in 0..6 {
            if turn == fails_at {
                driver.fail_next(call);
            }
            let (set, seed) = (turn % 2, turn as u64);
            assert!(ours.run(set, seed) == theirs.run(set, seed), "turn {turn} with {call} refused");
        }
        assert_eq!(recorder.count(|did| matches!(did, Did::BeginCapture(_))), expected_captures, "{call}");
        assert_eq!(recorder.count(|did| matches!(did, Did::EndCapture(_))), expected_captures, "{call}");
        let replays = recorder.count(|did| matches!(did, Did::Replay(..)));
        assert_eq!(replays, if call == "update" { fails_at - 1 } else { 0 });
        assert_eq!(driver.replays(), 0, "{call}: what is not used is let go");
        assert_eq!(recorder.judge(), Vec::<String>::new());
    }
}

#[test]
fn a_replay_that_the_driver_does_not_take_is_an_error() {
    let driver = Arc::new(HostDriver::new());
    let backend = backend_on(&driver, OPTIONS);
    let mut bench = Bench::new(&backend, &chain());
    bench.run(0, 1);
    driver.fail_next("replay");
    let error = bench.sets[0].run(0, &*bench.executable, &mut *bench.queue, &FREE).unwrap_err();
    assert!(matches!(error, RunError::Device { .. }), "{error}");
}

#[test]
fn no_replay_is_handed_over_past_the_deadline() {
    let (backend, recorder) = recorded_backend();
    let mut bench = Bench::new(&backend, &chain());
    bench.run(0, 1);
    bench.run(0, 1);
    recorder.take();
    let late = RunContext { deadline: Some(Instant::now()), ..FREE };
    let stopped = bench.sets[0].run(0, &*bench.executable, &mut *bench.queue, &late).unwrap_err();
    assert_eq!(stopped, RunError::Timeout { done: 0, total: 4 });
    assert!(recorder.take().is_empty());
}

#[test]
fn each_stream_has_its_replay_and_they_go_with_the_executable() {
    let driver = Arc::new(HostDriver::new());
    let backend = backend_on(&driver, OPTIONS);
    let mut bench = Bench::new(&backend, &chain());
    let before = bench.executable.held_bytes();
    let mut other = backend.open_queue(true);
    let expected = bench.run(0, 1);
    bench.run(0, 1);
    assert_eq!(driver.replays(), 1);
    std::mem::swap(&mut bench.queue, &mut other);
    for replays in [1, 2, 2] {
        assert!(bench.run(0, 1) == expected);
        assert_eq!(driver.replays(), replays);
    }
    assert!(bench.executable.held_bytes() > before);
    drop(bench);
    assert_eq!((settled_bytes(&backend), driver.replays()), (0, 0));
}

/// Two threads run one executable many times, each with its own queue, memory and seeds.
fn two_threads([backend, plain]: [&CudaBackend; 2], queues: [Box<dyn Queue>; 2]) {
    let graph = chain();
    let executable = compiled(backend, &graph);
    let expected: Vec<Vec<_>> = [10, 20]
        .into_iter()
        .map(|salt| {
            let (mut queue, executable) = (plain.open_queue(false), compiled(plain, &graph));
            let blocks = Blocks::new(plain, &[(&graph, &*executable)]);
            blocks.feed(&mut *queue, &graph, salt);
            let run = |seed| {
                blocks.run(0, &*executable, &mut *queue, &seeded(seed)).unwrap();
                blocks.read(&mut *queue)
            };
            (0..40).map(run).collect()
        })
        .collect();
    std::thread::scope(|scope| {
        for ((mut queue, salt), expected) in queues.into_iter().zip([10, 20]).zip(&expected) {
            let (executable, graph) = (&executable, &graph);
            scope.spawn(move || {
                let blocks = Blocks::new(backend, &[(graph, &**executable)]);
                blocks.feed(&mut *queue, graph, salt);
                for (seed, expected) in expected.iter().enumerate() {
                    blocks.run(0, &**executable, &mut *queue, &seeded(seed as u64)).unwrap();
                    assert!(blocks.read(&mut *queue) == *expected, "salt {salt}, seed {seed}");
                }
            });
        }
    });
}

#[test]
fn threads_do_not_mix_up_their_replays() {
    let plain = plain_backend();
    for is_shared in [true, false] {
        let (backend, recorder) = recorded_backend();
        // As many as there are streams: one more has to share.
        let mut all: Vec<_> = (0..33).map(|_| backend.open_queue(false)).collect();
        let (mut last, mut first) = (all.pop().unwrap(), all.swap_remove(0));
        assert_eq!(stream_of(&backend, &mut *first), stream_of(&backend, &mut *last));
        if !is_shared {
            last = all.pop().unwrap();
        }
        two_threads([&backend, &plain], [first, last]);
        assert!(recorder.count(|did| matches!(did, Did::Replay(..))) > 40);
        assert_eq!(recorder.judge(), Vec::<String>::new());
    }
}

#[test]
fn memory_is_given_back_while_a_stream_captures() {
    let (backend, recorder) = recorded_backend();
    let device = &backend.device;
    let mut queue = backend.open_queue(false);
    let memory = backend.allocate(64);
    queue.write(&[1; 64], memory.region()).unwrap();
    let captured = device.capture(|_| {
        drop(memory);
        device.settle().unwrap();
        assert_eq!(backend.held_bytes(), 0);
        assert!(device.capture(|_| Ok(())).is_none(), "a pass waits for no other's capture");
        Ok(())
    });
    device.driver().close_replay(captured.unwrap().unwrap()).unwrap();
    assert_eq!(recorder.judge(), Vec::<String>::new());
}
