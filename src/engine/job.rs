//! One seed's part of a pass, with all the memory it touches: it runs on the caller's thread or on the
//! seed's own, and where it comes back late nothing has been taken from under it.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{EngineConfig, EngineError, LiveSeed, PlanSet, Role, charge::Charge};
use crate::{
    backend::{Bindings, HostMemory, Memory, Region, RunContext, RunError},
    tensor::HostTensor,
    wire::Block,
};

/// Memory that a seed reuses from pass to pass; nothing is kept in it.
#[derive(Debug)]
pub(super) struct Scratch {
    workspace: HostMemory,
    updates: HostMemory,
    flag: HostMemory,
    /// What it weighs, in the weight of the kernel that runs on it.
    charge: Option<Charge>,
}

impl Scratch {
    pub(super) fn new() -> Self {
        let (workspace, updates, flag) = (HostMemory::new(0), HostMemory::new(0), HostMemory::new(64));
        Self { workspace, updates, flag, charge: None }
    }

    /// Grows what is too small for a plan. Not part of a pass in the steady state.
    pub(super) fn fit(&mut self, live: &LiveSeed, plans: &PlanSet) {
        let mut has_grown = self.charge.is_none();
        let mut grow = |memory: &mut HostMemory, bytes: usize| {
            if memory.len_bytes() < bytes {
                *memory = HostMemory::new(bytes);
                has_grown = true;
            }
        };
        grow(&mut self.workspace, plans.workspace_bytes());
        if !plans.updates.is_empty() {
            grow(&mut self.updates, live.kernel().buffer_layout().total_bytes());
        }
        if has_grown {
            let bytes = self.workspace.len_bytes() + self.updates.len_bytes() + self.flag.len_bytes();
            self.charge.get_or_insert_with(|| live.kernel().charge(0)).set(bytes);
        }
    }
}

/// Where a gradient lies or goes.
#[derive(Debug)]
pub(super) enum Target {
    /// Nobody wants it.
    Nowhere,
    /// In the arena. It is written to by runs on the caller's thread alone, which cannot come late; what is read
    /// late by others is read in vain.
    Arena(Block),
    /// Memory of the daemon's own.
    Own(HostMemory),
}

impl Target {
    fn region<'a>(&'a self, arena: &'a dyn Memory) -> Region<'a> {
        match self {
            Self::Nowhere => Region::EMPTY,
            Self::Arena(block) => within(arena, *block),
            Self::Own(memory) => memory.region(),
        }
    }
}

/// The memory of a block that was checked to lie within the arena; none where it does not.
pub(super) fn within(arena: &dyn Memory, block: Block) -> Region<'_> {
    arena.region().part(block.offset as usize, block.bytes as usize).unwrap_or(Region::EMPTY)
}

/// Which way.
#[derive(Debug)]
pub(super) enum Direction {
    /// The kernel's output goes to memory of the daemon's own.
    Forward { output: HostMemory },
    /// From the gradient of that output.
    Backward { grad_output: Target, grad_input: Target, grad_parameters: Target },
}

/// One seed's part of a pass.
#[derive(Debug)]
pub(super) struct Job {
    /// The seed's place in the pass.
    pub(super) place: usize,
    pub(super) role: Role,
    pub(super) alpha: f32,
    pub(super) live: Arc<LiveSeed>,
    pub(super) plans: Arc<PlanSet>,
    pub(super) arena: Arc<dyn Memory>,
    pub(super) input: Block,
    pub(super) saved: HostMemory,
    /// The buffers to read instead of the seed's own, if it has any bytes.
    pub(super) buffers: HostMemory,
    pub(super) scratch: Box<Scratch>,
    pub(super) direction: Direction,
    #[cfg_attr(
        not(debug_assertions),
        expect(dead_code, reason = "only builds that can be asked to panic read it")
    )]
    pub(super) config: Arc<EngineConfig>,
    pub(super) context: RunContext,
}

/// A job that has come back.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) job: Job,
    pub(super) result: Result<(), EngineError>,
    pub(super) time: Duration,
}

impl Job {
    /// Bytes of the memory lent to it.
    pub(super) fn lent_bytes(&self) -> usize {
        let own = |target: &Target| if let Target::Own(memory) = target { memory.len_bytes() } else { 0 };
        self.saved.len_bytes()
            + self.buffers.len_bytes()
            + match &self.direction {
                Direction::Forward { output } => output.len_bytes(),
                Direction::Backward { grad_output, grad_input, grad_parameters } => {
                    own(grad_output) + own(grad_input) + own(grad_parameters)
                }
            }
    }

    /// Runs it. A panic is an error of this job.
    pub(super) fn run(self) -> Done {
        let start = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| self.run_plan())).unwrap_or_else(|panic| {
            let kernel = self.live.kernel().id().clone();
            Err(EngineError::Panicked { kernel, message: message_of(&*panic) })
        });
        Done { job: self, result, time: start.elapsed() }
    }

    fn run_plan(&self) -> Result<(), EngineError> {
        #[cfg(debug_assertions)]
        if self.config.panic_in.as_ref() == Some(self.live.kernel().id()) {
            panic!("asked to by the configuration");
        }
        let (live, scratch) = (&*self.live, &*self.scratch);
        let inputs = [within(&*self.arena, self.input)];
        let common = Bindings {
            inputs: &inputs,
            parameters: live.parameters(),
            buffers: if self.buffers.len_bytes() > 0 { self.buffers.region() } else { live.buffers() },
            saved: self.saved.region(),
            workspace: scratch.workspace.region(),
            ..EMPTY
        };
        let failed =
            |source: RunError| EngineError::Run { what: format!("kernel {}", live.kernel().id()), source };
        match &self.direction {
            Direction::Forward { output } => {
                let outputs = [output.region(), scratch.flag.region()];
                let buffer_updates = scratch.updates.region();
                let bindings = Bindings { outputs: &outputs, buffer_updates, ..common };
                self.plans.forward.run(&bindings, &self.context).map_err(failed)?;
                if self.plans.guarded && self.is_flagged() && !self.is_finite(output) {
                    return Err(EngineError::NonFinite { kernel: live.kernel().id().clone() });
                }
            }
            Direction::Backward { grad_output, grad_input, grad_parameters } => {
                let grad_outputs = [grad_output.region(&*self.arena)];
                let grad_inputs = [grad_input.region(&*self.arena)];
                let grad_parameters = grad_parameters.region(&*self.arena);
                let Some(backward) = &self.plans.backward else { return Ok(()) };
                let bindings = Bindings {
                    grad_outputs: &grad_outputs,
                    grad_inputs: &grad_inputs,
                    grad_parameters,
                    ..common
                };
                backward.executable.run(&bindings, &self.context).map_err(failed)?;
                if grad_parameters.len_bytes() > 0 {
                    let slots = live.kernel().parameter_layout().slots();
                    for slot in backward.ungraded.iter().map(|&n| &slots[n]) {
                        if let Some(part) = grad_parameters.part(slot.offset_bytes, slot.len_bytes) {
                            part.zero();
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether the guard's sum is not finite: then the output may not be either.
    fn is_flagged(&self) -> bool {
        let mut sum = [0; 4];
        !self.scratch.flag.region().read(&mut sum) || !f32::from_le_bytes(sum).is_finite()
    }

    /// Looks through the whole output: large numbers can have a sum that is not finite.
    fn is_finite(&self, output: &HostMemory) -> bool {
        let info = &self.plans.output;
        let mut bytes = vec![0; info.shape.elements().saturating_mul(info.dtype.size_bytes())];
        output.region().read(&mut bytes)
            && HostTensor::new(info.shape.clone(), info.dtype, bytes)
                .is_ok_and(|tensor| tensor.to_f64().iter().all(|v| v.is_finite()))
    }

    /// Makes the buffers that a forward pass has updated the seed's own. Called once, after a success.
    pub(super) fn commit(&self) {
        let slots = self.live.kernel().buffer_layout().slots();
        let (from, to) = (self.scratch.updates.region(), self.live.buffers());
        for slot in self.plans.updates.iter().map(|&n| &slots[n]) {
            let part = |block: Region<'_>| block.part(slot.offset_bytes, slot.len_bytes).is_some();
            debug_assert!(part(from) && part(to), "both blocks have the buffers' layout");
            if let (Some(from), Some(to)) =
                (from.part(slot.offset_bytes, slot.len_bytes), to.part(slot.offset_bytes, slot.len_bytes))
            {
                from.copy_to(to);
            }
        }
    }
}

/// Bindings without anything.
pub(super) const EMPTY: Bindings<'static> = Bindings {
    inputs: &[],
    outputs: &[],
    grad_outputs: &[],
    grad_inputs: &[],
    parameters: Region::EMPTY,
    grad_parameters: Region::EMPTY,
    buffers: Region::EMPTY,
    buffer_updates: Region::EMPTY,
    saved: Region::EMPTY,
    workspace: Region::EMPTY,
};

/// What a panic said.
pub(super) fn message_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}
