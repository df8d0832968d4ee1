//! From a plan to launches, one family of operations a file.
//!
//! Which kernel runs and how its work is cut depends on the plan alone, never on the device's size or load: two cards
//! of one kind of arithmetic give the same bits.

mod attention;
mod contraction;
mod convolution;
mod movement;
mod norm;
mod pointwise;
mod pool;
mod product;
mod program;
mod reduce;
mod routine;
mod target;
mod walk;

pub(super) use program::{MOST_BYTES, Program};
pub(super) use routine::Planned;
pub(super) use target::{Cuda, check};

use program::{Use, Uses};

use super::{
    arguments::{Fold, Record},
    driver::{Access, Code, Function},
    kernels::Kernels,
    source::Source,
};
use crate::{
    backend::{
        BuildError,
        plan::{Place, Plan, Step, StepKind},
    },
    graph::{Op, Reduction},
    tensor::DType,
};

/// How many blocks to aim at where work is cut for want of results: enough for the largest cards.
const BLOCKS: u64 = 256;
/// Threads of a block where each has an element of its own.
const THREADS: u32 = 256;
/// The most blocks of a launch; each takes several pieces of work where there are more.
const MOST_BLOCKS: u64 = 16 * 1024;

/// Turns a plan into launches; what was planned with libraries goes to them.
///
/// # Errors
/// [`BuildError::Unsupported`] for sizes past what kernels count with, [`BuildError::Device`] when a kernel is missing.
pub(super) fn lower(plan: &Plan, kernels: &Kernels, routines: &Planned) -> Result<Program, BuildError> {
    let mut lowering = Lowering { kernels, routines, program: Program::default() };
    for step in &plan.steps {
        lowering.step(step)?;
    }
    lowering.program.shrink();
    Ok(lowering.program)
}

struct Lowering<'a> {
    kernels: &'a Kernels,
    routines: &'a Planned,
    program: Program,
}

impl Lowering<'_> {
    fn step(&mut self, step: &Step) -> Result<(), BuildError> {
        let empty = |place: &Place| place.layout.shape().contains(&0);
        if step.outputs.iter().all(empty) {
            return Ok(());
        }
        let op = match &step.kind {
            StepKind::Copy => return self.copy(step),
            StepKind::Chain(chain) => return self.chain(step, chain),
            StepKind::Addmm(addmm) => return self.addmm(step, *addmm),
            StepKind::Joined(joined) => return Err(self.unsupported(&joined.op, "nothing is joined to it")),
            StepKind::Op(op) => op,
        };
        if let Some(planned) = self.routines.of_step(op, step) {
            self.routine(step, planned);
            return Ok(());
        }
        match op {
            Op::Unary(unary) => self.unary(step, "unary", unary),
            Op::UnaryGrad(unary) => self.unary(step, "unary_grad", unary),
            Op::Binary(binary) => self.binary(step, *binary),
            Op::Compare(compare) => self.compare(step, *compare),
            Op::Where => self.choose(step),
            Op::Cast(dtype) => self.cast(step, *dtype),
            Op::Dropout { p, site } => self.dropout(step, *p, *site),
            Op::Arange { start, step: by, dtype, .. } => self.arange(step, *start, *by, *dtype),
            Op::Cat { dim } => self.cat(step, *dim),
            Op::Unslice { dim, start, step: by, .. } => self.unslice(step, *dim, *start, *by),
            Op::Pick { dim } => self.pick(step, *dim),
            Op::Unpick { dim, .. } => self.unpick(step, *dim),
            Op::Reduce { reduction, dims } => self.reduce(step, *reduction, dims),
            Op::Softmax { dim } => self.softmax(step, *dim, false),
            Op::LogSoftmax { dim } => self.softmax(step, *dim, true),
            Op::SoftmaxGrad { dim } => self.softmax_grad(step, *dim, false),
            Op::LogSoftmaxGrad { dim } => self.softmax_grad(step, *dim, true),
            Op::MatMul { transpose_a, transpose_b } => self.matmul(step, *transpose_a, *transpose_b),
            Op::Conv2d(conv) => self.conv2d(step, op, conv),
            Op::Conv2dGradInput { conv, .. } | Op::Conv2dGradWeight { conv, .. } => {
                self.conv2d(step, op, conv)
            }
            Op::Attention { causal, scale } => self.attention(step, *causal, *scale),
            Op::AttentionGrad { causal, scale } => self.attention_grad(step, *causal, *scale),
            Op::MaxPool2d(pool) => self.max_pool(step, pool),
            Op::MaxPool2dGrad { .. } => self.max_pool_grad(step),
            Op::AvgPool2d { pool, count_include_pad, divisor } => {
                self.avg_pool(step, "avg_pool2d", pool, *count_include_pad, *divisor)
            }
            Op::AvgPool2dGrad { pool, count_include_pad, divisor, .. } => {
                self.avg_pool(step, "avg_pool2d_grad", pool, *count_include_pad, *divisor)
            }
            Op::AdaptiveAvgPool2d { .. } => self.adaptive(step, "adaptive_avg_pool2d"),
            Op::AdaptiveAvgPool2dGrad { .. } => self.adaptive(step, "adaptive_avg_pool2d_grad"),
            Op::BatchNorm { eps } => self.batch_norm(step, *eps),
            Op::BatchNormGrad => self.batch_norm_grad(step, "batch_norm_grad", 0.0),
            Op::BatchNormEval { eps } => self.batch_norm_eval(step, *eps),
            Op::BatchNormEvalGrad { eps } => self.batch_norm_grad(step, "batch_norm_eval_grad", *eps),
            Op::LayerNorm { dims, eps } => self.layer_norm(step, *dims, *eps),
            Op::LayerNormGrad { dims } => self.layer_norm_grad(step, *dims),
            Op::GroupNorm { groups, eps } => self.group_norm(step, *groups, *eps),
            Op::GroupNormGrad { groups } => self.group_norm_grad(step, *groups),
            Op::Reshape(_)
            | Op::Permute(_)
            | Op::Expand(_)
            | Op::Slice { .. }
            | Op::Detach
            | Op::Full { .. } => Err(self.unsupported(op, "the planner has left a view to be computed")),
        }
    }

    fn unsupported(&self, op: &Op, reason: &str) -> BuildError {
        let device = self.kernels.device().to_owned();
        BuildError::Unsupported { device, op: op.name().into(), reason: reason.into() }
    }

    fn function(&self, source: Source, name: &str, suffix: &str) -> Result<Function, BuildError> {
        self.kernels.function(source, &format!("{name}_{suffix}"))
    }

    fn push<R: Record>(&mut self, function: Function, cut: (u32, u32), record: &R, uses: &Uses) {
        self.program.push(kernel(function, cut), record, uses, None);
    }

    /// Joins what the splits of a step have left in its scratch memory from `skipped_bytes` on.
    fn fold(
        &mut self,
        step: &Step,
        out: &Place,
        (skipped_bytes, splits): (usize, u64),
        (reduction, divisor): (Reduction, f64),
    ) -> Result<(), BuildError> {
        let elements = out.layout.shape().elements() as u64;
        let record = Fold {
            elements,
            splits,
            code: super::arguments::reduction(reduction),
            divisor,
            ..Fold::default()
        };
        let parts = (splits * elements) as usize * wide_bytes(out.dtype);
        let scratch = Use::scratch(std::mem::offset_of!(Fold, parts), step.scratch, 0, Access::Read);
        let uses = [scratch.part(skipped_bytes, parts), Use::write(std::mem::offset_of!(Fold, out), out)];
        let function = self.function(Source::Reduce, "fold", name(out.dtype))?;
        self.push(function, per_element(elements), &record, &uses.into_iter().collect());
        Ok(())
    }
}

/// A kernel in so many blocks of so many threads.
fn kernel(function: Function, (grid, block): (u32, u32)) -> Code {
    Code::Kernel { function, grid, block }
}

/// Blocks and threads where each element has a thread.
fn per_element(elements: u64) -> (u32, u32) {
    (blocks(elements.div_ceil(THREADS.into())), THREADS)
}

/// As many blocks as pieces of work, up to a limit.
fn blocks(pieces: u64) -> u32 {
    pieces.clamp(1, MOST_BLOCKS) as u32
}

/// Threads of a block that shares a row of so many elements.
fn threads_for(len: u64) -> u32 {
    (len.min(THREADS.into()) as u32).next_power_of_two().clamp(32, THREADS)
}

/// A type's name in those of kernels.
fn name(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "f32",
        DType::F64 => "f64",
        DType::BF16 => "bf16",
        DType::F16 => "f16",
        DType::I64 => "i64",
        DType::I32 => "i32",
        DType::U8 | DType::Bool => "u8",
    }
}

/// The name of kernels that move elements of a type's size.
fn size_name(dtype: DType) -> &'static str {
    match dtype.size_bytes() {
        1 => "1",
        2 => "2",
        4 => "4",
        _ => "8",
    }
}

/// Bytes of the type that values of a type are summed in.
fn wide_bytes(dtype: DType) -> usize {
    dtype.size_bytes().max(4)
}

/// The product of the sizes before a dimension, its own, and that of those behind it.
fn around(place: &Place, dim: usize) -> (u64, u64, u64) {
    let shape = place.layout.shape();
    let product = |sizes: &[usize]| sizes.iter().map(|&n| n as u64).product();
    (product(&shape[..dim]), shape[dim] as u64, product(&shape[dim + 1..]))
}
