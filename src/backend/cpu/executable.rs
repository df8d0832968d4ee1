//! Runs a plan: step after step, each on all the threads it is given.

use std::{sync::Arc, time::Instant};

use super::{
    attention, batch_norm, chain, contraction, conv, elementwise,
    memory::{Memory, Shared},
    movement,
    parts::MAX_PARTS,
    pick,
    pool::Pool,
    pooling,
    real::Real,
    reduce, row_norm, softmax,
    winograd::Winograd,
};
use crate::{
    backend::{
        Bindings, Executable, MemoryNeeds, Queue, Region, RunContext, RunError,
        plan::{Bounds, Plan, Step, StepKind},
    },
    graph::Op,
    tensor::{ALIGNMENT_BYTES, DType},
};

/// A plan on the CPU.
#[derive(Debug)]
pub(super) struct CpuExecutable {
    plan: Plan,
    bounds: Bounds,
    constants: Constants,
    pool: Arc<Pool>,
    winograd: Winograd,
}

/// The constants' block, aligned.
#[derive(Debug)]
struct Constants {
    bytes: Vec<u8>,
    first: usize,
}

impl Constants {
    fn new(bytes: &[u8]) -> Self {
        let mut aligned = vec![0; bytes.len() + ALIGNMENT_BYTES];
        let address = aligned.as_ptr().addr();
        let first = address.next_multiple_of(ALIGNMENT_BYTES) - address;
        aligned[first..first + bytes.len()].copy_from_slice(bytes);
        Self { bytes: aligned, first }
    }

    fn region(&self) -> Region<'_> {
        let constants = &self.bytes[self.first..];
        // SAFETY: the block lives as long as the borrow; no plan writes to `Home::Constants`, since only
        // sinks and the workspace are ever results.
        unsafe { Region::from_raw(constants.as_ptr().cast_mut(), constants.len()) }
    }
}

impl CpuExecutable {
    /// For a plan that was made with the same `winograd`.
    pub(super) fn new(mut plan: Plan, pool: Arc<Pool>, winograd: Winograd) -> Self {
        let constants = Constants::new(&std::mem::take(&mut plan.constants));
        Self { bounds: Bounds::of(&plan), plan, constants, pool, winograd }
    }
}

impl Executable for CpuExecutable {
    fn needs(&self) -> &MemoryNeeds {
        &self.plan.needs
    }

    fn held_bytes(&self) -> usize {
        let inner = self.plan.held_bytes() + self.bounds.held_bytes() + self.constants.bytes.capacity();
        size_of::<Self>() + inner
    }

    fn run(
        &self,
        _queue: &mut dyn Queue,
        bindings: &Bindings<'_>,
        context: &RunContext,
    ) -> Result<(), RunError> {
        let memory = Memory { bindings, constants: self.constants.region() };
        self.bounds.check("cpu", true, |home| memory.block(home))?;
        let threads = context.threads.clamp(1, self.pool.threads().min(MAX_PARTS));
        for (done, step) in self.plan.steps.iter().enumerate() {
            if context.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(RunError::Timeout { done, total: self.plan.steps.len() });
            }
            let (pool, winograd) = (&*self.pool, self.winograd);
            let run = Run { memory, step, pool, threads, seed: context.seed, winograd };
            run.step();
        }
        Ok(())
    }
}

/// One step under way.
#[derive(Clone, Copy)]
pub(super) struct Run<'a> {
    pub(super) memory: Memory<'a>,
    pub(super) step: &'a Step,
    pool: &'a Pool,
    threads: usize,
    pub(super) seed: u64,
    pub(super) winograd: Winograd,
}

/// Below this many elements of elementwise work, waking another thread costs more than it gives.
pub(super) const GRAIN: usize = 32 * 1024;

impl<'a> Run<'a> {
    fn step(&self) {
        // The type to compute in: that of the first floating-point operand or result.
        let places = self.step.inputs.iter().chain(&self.step.outputs);
        let dtype = places.map(|place| place.dtype).find(|dtype| dtype.is_floating_point());
        let is_double = dtype == Some(DType::F64);
        match &self.step.kind {
            StepKind::Copy => movement::copy(self),
            StepKind::Op(op) if is_double => self.compute::<f64>(op),
            StepKind::Op(op) => self.compute::<f32>(op),
            StepKind::Addmm(addmm) if is_double => contraction::addmm::<f64>(self, *addmm),
            StepKind::Addmm(addmm) => contraction::addmm::<f32>(self, *addmm),
            StepKind::Chain(links) if is_double => chain::run::<f64>(self, links),
            StepKind::Chain(links) => chain::run::<f32>(self, links),
            StepKind::Joined(joined) if is_double => batch_norm::joined::<f64>(self, joined),
            StepKind::Joined(joined) => batch_norm::joined::<f32>(self, joined),
        }
    }

    fn compute<T: Real + super::memory::Plain>(&self, op: &Op) {
        match op {
            Op::Unary(unary) => elementwise::unary::<T>(self, *unary),
            Op::UnaryGrad(unary) => elementwise::unary_grad::<T>(self, *unary),
            Op::Binary(binary) => elementwise::binary::<T>(self, *binary),
            Op::Compare(compare) => elementwise::compare(self, *compare),
            Op::Where => elementwise::choose(self),
            Op::Cast(_) => elementwise::cast(self),
            Op::Dropout { p, site } => elementwise::dropout::<T>(self, *p, *site),
            Op::Arange { start, step, .. } => elementwise::arange(self, *start, *step),
            Op::Unslice { dim, start, step, .. } => movement::unslice(self, *dim, *start, *step),
            Op::Pick { dim } => pick::forward(self, *dim),
            Op::Unpick { dim, .. } => pick::backward::<T>(self, *dim),
            Op::Cat { dim } => movement::cat(self, *dim),
            Op::Reduce { reduction, dims } => reduce::run::<T>(self, *reduction, dims),
            Op::Softmax { dim } => softmax::forward::<T>(self, *dim, false),
            Op::LogSoftmax { dim } => softmax::forward::<T>(self, *dim, true),
            Op::SoftmaxGrad { dim } => softmax::backward::<T>(self, *dim, false),
            Op::LogSoftmaxGrad { dim } => softmax::backward::<T>(self, *dim, true),
            Op::MatMul { transpose_a, transpose_b } => {
                contraction::matmul::<T>(self, *transpose_a, *transpose_b)
            }
            Op::Conv2d(attributes) => conv::forward::<T>(self, attributes),
            Op::Conv2dGradInput { conv, .. } => conv::grad_input::<T>(self, conv),
            Op::Conv2dGradWeight { conv, .. } => conv::grad_weight::<T>(self, conv),
            Op::Attention { causal, scale } => attention::forward::<T>(self, *causal, *scale),
            Op::AttentionGrad { causal, scale } => attention::backward::<T>(self, *causal, *scale),
            Op::MaxPool2d(pool) => pooling::max::<T>(self, pool),
            Op::MaxPool2dGrad { .. } => pooling::max_grad::<T>(self),
            Op::AvgPool2d { pool, count_include_pad, divisor } => {
                pooling::average::<T>(self, pool, *count_include_pad, *divisor);
            }
            Op::AvgPool2dGrad { pool, count_include_pad, divisor, .. } => {
                pooling::average_grad::<T>(self, pool, *count_include_pad, *divisor);
            }
            Op::AdaptiveAvgPool2d { .. } => pooling::adaptive::<T>(self),
            Op::AdaptiveAvgPool2dGrad { .. } => pooling::adaptive_grad::<T>(self),
            Op::BatchNorm { .. }
            | Op::BatchNormGrad
            | Op::BatchNormEval { .. }
            | Op::BatchNormEvalGrad { .. } => batch_norm::alone::<T>(self, op),
            Op::LayerNorm { eps, .. } => row_norm::layer::<T>(self, *eps),
            Op::LayerNormGrad { .. } => row_norm::layer_grad::<T>(self),
            Op::GroupNorm { groups, eps } => row_norm::group::<T>(self, *groups, *eps),
            Op::GroupNormGrad { groups } => row_norm::group_grad::<T>(self, *groups),
            Op::Reshape(_)
            | Op::Permute(_)
            | Op::Expand(_)
            | Op::Slice { .. }
            | Op::Detach
            | Op::Full { .. } => {
                unreachable!("the planner turns views and filled tensors into places")
            }
        }
    }

    /// Runs `task(0)` to `task(tasks - 1)` on the step's threads.
    pub(super) fn tasks(&self, tasks: usize, task: impl Fn(usize) + Sync) {
        self.pool.run(self.threads, tasks, &task);
    }

    /// Cuts a result into pieces of whole `unit`s and fills them on the step's threads. The function is
    /// given the first element's number and the piece.
    ///
    /// Pieces depend on the shape alone, not on the threads.
    pub(super) fn pieces<T: Send>(&self, out: &mut [T], unit: usize, fill: impl Fn(usize, &mut [T]) + Sync) {
        let unit = unit.max(1);
        let piece = GRAIN.div_ceil(unit) * unit;
        let (len, shared) = (out.len(), Shared::new(out));
        self.tasks(len.div_ceil(piece), |n| {
            let start = n * piece;
            // SAFETY: pieces of different numbers do not overlap, and `out` is borrowed until all are done.
            fill(start, unsafe { shared.part(start, piece.min(len - start)) });
        });
    }
}
