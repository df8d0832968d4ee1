//! Replays of passes that have a library's work in them, which no replay can be given at another place.

use std::sync::Arc;

use super::{
    FREE,
    blocks::{Blocks, compiled},
};
use crate::{
    backend::{
        Backend as _, Bindings, Executable, Queue, Region,
        cuda::{
            CudaBackend, CudaOptions,
            driver::{
                host::HostDriver,
                record::{Did, Recorder},
            },
            testing::{OPTIONS, backend_on, settled_bytes},
        },
    },
    graph::{Binary, Builder, Conv2d, Graph, Op, Sink, Source, Unary},
    tensor::DType,
};

/// x, w, z → (exp(x)·w)·z, with the middle one a product or a convolution: three launches.
fn chain(is_product: bool) -> Graph {
    let conv = Conv2d { stride: [1, 1], padding: [0, 0], dilation: [1, 1], groups: 1 };
    let (shapes, op): ([&[usize]; 3], _) = if is_product {
        ([&[5, 9], &[9, 7], &[5, 7]], Op::MatMul { transpose_a: false, transpose_b: false })
    } else {
        ([&[2, 3, 5, 4], &[4, 3, 2, 2], &[2, 4, 4, 3]], Op::Conv2d(conv))
    };
    let mut builder = Builder::new();
    let [x, w, z] =
        [0, 1, 2].map(|n| builder.source(Source::Input(n), shapes[n as usize].into(), DType::F32).unwrap());
    let y = builder.apply(Op::Unary(Unary::Exp), &[x]).unwrap();
    let y = builder.apply(op, &[y, w]).unwrap();
    let y = builder.apply(Op::Binary(Binary::Mul), &[y, z]).unwrap();
    builder.sink(Sink::Output(0), y);
    builder.finish()
}

/// The chain on a backend, with sets of memory that hold different numbers.
struct Bench {
    executable: Arc<dyn Executable>,
    sets: Vec<Blocks>,
    queue: Box<dyn Queue>,
}

impl Bench {
    fn new(backend: &CudaBackend, sets: u64, is_product: bool) -> Self {
        let graph = chain(is_product);
        let executable = compiled(backend, &graph);
        let mut queue = backend.open_queue(false);
        let sets = (0..sets).map(|set| {
            let blocks = Blocks::new(backend, &[(&graph, &*executable)]);
            blocks.feed(&mut *queue, &graph, 10 * set);
            blocks
        });
        let sets = sets.collect();
        Self { executable, sets, queue }
    }

    /// Runs on one of the sets, and gives what the outputs of all hold then.
    fn run(&mut self, set: usize) -> Vec<Vec<u8>> {
        let queue = &mut *self.queue;
        self.sets.iter().for_each(|blocks| blocks.forget(queue));
        self.sets[set].run(0, &*self.executable, queue, &FREE).unwrap();
        self.sets.iter().flat_map(|blocks| blocks.read(queue)).collect()
    }
}

fn recorded() -> (Arc<CudaBackend>, Arc<HostDriver>, Arc<Recorder>) {
    let driver = Arc::new(HostDriver::new());
    let recorder = Arc::new(Recorder::new(Arc::clone(&driver) as _));
    (backend_on(&recorder, OPTIONS), driver, recorder)
}

fn captures(recorder: &Recorder) -> usize {
    recorder.count(|did| matches!(did, Did::BeginCapture(_)))
}

#[test]
fn a_replay_serves_passes_alone_whose_products_lie_where_its_own_do() {
    replays_serve_their_places(true);
}

#[test]
fn a_replay_serves_passes_alone_whose_convolutions_lie_where_its_own_do() {
    replays_serve_their_places(false);
}

fn replays_serve_their_places(is_product: bool) {
    let (backend, driver, recorder) = recorded();
    let plain = backend_on(&Arc::new(HostDriver::new()), CudaOptions { graphs: false, ..OPTIONS });
    let (mut ours, mut theirs) = (Bench::new(&backend, 6, is_product), Bench::new(&plain, 6, is_product));
    // Of each: which set runs, how many captures there were then, how many replays there are.
    let turns = [
        (0, 0, 0),
        (0, 1, 1),
        (0, 1, 1),
        (1, 1, 1),
        (1, 2, 2),
        (0, 2, 2),
        (2, 2, 2),
        (2, 3, 3),
        (3, 3, 3),
        (3, 4, 4),
        (4, 4, 4),
        // Nobody makes room while all are in use.
        (4, 4, 4),
    ];
    // Set 1 does not run meanwhile, and its replay makes room.
    let others = (0..60).map(|turn| ([0, 2, 3][turn % 3], 4, 4));
    let later = [(4, 5, 4), (0, 5, 4), (2, 5, 4), (3, 5, 4), (4, 5, 4)];
    let all = turns.into_iter().chain(others).chain(later);
    for (turn, (set, expected_captures, expected_replays)) in all.enumerate() {
        assert!(ours.run(set) == theirs.run(set), "turn {turn}, set {set}");
        assert_eq!((captures(&recorder), driver.replays()), (expected_captures, expected_replays), "{turn}");
    }
    // More places than there are replays, round and round: right, and bounded.
    for turn in 0..60 {
        let set = if turn < 30 { turn % 6 } else { turn * turn % 6 };
        assert!(ours.run(set) == theirs.run(set), "turn {turn}, set {set}");
        assert_eq!((driver.replays(), captures(&recorder)), (4, 5), "they do not put each other out");
    }
    assert_eq!(recorder.judge(), Vec::<String>::new());
    drop(ours);
    settled_bytes(&backend);
    assert_eq!((driver.replays(), driver.routines().len()), (0, 0));
}

#[test]
fn kernels_of_ours_are_updated_beside_products() {
    let (backend, _, recorder) = recorded();
    let mut bench = Bench::new(&backend, 2, true);
    let expected = [bench.run(0)[0].clone(), bench.run(1)[1].clone()];
    assert!(bench.run(0)[0] == expected[0] && captures(&recorder) == 1);
    let Bench { executable, sets, queue } = &mut bench;
    // The first set's memory, but for some inputs of the second's.
    let mut run_with = |of_second: &[usize]| {
        recorder.take();
        let theirs = sets[1]
            .with_bindings(0, |bindings| [0, 1, 2].map(|n| bindings.inputs[n].start().expose_provenance()));
        sets[0].with_bindings(0, |bindings| {
            let mut inputs = bindings.inputs.to_vec();
            for &n in of_second {
                // SAFETY: the second set's memory is as large, and is not dropped before the queue is done.
                inputs[n] = unsafe { Region::on_device(theirs[n] as u64, inputs[n].len_bytes()) };
            }
            let bindings = Bindings { inputs: &inputs, ..*bindings };
            executable.run(&mut **queue, &bindings, &FREE).unwrap();
        });
        let calls = recorder.take();
        let result = sets[0].read(&mut **queue).remove(0);
        let updated = calls.iter().filter_map(|call| match call.did {
            Did::Update(_, nth) => Some(nth),
            _ => None,
        });
        let is_replayed = calls.iter().any(|call| matches!(call.did, Did::Replay(..)));
        (updated.collect::<Vec<_>>(), is_replayed, result)
    };
    assert_eq!((run_with(&[0]).0, run_with(&[2]).0), (vec![0], vec![0, 2]), "x is exp's, z is mul's");
    assert_eq!(run_with(&[]).0, [2]);
    // w is the product's: the replay is of no use, and the pass is right all the same.
    let (updated, is_replayed, result) = run_with(&[0, 1, 2]);
    assert_eq!((updated, is_replayed), (vec![], false));
    assert!(result == expected[1]);
    let (_, is_replayed, result) = run_with(&[0, 1, 2]);
    assert!(is_replayed && result == expected[1], "captured by now");
    let (_, is_replayed, result) = run_with(&[]);
    assert!(is_replayed && result == expected[0], "the first one is still there");
}
