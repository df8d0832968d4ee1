//! Passes fail in a layer, are recorded, and fail again from their files alone.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use crossbeam_channel::{Receiver, Sender, unbounded};

use super::{Activations, Replay, ReplayError, Rerun};
use crate::{
    artifact::{self, Module, ReadLimits},
    backend::{
        Backend, Bindings, BuildError, CompileOptions, Executable, HostMemory, Memory as _, MemoryNeeds,
        Queue, RunContext, RunError, Shared, cpu::CpuBackend, test_device::device,
    },
    clock::SystemClock,
    digest::Digest,
    engine::{
        Alpha, EngineConfig, EngineError, ForwardReport, GradientSynchronizer, Kernel, KernelParts,
        LayerSpec, LiveSeed, Quota, Role, SeedCounters, Witness, kernel::weights,
    },
    fault::Fault as _,
    graph::{Graph, Sink},
    id::{Generation, LayerId, SeedIndex, SessionId, TicketId},
    record::{Counts, Direction, Dropped, Record, Recorder, RecorderOptions},
    tensor::{DType, HostTensor},
    validation::Metadata,
    wire::{self, Blend, Block, Wants},
};

const BATCH: usize = 7;
const INPUT: usize = BATCH * 10;
const OUTPUT: usize = BATCH * 4;
const ROOM: usize = 8192;
const LAYER: LayerId = LayerId(3);

/// Linear, batch norm, relu, linear.
fn module() -> (Arc<Module>, Digest) {
    // Asked when it runs: on a GPU machine the tree lies elsewhere than where it was built.
    let root = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    let path = Path::new(&root).join("tests/data/golden/batchnorm1d_mlp.train.pt2");
    let bytes: Arc<[u8]> = std::fs::read(path).unwrap().into();
    let digest = Digest::of(&bytes);
    (Arc::new(artifact::read(bytes, &ReadLimits::default()).unwrap()), digest)
}

fn live(name: &str) -> Arc<LiveSeed> {
    live_on(&*device(1), name)
}

/// One for backends that are the CPU with a fault.
fn live_on_cpu(name: &str) -> Arc<LiveSeed> {
    live_on(&CpuBackend::new(1), name)
}

fn live_on(backend: &dyn Backend, name: &str) -> Arc<LiveSeed> {
    let (module, digest) = module();
    let (parameters, buffers) = weights(&module);
    let id: crate::id::KernelId = name.parse().unwrap();
    let (metadata, program) = (Metadata::bare(id.clone()), Box::new(module));
    let kernel =
        Kernel::new(KernelParts { id, digest, metadata, verdict: None, parameters, buffers, program });
    let kernel = Arc::new(kernel.unwrap());
    let memory = HostMemory::new(kernel.memory_bytes());
    assert!(kernel.initialise(memory.region()));
    Arc::new(LiveSeed::new(kernel, backend.share(Arc::new(memory)).unwrap(), Generation(9)).unwrap())
}

/// Writes a number into a seed's parameter, as its trainer may.
fn set(live: &LiveSeed, parameter: &str, index: usize, value: f32) {
    let n = live.kernel().parameters().iter().position(|weight| weight.name == parameter).unwrap();
    let slot = &live.kernel().parameter_layout().slots()[n];
    assert!(live.parameters().part(slot.offset_bytes + 4 * index, 4).unwrap().write(&value.to_le_bytes()));
}

fn bytes_of(region: crate::backend::Region<'_>) -> Vec<u8> {
    let mut bytes = vec![0; region.len_bytes()];
    assert!(region.read(&mut bytes));
    bytes
}

struct Bench {
    _folder: tempfile::TempDir,
    path: PathBuf,
    recorder: Arc<Recorder>,
    sync: GradientSynchronizer,
    arena: Arc<Shared>,
    quota: Quota,
    output: [usize; 2],
}

impl Bench {
    fn new(config: EngineConfig) -> Self {
        Self::of(device(config.threads), 1, false, false, config)
    }

    fn of(
        backend: Arc<dyn Backend>,
        seeds: usize,
        host: bool,
        recompute: bool,
        config: EngineConfig,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("failures");
        let options = RecorderOptions { folder: path.clone(), max_bytes: 1 << 30 };
        let recorder = Recorder::start(options, Arc::new(SystemClock)).unwrap();
        let counters: Vec<Arc<SeedCounters>> =
            (0..seeds + usize::from(host)).map(|_| Arc::default()).collect();
        let spec = LayerSpec { id: LAYER, blend: Blend::Residual, counters, host, recompute };
        let arena = Arc::new(backend.share(Arc::new(HostMemory::new(4 * ROOM))).unwrap());
        let mut sync = GradientSynchronizer::new(spec, backend, Arc::new(config));
        let witness = Witness { recorder: recorder.clone(), session: SessionId(5), uid: 1000, step: 0 };
        sync.record_with(witness);
        sync.note_step(17);
        let quota = Quota::new(100, 1 << 24);
        Self { _folder: folder, path, recorder, sync, arena, quota, output: [BATCH, 4] }
    }

    fn attach(&mut self, seed: usize, live: &Arc<LiveSeed>, role: Role) {
        let alpha = Alpha::new(0.25).unwrap();
        self.sync.attach(SeedIndex(seed as u16), live.clone(), alpha, role).unwrap();
    }

    fn write(&self, room: usize, values: &[f32]) {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        assert!(self.arena.words().part(room * ROOM, bytes.len()).unwrap().write(&bytes));
    }

    fn forward(&mut self, take_ticket: bool) -> Result<ForwardReport, EngineError> {
        self.write(0, &x());
        let request = wire::Forward {
            sequence: 0,
            layer: LAYER,
            train: true,
            take_ticket,
            wants: Wants { input: true, parameters: true, alphas: false },
            rng_seed: u64::MAX - 1,
            dtype: DType::F32,
            input: block(0, INPUT),
            input_shape: [BATCH, 10].into(),
            output: block(1, self.output.iter().product()),
            output_shape: self.output.into(),
            alphas: None,
        };
        self.sync.forward(&request, &self.arena, &mut self.quota)
    }

    fn backward(&mut self, ticket: TicketId) -> Result<super::super::BackwardReport, EngineError> {
        self.write(2, &[1.0; OUTPUT]);
        let request = wire::Backward {
            places: None,
            sequence: 0,
            layer: LAYER,
            ticket,
            grad_output: block(2, OUTPUT),
            grad_input: Some(block(3, INPUT)),
            grad_parameters: None,
            grad_alphas: None,
            straight: None,
        };
        self.sync.backward(&request, &self.arena, &mut self.quota)
    }

    /// Every record, in the order of names.
    fn records(&self) -> Vec<Record> {
        self.recorder.close(Duration::from_secs(60));
        let mut paths: Vec<PathBuf> =
            std::fs::read_dir(&self.path).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.retain(|path| path.is_file());
        paths.sort();
        paths.iter().map(|path| Record::read(&std::fs::read(path).unwrap().into()).unwrap()).collect()
    }

    fn counts(&self) -> Counts {
        self.recorder.counts()
    }
}

fn block(room: usize, elements: usize) -> Block {
    Block { offset: (room * ROOM) as u64, bytes: 4 * elements as u64 }
}

fn x() -> Vec<f32> {
    (0..INPUT).map(|i| (i as f32 * 0.37).sin()).collect()
}

fn config() -> EngineConfig {
    EngineConfig { threads: 1, error_threshold: 100, ..EngineConfig::default() }
}

fn replay(record: Record) -> Replay {
    let module = artifact::read(record.artifact.clone(), &ReadLimits::default()).unwrap();
    Replay::new(record, Arc::new(module), None).unwrap()
}

fn code(rerun: &Rerun) -> Option<&'static str> {
    rerun.outcome.as_ref().err().map(|error| error.code())
}

#[test]
fn an_output_that_is_not_finite_is_recorded_as_the_pass_found_everything() {
    let (mut bench, seed) = (Bench::new(config()), live("bad"));
    bench.attach(0, &seed, Role::Blended);
    bench.forward(false).unwrap();
    set(&seed, "3.weight", 5, f32::INFINITY);
    // What the first pass has made of the running statistics is what the second finds.
    let found = bytes_of(seed.buffers());
    let report = bench.forward(true).unwrap();
    assert_eq!(report.failures[0].error.code(), "kernel.non_finite");
    let records = bench.records();
    let [record] = &records[..] else { panic!("{}", records.len()) };
    let header = &record.header;
    assert_eq!(
        (header.session, header.uid, header.layer, header.seed),
        (SessionId(5), 1000, LAYER, SeedIndex(0))
    );
    assert_eq!((header.generation, header.step, header.rng_seed), (Generation(9), 17, u64::MAX - 1));
    assert_eq!((header.role.as_str(), header.alpha, header.train), ("blended", 0.25, true));
    assert_eq!(
        (header.direction, header.again, header.code.as_str()),
        (Direction::Forward, false, "kernel.non_finite")
    );
    assert!(header.elapsed_ns.is_some() && header.wants_input && header.wants_parameters);
    assert_eq!(record.input, HostTensor::from_values([BATCH, 10].into(), &x()).unwrap());
    for (slot, weight) in seed.kernel().buffer_layout().slots().iter().zip(seed.kernel().buffers()) {
        let (_, tensor) = record.buffers.iter().find(|(name, _)| *name == weight.name).unwrap();
        assert_eq!(tensor.bytes(), &found[slot.offset_bytes..slot.offset_bytes + slot.len_bytes]);
        assert_ne!(tensor, &weight.tensor, "the first pass has moved {}", weight.name);
    }
    let replay = replay(record.clone());
    let rerun = replay.run().unwrap();
    assert_eq!(code(&rerun), Some("kernel.non_finite"));
    let trace = replay.trace().unwrap();
    let culprit = trace.first_culprit().unwrap();
    assert!(culprit.operation.contains("matmul(") && culprit.operation.contains("3.weight"), "{culprit:?}");
    let (_, range) = culprit.operands.iter().find(|(name, _)| name == "3.weight").unwrap();
    assert_eq!((range.infinities, range.elements), (1, 64));
}

#[test]
fn a_pass_that_passed_its_time_limit_does_so_again_under_it_alone() {
    let mut bench = Bench::new(EngineConfig { time_limit: Duration::ZERO, ..config() });
    bench.attach(0, &live("slow"), Role::Blended);
    bench.forward(false).unwrap();
    let record = bench.records().remove(0);
    assert_eq!(record.header.code, "kernel.timeout");
    assert_eq!(code(&replay(record.clone()).run().unwrap()), Some("kernel.timeout"));
    let module = artifact::read(record.artifact.clone(), &ReadLimits::default()).unwrap();
    let patient = Replay::new(record, Arc::new(module), Some(Duration::from_secs(600))).unwrap();
    assert_eq!(code(&patient.run().unwrap()), None);
}

#[test]
fn a_pass_that_ran_out_of_time_has_what_was_left_to_it() {
    let mut bench = Bench::new(EngineConfig { time_limit: Duration::ZERO, ..config() });
    bench.attach(0, &live("slow"), Role::Blended);
    bench.forward(false).unwrap();
    let mut record = bench.records().remove(0);
    assert_eq!(record.header.allowed_ns, Some(0));
    // As if planning, or another seed, had used the time up.
    record.header.settings.time_limit_ns = 600_000_000_000;
    assert_eq!(code(&replay(record.clone()).run().unwrap()), Some("kernel.timeout"));
    // Another failure has come within the time, which says nothing of how long another machine takes.
    record.header.code = "kernel.non_finite".to_owned();
    assert_eq!(code(&replay(record).run().unwrap()), None);
}

#[test]
fn a_kernel_that_does_not_fit_its_layer_is_recorded_without_having_run() {
    let mut bench = Bench::new(config());
    bench.output = [BATCH, 5];
    bench.attach(0, &live("narrow"), Role::Blended);
    bench.forward(false).unwrap();
    let record = bench.records().remove(0);
    assert_eq!((record.header.code.as_str(), record.header.elapsed_ns), ("kernel.shape", None));
    let rerun = replay(record).run().unwrap();
    assert_eq!((code(&rerun), rerun.time), (Some("kernel.shape"), None));
}

#[test]
fn a_host_that_fails_is_recorded_too() {
    let backend = device(1);
    let (mut bench, host) = (Bench::of(backend, 1, true, false, config()), live("host"));
    bench.attach(1, &host, Role::Host);
    set(&host, "0.bias", 0, f32::NAN);
    assert_eq!(bench.forward(false).unwrap_err().code(), "kernel.non_finite");
    let record = bench.records().remove(0);
    assert_eq!((record.header.role.as_str(), record.header.seed), ("host", SeedIndex(1)));
    assert_eq!(code(&replay(record).run().unwrap()), Some("kernel.non_finite"));
}

#[test]
fn seeds_that_fail_beside_a_failing_host_are_recorded_too() {
    let backend = device(1);
    let mut bench = Bench::of(backend, 2, true, false, config());
    let kernels = [live("one"), live("good"), live("host")];
    for (slot, role) in [Role::Blended, Role::Blended, Role::Host].into_iter().enumerate() {
        bench.attach(slot, &kernels[slot], role);
    }
    [0, 2].iter().for_each(|&slot| set(&kernels[slot], "0.bias", 0, f32::NAN));
    assert_eq!(bench.forward(false).unwrap_err().code(), "kernel.non_finite");
    let mut slots: Vec<u16> = bench.records().iter().map(|record| record.header.seed.0).collect();
    slots.sort_unstable();
    assert_eq!(slots, [0, 2]);
}

#[test]
fn a_forward_run_again_is_recorded_on_the_buffers_of_the_first() {
    let backend = device(1);
    let (mut bench, seed) = (Bench::of(backend, 1, false, true, config()), live("again"));
    bench.attach(0, &seed, Role::Blended);
    let found = bytes_of(seed.buffers());
    let ticket = bench.forward(true).unwrap().ticket;
    assert_ne!(bytes_of(seed.buffers()), found);
    set(&seed, "0.bias", 0, f32::NAN);
    assert_eq!(bench.backward(ticket).unwrap().failures.len(), 1);
    let record = bench.records().remove(0);
    assert_eq!((record.header.direction, record.header.again), (Direction::Forward, true));
    let slot = &seed.kernel().buffer_layout().slots()[0];
    let (_, tensor) =
        record.buffers.iter().find(|(name, _)| *name == seed.kernel().buffers()[0].name).unwrap();
    assert_eq!(tensor.bytes(), &found[slot.offset_bytes..slot.offset_bytes + slot.len_bytes]);
    assert_eq!(code(&replay(record).run().unwrap()), Some("kernel.non_finite"));
}

/// Runs like the CPU, but gradients of kernels pass their time limit at once or, on a seed's own thread, wait for a
/// permit.
#[derive(Debug)]
struct Stubborn {
    cpu: CpuBackend,
    permits: Option<Receiver<()>>,
    /// Whether gradients pass their time limit where none is waited for, too.
    fails: bool,
}

#[derive(Debug)]
struct StubbornRun {
    inner: Arc<dyn Executable>,
    permits: Option<Receiver<()>>,
    fails: bool,
}

impl Backend for Stubborn {
    fn name(&self) -> &str {
        "stubborn"
    }

    fn compile(
        &self,
        graph: &Graph,
        options: &CompileOptions<'_>,
    ) -> Result<Arc<dyn Executable>, BuildError> {
        let inner = self.cpu.compile(graph, options)?;
        let is_gradient = graph.sinks.iter().any(|(sink, _)| matches!(sink, Sink::GradParameter(_)));
        let (permits, fails) = (self.permits.clone(), self.fails);
        Ok(if is_gradient { Arc::new(StubbornRun { inner, permits, fails }) } else { inner })
    }
}

impl Executable for StubbornRun {
    fn needs(&self) -> &MemoryNeeds {
        self.inner.needs()
    }

    fn held_bytes(&self) -> usize {
        self.inner.held_bytes()
    }

    fn run(
        &self,
        queue: &mut dyn Queue,
        bindings: &Bindings<'_>,
        context: &RunContext,
    ) -> Result<(), RunError> {
        let is_seeds = std::thread::current().name().is_some_and(|name| name.starts_with("seed "));
        match &self.permits {
            Some(permits) if is_seeds => {
                let _ = permits.recv();
                self.inner.run(queue, bindings, context)
            }
            _ if self.fails => Err(RunError::Timeout { done: 1, total: 2 }),
            _ => self.inner.run(queue, bindings, &RunContext { deadline: None, ..*context }),
        }
    }
}

#[test]
fn a_gradient_that_fails_is_recorded_with_its_activations() {
    let backend = Arc::new(Stubborn { cpu: CpuBackend::new(1), permits: None, fails: true });
    let (mut bench, seed) = (Bench::of(backend, 1, false, false, config()), live_on_cpu("gradient"));
    bench.attach(0, &seed, Role::Blended);
    let tickets: Vec<TicketId> = (0..2).map(|_| bench.forward(true).unwrap().ticket).collect();
    assert_eq!(bench.backward(tickets[0]).unwrap().failures[0].error.code(), "kernel.timeout");
    // An optimizer that steps between forward and backward.
    set(&seed, "0.weight", 0, 123.0);
    bench.backward(tickets[1]).unwrap();
    let records = bench.records();
    assert_eq!(records.len(), 2);
    for (record, activations) in records.into_iter().zip([Activations::Same, Activations::Differ]) {
        assert_eq!(
            (record.header.direction, record.header.code.as_str()),
            (Direction::Backward, "kernel.timeout")
        );
        // The gradient of the kernel's output is the layer's, by alpha.
        let gradient = record.grad_output.as_ref().unwrap();
        assert_eq!(gradient.to_values::<f32>().unwrap(), [0.25; OUTPUT]);
        let replay = replay(record);
        let rerun = replay.run().unwrap();
        assert_eq!(
            (code(&rerun), rerun.activations),
            (None, Some(activations)),
            "it fails on that device alone"
        );
        let trace = replay.trace().unwrap();
        assert!(trace.culprits.is_empty() && trace.operations.len() > 5, "{}", trace.operations.len());
    }
}

/// The record of a backward that fails on its device alone.
fn failing_backward(kernel: &str) -> Record {
    let backend = Arc::new(Stubborn { cpu: CpuBackend::new(1), permits: None, fails: true });
    let mut bench = Bench::of(backend, 1, false, false, config());
    bench.attach(0, &live_on_cpu(kernel), Role::Blended);
    let ticket = bench.forward(true).unwrap().ticket;
    bench.backward(ticket).unwrap();
    bench.records().remove(0)
}

#[test]
fn what_another_version_has_saved_is_made_anew() {
    let mut record = failing_backward("old");
    record.header.version = "0.0.1".to_owned();
    let rerun = replay(record).run().unwrap();
    assert_eq!((code(&rerun), rerun.activations), (None, Some(Activations::Made)));
}

#[test]
fn the_forward_that_a_backward_is_compared_with_is_not_what_failed() {
    let mut record = failing_backward("compared");
    // Nothing has changed, and the backward alone has a time limit.
    record.header.allowed_ns = Some(0);
    let hurried = replay(record.clone());
    let rerun = hurried.run().unwrap();
    assert_eq!((code(&rerun), rerun.activations), (Some("kernel.timeout"), Some(Activations::Same)));
    assert!(!hurried.trace().unwrap().operations.is_empty(), "a trace has no limit");
    // A forward that fails says nothing of what has changed, and is not the failure that was recorded.
    let bias = record.parameters.iter_mut().find(|(name, _)| name == "0.bias").unwrap();
    let values = vec![f32::NAN; bias.1.shape().elements()];
    bias.1 = HostTensor::from_values(bias.1.shape().clone(), &values).unwrap();
    record.header.code = "kernel.non_finite".to_owned();
    let rerun = replay(record.clone()).run().unwrap();
    assert_eq!(code(&rerun), None);
    assert!(
        matches!(&rerun.activations, Some(Activations::Unknown { error }) if error.code() == "kernel.non_finite")
    );
    record.header.version = "0.0.1".to_owned();
    let stranger = replay(record);
    for error in [stranger.run().unwrap_err(), stranger.trace().unwrap_err()] {
        assert!(matches!(&error, ReplayError::Forward { version, .. } if version == "0.0.1"), "{error}");
    }
}

fn stubborn(fails: bool) -> (Sender<()>, Bench) {
    let (sender, permits) = unbounded();
    let config =
        EngineConfig { threads: 2, spread_above: 0, time_limit: Duration::from_millis(50), ..config() };
    let backend = Arc::new(Stubborn { cpu: CpuBackend::new(1), permits: Some(permits), fails });
    (sender, Bench::of(backend, 2, fails, false, config))
}

#[test]
fn a_gradient_that_comes_back_late_is_recorded_when_it_does() {
    let (permit, mut bench) = stubborn(false);
    let seeds = [live_on_cpu("late"), live_on_cpu("prompt")];
    (0..2).for_each(|n| bench.attach(n, &seeds[n], Role::Blended));
    let ticket = loop {
        // Forward passes go by the clock: one may be late on a busy machine.
        let report = bench.forward(true).unwrap();
        if report.live_mask == 3 {
            break report.ticket;
        }
    };
    let report = bench.backward(ticket).unwrap();
    assert!(report.failures.iter().any(|failure| failure.seed == SeedIndex(0)), "{:?}", report.failures);
    // The trainer goes on: what is recorded is what the pass was given.
    set(&seeds[0], "0.weight", 0, 123.0);
    permit.send(()).unwrap();
    let waits = |bench: &mut Bench| {
        let report = bench.forward(false).unwrap();
        report.failures.iter().any(|failure| failure.error.to_string().contains("earlier pass"))
    };
    while waits(&mut bench) {
        std::thread::yield_now();
    }
    let records = bench.records();
    assert!(
        records.iter().all(|record| !record.header.message.contains("earlier pass")),
        "it has one already"
    );
    let late: Vec<_> = records.into_iter().filter(|r| r.header.direction == Direction::Backward).collect();
    let [record] = &late[..] else { panic!("{}", late.len()) };
    assert_eq!(record.header.kernel.as_str(), "late");
    assert!(record.header.elapsed_ns.is_some(), "it is known by now");
    assert_eq!(record.grad_output.as_ref().unwrap().to_values::<f32>().unwrap(), [0.25; OUTPUT]);
    let (_, weight) = record.parameters.iter().find(|(name, _)| name == "0.weight").unwrap();
    assert_ne!(weight.to_values::<f32>().unwrap()[0], 123.0);
    assert!(record.header.allowed_ns.is_some_and(|ns| ns <= 50_000_000), "{:?}", record.header.allowed_ns);
    let rerun = replay(record.clone()).run().unwrap();
    assert_eq!(rerun.activations, Some(Activations::Same));
}

#[test]
fn a_gradient_that_never_comes_back_is_counted_as_lost() {
    let (permit, mut bench) = stubborn(false);
    (0..2).for_each(|n| bench.attach(n, &live_on_cpu("lost"), Role::Blended));
    let ticket = loop {
        let report = bench.forward(true).unwrap();
        if report.live_mask == 3 {
            break report.ticket;
        }
    };
    bench.backward(ticket).unwrap();
    assert_eq!(bench.counts().dropped[Dropped::Lost as usize], 0);
    bench.sync.detach(SeedIndex(0)).unwrap();
    assert_eq!(bench.counts().dropped[Dropped::Lost as usize], 1);
    drop(permit);
}

#[test]
fn gradients_that_are_late_when_the_host_fails_are_counted_as_lost() {
    let (permit, mut bench) = stubborn(true);
    (0..2).for_each(|n| bench.attach(n, &live_on_cpu("late"), Role::Blended));
    bench.attach(2, &live_on_cpu("host"), Role::Host);
    let ticket = loop {
        // Forward passes go by the clock: one may be late on a busy machine, the host too.
        match bench.forward(true) {
            Ok(report) if report.live_mask == 7 => break report.ticket,
            _ => {}
        }
    };
    let before = bench.counts().dropped[Dropped::Lost as usize];
    assert_eq!(bench.backward(ticket).unwrap_err().code(), "kernel.timeout");
    assert_eq!(bench.counts().dropped[Dropped::Lost as usize], before + 2);
    drop(permit);
}
