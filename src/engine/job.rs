//! One seed's part of a pass, with all the memory it touches: it runs on the caller's thread or on the
//! seed's own, and where it comes back late nothing has been taken from under it.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    EngineConfig, EngineError, LiveSeed, PlanSet, Role,
    norm::norm,
    scratch::Scratch,
    target::{Target, readable, there},
};
use crate::{
    backend::{Bindings, OwnMemory, Queue, Region, RunContext, RunError, Shared},
    failpoint::{self, Failpoint},
    wire::Block,
};

/// Which way.
#[derive(Debug)]
pub(super) enum Direction {
    /// To where the kernel's output goes: memory of the daemon's own, or the layer's output, where nothing is blended
    /// with it.
    Forward { output: Target },
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
    pub(super) arena: Arc<Shared>,
    pub(super) input: Block,
    pub(super) saved: OwnMemory,
    /// The buffers to read instead of the seed's own, if it has any bytes.
    pub(super) buffers: OwnMemory,
    pub(super) scratch: Box<Scratch>,
    pub(super) direction: Direction,
    /// Why it could not be put behind what it needs, where it could not.
    pub(super) unordered: Option<RunError>,
    /// Whether a backward gives the norm of the parameters' gradients.
    pub(super) measures: bool,
    pub(super) config: Arc<EngineConfig>,
    pub(super) context: RunContext,
}

/// A job that has come back.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) job: Job,
    pub(super) result: Result<(), EngineError>,
    /// Of a forward the norm of its output, of a backward that of the parameters' gradients; NaN where it was not
    /// measured.
    pub(super) norm: f32,
    pub(super) timing: Timing,
}

/// How long a job has run, and how long it might.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timing {
    pub(super) time: Duration,
    /// What was left of the pass's time when it began; `None` without a limit.
    pub(super) allowed: Option<Duration>,
}

impl Job {
    /// Bytes of the memory lent to it.
    pub(super) fn lent_bytes(&self) -> usize {
        let own = |target: &Target| if let Target::Own(memory) = target { memory.len_bytes() } else { 0 };
        self.saved.len_bytes()
            + self.buffers.len_bytes()
            + match &self.direction {
                Direction::Forward { output } => own(output),
                Direction::Backward { grad_output, grad_input, grad_parameters } => {
                    own(grad_output) + own(grad_input) + own(grad_parameters)
                }
            }
    }

    /// Has it wait for what another queue was handed so far: what the trainer has sent is then there. What is wrong with
    /// that the run finds out.
    pub(super) fn follow(&mut self, queue: &mut dyn Queue) {
        self.unordered = self.scratch.queue.after(queue).err();
    }

    /// Runs it and waits for it. A panic is an error of this job.
    pub(super) fn run(self) -> Done {
        self.begin().wait()
    }

    /// Hands it to its queue. On the CPU it is done then.
    pub(super) fn begin(mut self) -> Begun {
        let start = Instant::now();
        let allowed = self.context.deadline.map(|deadline| deadline.saturating_duration_since(start));
        let result = self.guarded(Self::hand_over);
        Begun { job: self, result, start, allowed }
    }

    /// Has a panic be an error.
    fn guarded<T>(
        &mut self,
        act: impl FnOnce(&mut Self) -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        catch_unwind(AssertUnwindSafe(|| act(self))).unwrap_or_else(|panic| {
            let kernel = self.live.kernel().id().clone();
            Err(EngineError::Panicked { kernel, message: message_of(&*panic) })
        })
    }

    fn hand_over(&mut self) -> Result<(), EngineError> {
        #[cfg(debug_assertions)]
        if self.config.panic_in.as_ref() == Some(self.live.kernel().id()) {
            panic!("asked to by the configuration");
        }
        if let Some(lack) = self.unordered.as_ref().or_else(|| self.lack()) {
            return Err(self.live.failed(lack.clone()));
        }
        self.hand_over_plan().map_err(|error| self.live.failed(error))
    }

    /// Memory that it needs and that could not be had.
    fn lack(&self) -> Option<&RunError> {
        let scratch = [&self.scratch.workspace, &self.scratch.updates, &self.scratch.flag];
        let lent = [&self.saved, &self.buffers].into_iter().chain(scratch).find_map(|memory| memory.lack());
        lent.or_else(|| match &self.direction {
            Direction::Forward { output } => output.lack(),
            Direction::Backward { grad_output, grad_input, grad_parameters } => {
                grad_output.lack().or_else(|| grad_input.lack()).or_else(|| grad_parameters.lack())
            }
        })
    }

    fn hand_over_plan(&mut self) -> Result<(), RunError> {
        let Self { live, plans, arena, input, saved, buffers, scratch, direction, context, .. } = self;
        let Scratch { queue, workspace, updates, flag, .. } = &mut **scratch;
        let queue = &mut **queue;
        let own_buffers = buffers.len_bytes() == 0;
        live.bring_parameters(queue)?;
        if own_buffers {
            live.bring_buffers(queue)?;
        }
        let inputs = [there(arena, *input)];
        let common = Bindings {
            inputs: &inputs,
            parameters: live.parameters_there(),
            buffers: if own_buffers { live.buffers_there() } else { buffers.region() },
            saved: saved.region(),
            workspace: workspace.region(),
            ..Bindings::EMPTY
        };
        match direction {
            Direction::Forward { output } => {
                let outputs = [output.region(arena), flag.region()];
                let buffer_updates = updates.region();
                let bindings = Bindings { outputs: &outputs, buffer_updates, ..common };
                plans.forward.run(queue, &bindings, context)?;
                if plans.measures { queue.note(flag.region()) } else { Ok(()) }
            }
            Direction::Backward { grad_output, grad_input, grad_parameters } => {
                let Some(backward) = &plans.backward else { return Ok(()) };
                let grad_outputs = [grad_output.region(arena)];
                let grad_inputs = [grad_input.region(arena)];
                let grad_parameters = grad_parameters.region(arena);
                let bindings = Bindings {
                    grad_outputs: &grad_outputs,
                    grad_inputs: &grad_inputs,
                    grad_parameters,
                    ..common
                };
                backward.executable.run(queue, &bindings, context)?;
                if grad_parameters.len_bytes() == 0 {
                    return Ok(());
                }
                let slots = live.kernel().parameter_layout().slots();
                let ungraded = backward.ungraded.iter().map(|&n| &slots[n]);
                let mut parts =
                    ungraded.filter_map(|slot| grad_parameters.part(slot.offset_bytes, slot.len_bytes));
                parts.try_for_each(|part| queue.zero(part))
            }
        }
    }

    /// Gives the norm of what it has yielded, once it has.
    fn measured(&mut self) -> Result<f32, EngineError> {
        let norm = match &self.direction {
            Direction::Forward { .. } if self.plans.measures => self.norm_of_output(),
            Direction::Backward { .. } if self.measures => self.norm_of_gradients(),
            _ => return Ok(f32::NAN),
        };
        let norm = norm.map_err(|error| self.live.failed(error))?;
        let is_forward = matches!(self.direction, Direction::Forward { .. });
        if is_forward && self.config.non_finite_guard && norm.is_nan() {
            return Err(EngineError::NonFinite { kernel: self.live.kernel().id().clone() });
        }
        Ok(norm)
    }

    /// The norm of a forward's output; NaN if not all of it is finite.
    fn norm_of_output(&mut self) -> Result<f32, RunError> {
        let Self { plans, arena, scratch, direction, .. } = self;
        let sum = f32::from_le_bytes(scratch.queue.noted());
        if sum.is_finite() {
            return Ok(sum.sqrt());
        }
        // Large numbers have squares that are not finite.
        let (info, Direction::Forward { output }) = (&plans.output, direction) else { return Ok(f32::NAN) };
        let bytes = info.shape.elements().saturating_mul(info.dtype.size_bytes());
        let mut copy = Vec::new();
        let all = readable(&mut *scratch.queue, output.region(arena), &mut copy)?;
        Ok(all.part(0, bytes).map_or(f32::NAN, |all| norm([(all, info.dtype)])))
    }

    /// The norm of a backward's gradients of parameters.
    fn norm_of_gradients(&mut self) -> Result<f32, RunError> {
        let Self { live, arena, scratch, direction, .. } = self;
        let Direction::Backward { grad_parameters, .. } = direction else { return Ok(f32::NAN) };
        let grad_parameters = grad_parameters.region(arena);
        if grad_parameters.len_bytes() == 0 {
            return Ok(f32::NAN);
        }
        let mut copy = Vec::new();
        let grad_parameters = readable(&mut *scratch.queue, grad_parameters, &mut copy)?;
        let weights = live.kernel().parameters().iter().zip(live.kernel().parameter_layout().slots());
        let parts = weights.filter_map(|(weight, slot)| {
            Some((grad_parameters.part(slot.offset_bytes, slot.len_bytes)?, weight.tensor.dtype()))
        });
        Ok(norm(parts))
    }

    /// Makes the buffers that a forward pass has updated the seed's own. Called once, after a success.
    pub(super) fn commit(&mut self) -> Result<(), EngineError> {
        if self.plans.updates.is_empty() {
            return Ok(());
        }
        self.hand_over_updates().map_err(|error| self.live.failed(error))
    }

    fn hand_over_updates(&mut self) -> Result<(), RunError> {
        let Self { live, plans, scratch, .. } = self;
        let slots = live.kernel().buffer_layout().slots();
        let Scratch { queue, updates, .. } = &mut **scratch;
        let (from, to) = (updates.region(), live.buffers_there());
        for slot in plans.updates.iter().map(|&n| &slots[n]) {
            let part = |block: Region<'_>| block.part(slot.offset_bytes, slot.len_bytes).is_some();
            debug_assert!(part(from) && part(to), "both blocks have the buffers' layout");
            if let (Some(from), Some(to)) =
                (from.part(slot.offset_bytes, slot.len_bytes), to.part(slot.offset_bytes, slot.len_bytes))
            {
                queue.copy(from, to)?;
                failpoint::reached(Failpoint::CommitHalf);
            }
        }
        live.send_buffers(&mut **queue)
    }
}

/// A job that was handed to its queue, and may not be done yet.
#[derive(Debug)]
pub(super) struct Begun {
    job: Job,
    result: Result<(), EngineError>,
    start: Instant,
    allowed: Option<Duration>,
}

impl Begun {
    /// Whether waiting for it would be over at once.
    pub(super) fn is_done(&mut self) -> bool {
        self.job.scratch.queue.is_done()
    }

    /// Waits for it.
    pub(super) fn wait(mut self) -> Done {
        let finished = self.job.scratch.queue.finish(None);
        self.close(finished)
    }

    /// Waits for it; gives itself back where it is not done by then. What it was lent must not be used before.
    pub(super) fn wait_until(mut self, until: Instant) -> Result<Done, Self> {
        match self.job.scratch.queue.finish(Some(until)) {
            Err(RunError::Timeout { .. }) => Err(self),
            finished => Ok(self.close(finished)),
        }
    }

    fn close(self, finished: Result<(), RunError>) -> Done {
        let Self { mut job, result, start, allowed } = self;
        let finished = finished.map_err(|error| job.live.failed(error));
        let measured = result.and(finished).and_then(|()| job.guarded(Job::measured));
        let (result, norm) = match measured {
            Ok(norm) => (Ok(()), norm),
            Err(error) => (Err(error), f32::NAN),
        };
        Done { job, result, norm, timing: Timing { time: start.elapsed(), allowed } }
    }
}

/// The seed of what is random in one slot's part of a pass. Slots have masks of their own, as modules in PyTorch do; in
/// the first one it is the pass's own. SplitMix64's finalizer (Steele, Lea and Flood, 2014).
pub(super) fn random_of(pass: u64, slot: usize) -> u64 {
    if slot == 0 {
        return pass;
    }
    let mut mixed = pass.wrapping_add((slot as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// What a panic said.
pub(super) fn message_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}
