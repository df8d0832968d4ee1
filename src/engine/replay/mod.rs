//! Running a recorded pass again, as the lane ran it: the same plans under the same limits, from the same job, on what
//! the record says that the pass was given. What ran out of time has as long as was left to it when it began.

mod error;
#[cfg(test)]
mod tests;
mod trace;

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

pub use error::ReplayError;
pub use trace::{Range, Trace, Traced};

use super::{
    EngineConfig, EngineError, Kernel, KernelParts, LiveSeed, PlanKey, PlanSet, Role, Weight,
    job::{Direction, Done, Job, message_of},
    kernel::weights,
    scratch::Scratch,
    target::Target,
};
use crate::{
    artifact::Module,
    backend::{
        Backend as _, HostMemory, Memory as _, OwnMemory, Region, RunContext, Shared,
        cpu::{CpuBackend, Winograd},
        nothing,
    },
    record::{self, Record},
    tensor::{HostTensor, PackedLayout},
    validation::Metadata,
    wire::Block,
};

/// The most bytes that a plan may take, whatever a record says.
const MAX_PLAN_BYTES: u64 = 1 << 36;

/// The code of a pass that ran out of time.
const TIMEOUT: &str = "kernel.timeout";

/// A recorded pass, ready to be run.
#[derive(Debug)]
pub struct Replay {
    record: Record,
    live: Arc<LiveSeed>,
    key: PlanKey,
    config: Arc<EngineConfig>,
    backend: CpuBackend,
    arena: Arc<Shared>,
}

/// Whether the activations that the backward was given are those that its forward leaves now.
#[derive(Clone, Debug, PartialEq)]
pub enum Activations {
    /// They are, to the bit.
    Same,
    /// They are not: parameters, buffers or the input differ from those of the forward then, or another processor or
    /// device rounds otherwise.
    Differ,
    /// The forward fails now, so that there is nothing to compare.
    Unknown {
        /// How it fails.
        error: EngineError,
    },
    /// The record has none that fit this version's plans, so that the backward ran on those of the forward now.
    Made,
}

/// What became of a recorded pass now.
#[derive(Debug)]
pub struct Rerun {
    /// How it ended.
    pub outcome: Result<(), EngineError>,
    /// How long planning took.
    pub planning: Duration,
    /// How long the pass took, until its end or its error; `None` where it did not come to that.
    pub time: Option<Duration>,
    /// Of a backward: on what it ran.
    pub activations: Option<Activations>,
}

impl Replay {
    /// A pass on the CPU of this process. Without a time limit given, the record's holds: of a pass that ran out of time
    /// what was left when it began, of another one the whole, because another machine may take longer.
    ///
    /// # Errors
    /// [`ReplayError`] when the record and the artifact in it contradict each other.
    pub fn new(
        record: Record,
        module: Arc<Module>,
        time_limit: Option<Duration>,
    ) -> Result<Self, ReplayError> {
        let header = &record.header;
        let kernel = kernel(&record, module)?;
        let memory = HostMemory::new(kernel.memory_bytes());
        let parameters = part(&memory, 0, kernel.parameter_layout().total_bytes());
        let buffers = part(&memory, kernel.buffers_offset(), kernel.buffer_layout().total_bytes());
        write("parameter", kernel.parameters(), kernel.parameter_layout(), &record.parameters, parameters)?;
        write("buffer", kernel.buffers(), kernel.buffer_layout(), &record.buffers, buffers)?;
        let live = LiveSeed::new(kernel, Shared::same(Arc::new(memory)), header.generation)?;
        let key = PlanKey {
            input_shape: header.input_shape.clone(),
            dtype: header.dtype,
            train: header.train,
            wants_input: header.wants_input,
            wants_parameters: header.wants_parameters,
        };
        let settings = header.settings;
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = usize::try_from(settings.threads).unwrap_or(1).clamp(1, threads);
        let allowed_ns = header.allowed_ns.filter(|_| header.code == TIMEOUT);
        let recorded = Duration::from_nanos(allowed_ns.unwrap_or(settings.time_limit_ns));
        let config = EngineConfig {
            time_limit: time_limit.unwrap_or(recorded),
            plan_time_limit: Duration::from_nanos(settings.plan_time_limit_ns),
            non_finite_guard: settings.non_finite_guard,
            series_length: usize::from(settings.series),
            max_plan_bytes: usize::try_from(settings.max_plan_bytes.min(MAX_PLAN_BYTES))
                .unwrap_or(usize::MAX),
            max_flops: settings.max_flops,
            threads,
            winograd: settings.winograd,
            ..EngineConfig::default()
        };
        let arena = HostMemory::new(record.input.bytes().len());
        arena.region().write(record.input.bytes());
        Ok(Self {
            live: Arc::new(live),
            key,
            config: Arc::new(config),
            backend: CpuBackend::new(threads).with_winograd(Winograd::where_faster(settings.winograd)),
            arena: Arc::new(Shared::same(Arc::new(arena))),
            record,
        })
    }

    /// The record.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// How long the pass may take.
    pub fn time_limit(&self) -> Duration {
        self.config.time_limit
    }

    /// Runs the pass.
    ///
    /// Blocking: as long as planning and the time limit allow, and for a backward as its forward takes.
    ///
    /// # Errors
    /// [`ReplayError::Forward`] where a backward cannot be run for want of activations.
    pub fn run(&self) -> Result<Rerun, ReplayError> {
        let start = Instant::now();
        let plans = self.plans();
        let planning = start.elapsed();
        let plans = match plans {
            Ok(plans) => plans,
            Err(error) => return Ok(Rerun { outcome: Err(error), planning, time: None, activations: None }),
        };
        let ended = |done: Done, activations| {
            let (outcome, time) = (done.result, Some(done.timing.time));
            Ok(Rerun { outcome, planning, time, activations })
        };
        let limit = Some(self.config.time_limit);
        let is_backward = self.record.header.direction == record::Direction::Backward;
        let Some(gradient) = self.record.grad_output.as_ref().filter(|_| is_backward) else {
            return ended(self.forward(&plans, limit), None);
        };
        let (saved, activations) = self.activations(&plans)?;
        let own = |bytes: usize| Target::Own(self.backend.allocate(bytes));
        let grad_output = self.backend.allocate(gradient.bytes().len());
        grad_output.region().write(gradient.bytes());
        let gives_input = plans.backward.as_ref().is_some_and(|backward| backward.gives_input);
        let direction = Direction::Backward {
            grad_output: Target::Own(grad_output),
            grad_input: if gives_input { own(self.record.input.bytes().len()) } else { Target::Nowhere },
            grad_parameters: own(self.live.kernel().parameter_layout().total_bytes()),
        };
        ended(self.job(&plans, saved, direction, limit).run(), Some(activations))
    }

    fn forward(&self, plans: &Arc<PlanSet>, limit: Option<Duration>) -> Done {
        let output = Target::Own(self.backend.allocate(len_bytes(plans)));
        let saved = self.backend.allocate(plans.saved_bytes());
        self.job(plans, saved, Direction::Forward { output }, limit).run()
    }

    /// What the backward is to run on, and whether the forward now leaves the same. It is not the pass that failed, so
    /// that it may take as long as it takes.
    fn activations(&self, plans: &Arc<PlanSet>) -> Result<(OwnMemory, Activations), ReplayError> {
        let Done { job: Job { saved, .. }, result, .. } = self.forward(plans, None);
        let recorded = &self.record.saved;
        let version = &self.record.header.version;
        if version != env!("CARGO_PKG_VERSION") || recorded.len() != plans.saved_bytes() {
            let made = |()| (saved, Activations::Made);
            return result
                .map(made)
                .map_err(|source| ReplayError::Forward { version: version.clone(), source });
        }
        // Of what lies between the tensors nobody says what it is.
        let same = |now: Region<'_>| {
            plans.forward.needs().saved.slots().iter().all(|slot| {
                let mut bytes = vec![0; slot.len_bytes];
                let is_read = now.part(slot.offset_bytes, slot.len_bytes).is_some_and(|p| p.read(&mut bytes));
                is_read
                    && recorded.get(slot.offset_bytes..slot.offset_bytes + slot.len_bytes) == Some(&bytes[..])
            })
        };
        let activations = match result {
            Err(error) => Activations::Unknown { error },
            Ok(()) if same(saved.region()) => Activations::Same,
            Ok(()) => Activations::Differ,
        };
        saved.region().write(recorded);
        Ok((saved, activations))
    }

    /// The pass's plans, if the kernel has any for it and gives what the layer needs.
    fn plans(&self) -> Result<Arc<PlanSet>, EngineError> {
        let kernel = self.live.kernel();
        let made = || kernel.plans(&self.key, &self.backend, &self.config);
        let plans = catch_unwind(AssertUnwindSafe(made)).unwrap_or_else(|panic| {
            let (kernel, message) = (kernel.id().clone(), message_of(&*panic));
            Err(EngineError::Panicked { kernel, message })
        })?;
        plans.check_output(kernel.id(), &self.record.header.output_shape, self.record.header.dtype)?;
        Ok(plans)
    }

    fn job(
        &self,
        plans: &Arc<PlanSet>,
        saved: OwnMemory,
        direction: Direction,
        limit: Option<Duration>,
    ) -> Job {
        let mut scratch = Box::new(Scratch::new(&self.backend));
        scratch.fit(&self.backend, &self.live, plans);
        let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
        Job {
            place: 0,
            role: Role::default(),
            alpha: self.record.header.alpha,
            live: self.live.clone(),
            plans: plans.clone(),
            arena: self.arena.clone(),
            input: Block { offset: 0, bytes: self.record.input.bytes().len() as u64 },
            saved,
            buffers: nothing(),
            scratch,
            direction,
            unordered: None,
            measures: false,
            config: self.config.clone(),
            context: RunContext { seed: self.record.header.rng_seed, deadline, threads: self.config.threads },
        }
    }
}

/// The record's kernel, of its artifact.
fn kernel(record: &Record, module: Arc<Module>) -> Result<Arc<Kernel>, ReplayError> {
    let (id, digest) = (record.header.kernel.clone(), record.header.digest);
    let (parameters, buffers) = weights(&module);
    let metadata = Metadata::bare(id.clone());
    let program = Box::new(module);
    let parts = KernelParts { id: id.clone(), digest, metadata, verdict: None, parameters, buffers, program };
    let kernel = Kernel::new(parts).map_err(|source| EngineError::TooLarge { kernel: id, source })?;
    Ok(Arc::new(kernel))
}

fn len_bytes(plans: &PlanSet) -> usize {
    plans.output.shape.elements().saturating_mul(plans.output.dtype.size_bytes())
}

/// Writes a kernel's weights of one kind as the record has them.
fn write(
    kind: &'static str,
    weights: &[Weight],
    layout: &PackedLayout,
    recorded: &[(String, HostTensor)],
    block: Region<'_>,
) -> Result<(), ReplayError> {
    let recorded: HashMap<&String, &HostTensor> =
        recorded.iter().map(|(name, tensor)| (name, tensor)).collect();
    for (weight, slot) in weights.iter().zip(layout.slots()) {
        let name = || weight.name.clone();
        let tensor =
            *recorded.get(&weight.name).ok_or_else(|| ReplayError::Missing { kind, name: name() })?;
        if *tensor.shape() != slot.shape || tensor.dtype() != slot.dtype {
            return Err(ReplayError::Weight {
                kind,
                name: name(),
                expected: slot.shape.clone(),
                expected_dtype: slot.dtype,
                actual: tensor.shape().clone(),
                actual_dtype: tensor.dtype(),
            });
        }
        let part = block.part(slot.offset_bytes, slot.len_bytes);
        let is_written = part.is_some_and(|part| part.write(tensor.bytes()));
        debug_assert!(is_written, "the block was made for the layout");
    }
    Ok(())
}

/// A part of memory that was made for it.
fn part(memory: &HostMemory, offset: usize, bytes: usize) -> Region<'_> {
    memory.region().part(offset, bytes).unwrap_or(Region::EMPTY)
}
