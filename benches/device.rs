//! What passes cost on a device, without a trainer's way to it: each kernel alone, seeds beside each other against one
//! after the other, and passes of a whole layer. Prints one line of JSON; benches/device.py sets PyTorch beside it.
//!
//! Arguments: `cpu` or `cuda`, a folder of kernels with a `cases.json`, how many passes the layer makes, and `once` where
//! each thing is only to be done, for a tool that watches, and not to be timed.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use kasmina::{
    backend::{
        Backend, Bindings, HostMemory, Memory, OwnMemory, Queue, Region, RunContext, cpu::CpuBackend, cuda,
    },
    engine::{
        Alpha, EngineConfig, GradientSynchronizer, Kernel, LayerSpec, LiveSeed, PlanKey, PlanSet, Quota, Role,
    },
    id::{Generation, LayerId, SeedIndex, TicketId},
    tensor::{DType, Shape},
    validation::{Metadata, Policy, validate},
    wire::{self, Blend, Block, Wants},
};
use serde::{Deserialize, Serialize};

/// Samples of which the median is taken.
const SAMPLES: usize = 9;
/// What one sample should take.
const SAMPLE_SECONDS: f64 = 0.02;
/// Passes handed over before any is waited for, when the host's part is timed: few enough for the device to take them all.
const HANDED_OVER: usize = 50;

/// A line of `cases.json`.
#[derive(Clone, Debug, Deserialize)]
struct Case {
    name: String,
    /// The artifact's file, in the same folder.
    file: PathBuf,
    shape: Vec<usize>,
    dtype: DType,
    train: bool,
    /// Whether it is so small that several of it fit on a device beside each other.
    small: bool,
}

/// Times of one direction or of both, in microseconds.
#[derive(Debug, Serialize)]
struct Times {
    forward_us: f64,
    forward_backward_us: f64,
    /// What the host does for a forward.
    host_us: f64,
}

#[derive(Debug, Serialize)]
struct Beside {
    seeds: usize,
    beside_us: f64,
    one_after_the_other_us: f64,
}

#[derive(Debug, Default, Serialize)]
struct Report {
    device: String,
    kernels: BTreeMap<String, Times>,
    kernels_without_graphs: BTreeMap<String, Times>,
    kernels_without_libraries: BTreeMap<String, Times>,
    seeds: BTreeMap<String, Vec<Beside>>,
    layer: Option<LayerReport>,
}

#[derive(Debug, Serialize)]
struct LayerReport {
    kernel: String,
    seeds: usize,
    passes: usize,
    pass_us: f64,
    /// Bytes held after the first hundred passes and after the last.
    held_bytes: [usize; 2],
    /// Bytes of the device that nobody has, then and then.
    free_bytes: [usize; 2],
}

/// A device, and where it has graphs and libraries, once without each.
struct Device {
    name: String,
    backend: Arc<dyn Backend>,
    without_graphs: Option<Arc<dyn Backend>>,
    without_libraries: Option<Arc<dyn Backend>>,
    cuda: Option<Arc<cuda::CudaBackend>>,
}

impl Device {
    fn open(kind: &str) -> Self {
        if kind == "cpu" {
            let threads = std::thread::available_parallelism().map_or(1, usize::from);
            let backend = Arc::new(CpuBackend::new(threads));
            let name = "cpu".into();
            return Self { name, backend, without_graphs: None, without_libraries: None, cuda: None };
        }
        assert_eq!(kind, "cuda", "a device is cpu or cuda");
        let open = |graphs, libraries| {
            let usual = cuda::OpenOptions::of_environment();
            let options = cuda::OpenOptions { memory_bytes: 4 << 30, graphs, libraries, ..usual };
            cuda::open_device(&options).expect("there is a GPU")
        };
        let with = open(true, true);
        Self {
            name: with.properties.model,
            backend: with.backend.clone(),
            without_graphs: Some(open(false, true).backend),
            without_libraries: Some(open(true, false).backend),
            cuda: Some(with.backend),
        }
    }
}

fn kernel(folder: &Path, case: &Case) -> Arc<Kernel> {
    let bytes: Arc<[u8]> = fs::read(folder.join(&case.file)).expect("the artifact can be read").into();
    let stem = case.file.file_stem().and_then(|stem| stem.to_str()).expect("a name");
    let id: kasmina::id::KernelId = stem.parse().expect("the file is named as a kernel is");
    let metadata = Metadata { input_shape: Some((&case.shape[1..]).into()), ..Metadata::bare(id.clone()) };
    let outcome = validate(bytes, Some(&metadata), &Policy { trial: None, ..Policy::default() });
    let module = outcome.module.unwrap_or_else(|| panic!("{:?}", outcome.verdict.first_failure()));
    Arc::new(Kernel::from_module(id, metadata, outcome.verdict, module).expect("its weights fit"))
}

fn config() -> EngineConfig {
    EngineConfig { max_flops: u64::MAX, ..EngineConfig::default() }
}

/// A kernel with all memory of its own that passes need.
struct Seed {
    plans: Arc<PlanSet>,
    queue: Box<dyn Queue>,
    weights: OwnMemory,
    buffers_at: [usize; 2],
    parameter_bytes: usize,
    gradients: OwnMemory,
    updates: OwnMemory,
    saved: OwnMemory,
    workspace: OwnMemory,
    flag: OwnMemory,
    input: OwnMemory,
    output: OwnMemory,
    grad_output: OwnMemory,
    grad_input: OwnMemory,
}

impl Seed {
    fn new(backend: &dyn Backend, kernel: &Kernel, case: &Case) -> Self {
        let key = PlanKey {
            input_shape: case.shape[..].into(),
            dtype: case.dtype,
            train: case.train,
            wants_input: true,
            wants_parameters: true,
        };
        let plans = kernel.plans(&key, backend, &config()).expect("it can be planned");
        let mut queue = backend.open_queue(false);
        let values = HostMemory::new(kernel.memory_bytes());
        assert!(kernel.initialise(values.region()));
        let bytes = |shape: &Shape, dtype: DType| shape.elements() * dtype.size_bytes();
        let input_bytes = bytes(&key.input_shape, case.dtype);
        let output_bytes = bytes(&plans.output.shape, plans.output.dtype);
        let parameter_bytes = kernel.parameter_layout().total_bytes();
        let buffer_bytes = kernel.buffer_layout().total_bytes();
        let block = |len_bytes| {
            let memory = backend.allocate(len_bytes);
            assert!(memory.lack().is_none(), "{:?}", memory.lack());
            memory
        };
        let seed = Self {
            weights: block(values.len_bytes()),
            buffers_at: [kernel.buffers_offset(), buffer_bytes],
            parameter_bytes,
            gradients: block(parameter_bytes),
            updates: block(buffer_bytes),
            saved: block(plans.saved_bytes()),
            workspace: block(plans.workspace_bytes()),
            flag: block(4),
            input: block(input_bytes),
            output: block(output_bytes),
            grad_output: block(output_bytes),
            grad_input: block(input_bytes),
            plans,
            queue: backend.open_queue(false),
        };
        queue.copy(values.region(), seed.weights.region()).expect("it fits");
        queue.write(&noise(input_bytes, case.dtype), seed.input.region()).expect("it fits");
        queue.write(&noise(output_bytes, case.dtype), seed.grad_output.region()).expect("it fits");
        queue.finish(None).expect("the device works");
        seed
    }

    /// Hands a pass to the seed's own queue, or to another.
    fn run(&mut self, both: bool, other: Option<&mut dyn Queue>) {
        let queue = other.unwrap_or(&mut *self.queue);
        let context = RunContext { seed: 7, deadline: None, threads: 1 };
        let [at, len] = self.buffers_at;
        let part = |start, len| self.weights.region().part(start, len).expect("they lie within");
        let (inputs, outputs) = ([self.input.region()], [self.output.region(), self.flag.region()]);
        let common = Bindings {
            inputs: &inputs,
            parameters: part(0, self.parameter_bytes),
            buffers: part(at, len),
            saved: self.saved.region(),
            workspace: self.workspace.region(),
            ..Bindings::EMPTY
        };
        let forward = Bindings { outputs: &outputs, buffer_updates: self.updates.region(), ..common };
        self.plans.forward.run(queue, &forward, &context).expect("the forward runs");
        let Some(backward) = self.plans.backward.as_ref().filter(|_| both) else { return };
        let (grad_outputs, grad_inputs) = ([self.grad_output.region()], [self.grad_input.region()]);
        let gradients = Bindings {
            grad_outputs: &grad_outputs,
            grad_inputs: &grad_inputs,
            grad_parameters: self.gradients.region(),
            ..common
        };
        backward.executable.run(queue, &gradients, &context).expect("the backward runs");
    }

    fn finish(&mut self) {
        self.queue.finish(None).expect("the device works");
    }
}

/// Bytes of numbers between -1 and 1.
fn noise(len_bytes: usize, dtype: DType) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    let count = len_bytes / dtype.size_bytes();
    match dtype {
        DType::F32 => (0..count).flat_map(|_| next().to_le_bytes()).collect(),
        DType::BF16 => (0..count).flat_map(|_| half::bf16::from_f32(next()).to_le_bytes()).collect(),
        DType::F16 => (0..count).flat_map(|_| half::f16::from_f32(next()).to_le_bytes()).collect(),
        other => panic!("no numbers of {other}"),
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Microseconds of one call of `run`, of which many are made before `finish` waits for them all.
fn timed(once: bool, mut run: impl FnMut(usize)) -> f64 {
    let mut sample = |count: usize| {
        let start = Instant::now();
        run(count);
        start.elapsed().as_secs_f64() / count as f64
    };
    // Planned, captured and warm: the second run of a plan on a stream is the one that is captured.
    let first = sample(3).min(sample(3));
    if once {
        return first * 1e6;
    }
    let count = ((SAMPLE_SECONDS / first) as usize).clamp(3, 2000);
    median((0..SAMPLES).map(|_| sample(count)).collect()) * 1e6
}

fn times(seed: &mut Seed, once: bool) -> Times {
    let mut passes = |both: bool| {
        timed(once, |count| {
            (0..count).for_each(|_| seed.run(both, None));
            seed.finish();
        })
    };
    let (forward_us, forward_backward_us) = (passes(false), passes(true));
    let (samples, count) = if once { (1, 1) } else { (SAMPLES, HANDED_OVER) };
    let host_us = median(
        (0..samples)
            .map(|_| {
                let start = Instant::now();
                (0..count).for_each(|_| seed.run(false, None));
                let handed_over = start.elapsed().as_secs_f64() / count as f64;
                seed.finish();
                handed_over * 1e6
            })
            .collect(),
    );
    Times { forward_us, forward_backward_us, host_us }
}

/// Forwards of several seeds, each on a queue of its own, against all of them on one.
fn beside(backend: &dyn Backend, kernel: &Kernel, case: &Case, count: usize, once: bool) -> Beside {
    let mut seeds: Vec<_> = (0..count).map(|_| Seed::new(backend, kernel, case)).collect();
    let beside_us = timed(once, |passes| {
        for _ in 0..passes {
            seeds.iter_mut().for_each(|seed| seed.run(false, None));
        }
        seeds.iter_mut().for_each(Seed::finish);
    });
    let mut queue = backend.open_queue(false);
    let one_after_the_other_us = timed(once, |passes| {
        for _ in 0..passes {
            seeds.iter_mut().for_each(|seed| seed.run(false, Some(&mut *queue)));
        }
        queue.finish(None).expect("the device works");
    });
    Beside { seeds: count, beside_us, one_after_the_other_us }
}

/// Where things of a layer's pass lie in its arena.
#[derive(Clone, Copy)]
enum Room {
    Input,
    Output,
    GradOutput,
    GradInput,
    GradParameters,
}

/// Training passes of a layer of four seeds, from and to an arena of the host.
fn layer(device: &Device, kernel: &Arc<Kernel>, case: &Case, passes: usize, once: bool) -> LayerReport {
    const SEEDS: usize = 4;
    let backend = &device.backend;
    let spec = LayerSpec {
        id: LayerId(1),
        blend: Blend::Residual,
        counters: (0..SEEDS).map(|_| Arc::default()).collect(),
        host: false,
        recompute: false,
    };
    let mut layer = GradientSynchronizer::new(spec, backend.clone(), Arc::new(config()));
    for nth in 0..SEEDS {
        let memory = Arc::new(HostMemory::new(kernel.memory_bytes()));
        assert!(kernel.initialise(memory.region()));
        let shared = backend.share(memory).expect("the device has room");
        let live = LiveSeed::new(kernel.clone(), shared, Generation(1)).expect("it fits");
        let alpha = Alpha::new(0.25).expect("a blend factor");
        layer.attach(SeedIndex(nth as u16), Arc::new(live), alpha, Role::Blended).expect("there is a place");
    }
    let bytes = case.shape.iter().product::<usize>() * case.dtype.size_bytes();
    let gradient_bytes = SEEDS * kernel.parameter_layout().total_bytes();
    let room_bytes = bytes.max(gradient_bytes).next_multiple_of(4096);
    let arena = Arc::new(HostMemory::new(5 * room_bytes));
    let block =
        |room: Room, bytes: usize| Block { offset: (room as usize * room_bytes) as u64, bytes: bytes as u64 };
    for room in [Room::Input, Room::GradOutput] {
        let region: Region<'_> = arena.region().part(room as usize * room_bytes, bytes).expect("a room");
        assert!(region.write(&noise(bytes, case.dtype)));
    }
    let arena = Arc::new(backend.share(arena).expect("the device has room"));
    let mut quota = Quota::new(0, 0);
    let forward = wire::Forward {
        sequence: 0,
        layer: LayerId(1),
        train: case.train,
        take_ticket: true,
        wants: Wants { input: true, parameters: true, alphas: false },
        rng_seed: 7,
        dtype: case.dtype,
        input: block(Room::Input, bytes),
        input_shape: case.shape[..].into(),
        output: block(Room::Output, bytes),
        output_shape: case.shape[..].into(),
        alphas: None,
    };
    let mut pass = || {
        let there = layer.forward(&forward, &arena, &mut quota).expect("the forward runs");
        assert!(there.failures.is_empty(), "{:?}", there.failures);
        let backward = wire::Backward {
            places: None,
            sequence: 0,
            layer: LayerId(1),
            ticket: TicketId(there.ticket.0),
            grad_output: block(Room::GradOutput, bytes),
            grad_input: Some(block(Room::GradInput, bytes)),
            grad_parameters: Some(block(Room::GradParameters, gradient_bytes)),
            grad_alphas: None,
            straight: None,
        };
        let back = layer.backward(&backward, &arena, &mut quota).expect("the backward runs");
        assert!(back.failures.is_empty(), "{:?}", back.failures);
    };
    let held = || device.cuda.as_ref().map_or(0, |cuda| cuda.held_bytes());
    let free = || device.cuda.as_ref().map_or(0, |cuda| cuda.free_bytes().expect("the device works"));
    let (warm, passes) = if once { (2, 2) } else { (100, passes) };
    (0..warm).for_each(|_| pass());
    let before = (held(), free());
    let start = Instant::now();
    (0..passes).for_each(|_| pass());
    let pass_us = start.elapsed().as_secs_f64() / passes as f64 * 1e6;
    LayerReport {
        kernel: case.name.clone(),
        seeds: SEEDS,
        passes,
        pass_us,
        held_bytes: [before.0, held()],
        free_bytes: [before.1, free()],
    }
}

fn main() {
    // cargo adds `--bench`.
    let arguments: Vec<String> = env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let [kind, folder, passes, mode @ ..] = &arguments[..] else {
        panic!("arguments: cpu|cuda FOLDER PASSES [once]")
    };
    let (folder, once) = (Path::new(folder), mode.first().is_some_and(|mode| mode == "once"));
    let passes: usize = passes.parse().expect("a number of passes");
    let text = fs::read_to_string(folder.join("cases.json")).expect("the folder has a cases.json");
    let cases: Vec<Case> = serde_json::from_str(&text).expect("a list of cases");
    let device = Device::open(kind);
    let mut report = Report { device: device.name.clone(), ..Report::default() };
    for case in &cases {
        let kernel = kernel(folder, case);
        let mut seed = Seed::new(&*device.backend, &kernel, case);
        report.kernels.insert(case.name.clone(), times(&mut seed, once));
        for (backend, into) in [
            (&device.without_graphs, &mut report.kernels_without_graphs),
            (&device.without_libraries, &mut report.kernels_without_libraries),
        ] {
            let Some(backend) = backend else { continue };
            // Plans belong to a device: a kernel's of one cannot run on another.
            let kernel = self::kernel(folder, case);
            let mut seed = Seed::new(&**backend, &kernel, case);
            into.insert(case.name.clone(), times(&mut seed, once));
        }
        if case.small {
            let of = |&count: &usize| beside(&*device.backend, &kernel, case, count, once);
            report.seeds.insert(case.name.clone(), [1, 2, 4, 8].iter().map(of).collect());
        }
    }
    if let Some(case) = cases.iter().find(|case| case.small) {
        report.layer = Some(layer(&device, &kernel(folder, case), case, passes, once));
    }
    println!("{}", serde_json::to_string(&report).expect("a report is JSON"));
}
