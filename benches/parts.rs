//! The parts of a pass, each alone and on one thread: descriptors and rings, a look-up in L1 and of a plan, and what kernels
//! are made of. `cargo bench --bench parts -- PART` measures those whose names have PART in them.

use std::{hint::black_box, sync::Arc, time::Duration};

use criterion::{BenchmarkGroup, Criterion, Throughput, measurement::WallTime};
use kasmina::{
    backend::{Backend, Bindings, CompileOptions, OwnMemory, Region, RunContext, cpu::CpuBackend},
    cache::{Budget, DeviceCache},
    clock::SystemClock,
    digest::Digest,
    engine::{EngineConfig, Kernel, KernelParts, PlanKey, Program},
    fault::Fault,
    graph::{Binary, Builder, Conv2d, Graph, GraphError, Limits, Op, Sink, Source, Unary, ValueId},
    id::KernelId,
    tensor::{DType, PackedLayout},
    validation::Metadata,
    wire::{ClientLane, Completion, DaemonLane, Descriptor, FLAG_TRAIN, Submission, VERB_FORWARD},
};

fn id(name: &str) -> KernelId {
    name.parse().expect("it is of the alphabet")
}

/// The forward of x of 8×64.
fn submission(input_offset: u64) -> Submission {
    let (bytes, dims) = (8 * 64 * 4, [8, 64, 0, 0, 0, 0, 0, 0]);
    Submission {
        verb: VERB_FORWARD,
        flags: FLAG_TRAIN,
        dtype: DType::F32.code().into(),
        input_offset,
        input_bytes: bytes,
        output_offset: input_offset + bytes,
        output_bytes: bytes,
        input_rank: 2,
        output_rank: 2,
        input_dims: dims,
        output_dims: dims,
        ..Submission::default()
    }
}

fn wire(criterion: &mut Criterion) {
    let (mut daemon, doorbell) = DaemonLane::serve(1 << 20).expect("there is memory");
    let file = daemon.arena().file().try_clone_to_owned().expect("there is a descriptor");
    let mut client = ClientLane::join(file, doorbell, daemon.arena().layout()).expect("it is sealed");
    let layout = *daemon.arena().layout();
    let submission = submission(layout.heap_offset);
    criterion.bench_function("wire/submission to words, back and checked", |bencher| {
        bencher.iter(|| {
            let words = black_box(&submission).to_words();
            Submission::from_words(black_box(words)).check(&layout).expect("it is right")
        });
    });
    criterion.bench_function("wire/both rings there and back", |bencher| {
        bencher.iter(|| {
            client.publish(black_box(&submission)).expect("there is room");
            let taken = daemon.poll().expect("the counters are right").expect("it was published");
            let completion = Completion { sequence: taken.sequence, ..Completion::default() };
            daemon.publish(&completion).expect("there is room");
            client.poll().expect("the counters are right").expect("it was published")
        });
    });
}

fn l1(criterion: &mut Criterion) {
    let budget = Budget { max_entries: 100, max_bytes: 1 << 30 };
    let cache = DeviceCache::new(budget, |_: &Arc<[u8]>| 1024, Arc::new(SystemClock));
    let ids: Vec<KernelId> = (0..100).map(|n| id(&format!("kernel-{n}"))).collect();
    for id in &ids {
        drop(cache.admit(id.clone(), Arc::from([0; 16])).expect("the budget has room for all"));
    }
    let mut next = ids.iter().cycle();
    let mut lease = || cache.lease(next.next().expect("it is a cycle"));
    criterion.bench_function("l1/lease", |bencher| bencher.iter(&mut lease));
}

#[derive(Debug)]
struct Doubling;

impl Program for Doubling {
    fn lower(&self, key: &PlanKey, _limits: &Limits) -> Result<Graph, Box<dyn Fault + Send + Sync>> {
        let double = |b: &mut Builder, x: &[ValueId]| b.apply(Op::Unary(Unary::MulScalar { value: 2.0 }), x);
        Ok(graph(&[&key.input_shape], double))
    }
}

/// Among plans for as many shapes as a kernel keeps plans for.
fn plan(criterion: &mut Criterion) {
    let (backend, config) = (CpuBackend::new(1), EngineConfig::default());
    let parts = KernelParts {
        id: id("doubling"),
        digest: Digest::of(b"doubling"),
        metadata: Metadata::bare(id("doubling")),
        verdict: None,
        parameters: Vec::new(),
        buffers: Vec::new(),
        program: Box::new(Doubling),
    };
    let kernel = Kernel::new(parts).expect("it has no weights");
    let key = |batch: usize| PlanKey {
        input_shape: [batch, 64].into(),
        dtype: DType::F32,
        train: true,
        wants_input: true,
        wants_parameters: true,
    };
    let keys: Vec<PlanKey> = (1..=32).map(key).collect();
    let mut group = criterion.benchmark_group("plan");
    for (name, keys) in [("the one used last", &keys[..1]), ("any of 32", &keys[..])] {
        let mut next = keys.iter().cycle();
        let mut look_up = || kernel.plans(next.next().expect("it is a cycle"), &backend, &config);
        (0..keys.len()).for_each(|_| drop(look_up().expect("it can be planned")));
        group.bench_function(name, |bencher| bencher.iter(&mut look_up));
    }
}

fn graph(
    shapes: &[&[usize]],
    body: impl Fn(&mut Builder, &[ValueId]) -> Result<ValueId, GraphError>,
) -> Graph {
    let mut b = Builder::new();
    let input = |(n, &shape): (u32, &&[usize])| {
        b.source(Source::Input(n), shape.into(), DType::F32).expect("it fits")
    };
    let inputs: Vec<ValueId> = (0..).zip(shapes).map(input).collect();
    let y = body(&mut b, &inputs).expect("the shapes fit");
    b.sink(Sink::Output(0), y);
    b.finish()
}

/// Measures a graph's plan, with memory for its runs.
fn run(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    shapes: &[&[usize]],
    body: impl Fn(&mut Builder, &[ValueId]) -> Result<ValueId, GraphError>,
) {
    let (backend, none, graph) = (CpuBackend::new(1), PackedLayout::default(), graph(shapes, body));
    let options =
        CompileOptions { parameters: &none, buffers: &none, limit_bytes: usize::MAX, deadline: None };
    let plan = backend.compile(&graph, &options).expect("it can be planned");
    let memory = |value| backend.allocate(graph.info(value).shape.elements() * DType::F32.size_bytes());
    let inputs: Vec<OwnMemory> = graph.sources.iter().map(|&(_, value)| memory(value)).collect();
    for memory in &inputs {
        let numbers =
            (0..memory.len_bytes() / 4).map(|n| (n.wrapping_mul(2_654_435_761) % 997) as f32 / 500.0);
        assert!(memory.region().write(&numbers.flat_map(|n| (n - 1.0).to_le_bytes()).collect::<Vec<u8>>()));
    }
    let output = memory(graph.sinks[0].1);
    let inputs: Vec<Region<'_>> = inputs.iter().map(|memory| memory.region()).collect();
    let (outputs, workspace) = ([output.region()], backend.allocate(plan.needs().workspace_bytes));
    let bindings =
        Bindings { inputs: &inputs, outputs: &outputs, workspace: workspace.region(), ..Bindings::EMPTY };
    let (mut queue, context) =
        (backend.open_queue(false), RunContext { seed: 1, deadline: None, threads: 1 });
    let mut pass = || plan.run(&mut *queue, &bindings, &context).expect("it runs");
    group.bench_function(name, |bencher| bencher.iter(&mut pass));
}

/// Multiplications and additions are two operations, those that Winograd's algorithm saves counted too.
fn products(criterion: &mut Criterion) {
    let product = |b: &mut Builder, x: &[ValueId]| {
        b.apply(Op::MatMul { transpose_a: false, transpose_b: false }, &x[..2])
    };
    let conv = |groups| {
        let conv = Conv2d { stride: [1, 1], padding: [1, 1], dilation: [1, 1], groups };
        move |b: &mut Builder, x: &[ValueId]| b.apply(Op::Conv2d(conv), x)
    };
    let mut group = criterion.benchmark_group("products");
    group.throughput(Throughput::Elements(2 * 8 * 64 * 64));
    run(&mut group, "linear 64→64, batch of 8", &[&[8, 64], &[64, 64], &[64]], |b, x| {
        let y = product(b, x)?;
        b.apply(Op::Binary(Binary::Add), &[y, x[2]])
    });
    group.throughput(Throughput::Elements(2 * 1024 * 256 * 1024));
    run(&mut group, "product 1024×256×1024", &[&[1024, 256], &[256, 1024]], product);
    let maps: &[usize] = &[8, 64, 32, 32];
    group.throughput(Throughput::Elements(2 * 8 * 32 * 32 * 64 * 64 * 9));
    run(&mut group, "3×3 by Winograd, 8×64×32×32", &[maps, &[64, 64, 3, 3]], conv(1));
    group.throughput(Throughput::Elements(2 * 8 * 32 * 32 * 64 * 9));
    run(&mut group, "3×3 depthwise, 8×64×32×32", &[maps, &[64, 1, 3, 3]], conv(64));
}

/// Bytes are those of x and y.
fn rows(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("rows");
    group.throughput(Throughput::Bytes(2 * 1024 * 256 * 4));
    let norm = Op::LayerNorm { dims: 1, eps: 1e-5 };
    run(&mut group, "LayerNorm 1024×256", &[&[1024, 256], &[256], &[256]], |b, x| b.apply(norm.clone(), x));
    run(&mut group, "softmax 1024×256", &[&[1024, 256]], |b, x| b.apply(Op::Softmax { dim: 1 }, x));
}

fn main() {
    let criterion = Criterion::default().warm_up_time(Duration::from_millis(500));
    let mut criterion = criterion.measurement_time(Duration::from_secs(2)).configure_from_args();
    [wire, l1, plan, products, rows].into_iter().for_each(|part| part(&mut criterion));
    criterion.final_summary();
}
