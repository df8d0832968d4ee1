//! Scaled dot product attention.

use std::mem::offset_of;

use super::{
    Lowering, THREADS, Use, Uses, blocks, contraction::Factor, name, pointwise::view_at, walk::walk,
    wide_bytes,
};
use crate::{
    backend::{
        BuildError,
        cuda::{arguments::Attention, driver::Access, source::Source},
        plan::{MOST_INPUTS, Step},
    },
    graph::ValueInfo,
    tensor::{DType, Layout},
};

/// By the number that kernels know it by: which of a gradient's operands it is.
const OPERANDS: [usize; 5] = [0, 1, 2, 3, 5];
/// The numbers of y and its gradient.
const RESULT: [usize; 2] = [3, 4];
/// Those of what scores and their gradients are computed from.
const FACTORS: [usize; 4] = [0, 1, 2, 4];
/// Where the sums' logarithms stand among a gradient's operands.
const LOGARITHMS: usize = 4;

/// Rows of a tile, as in `attention.cuh`.
fn tile(dtype: DType) -> u64 {
    if dtype == DType::F64 { 32 } else { 64 }
}

/// Bytes of scratch memory of the gradient: a sum for each query.
pub(super) fn scratch_bytes(lse: &ValueInfo) -> usize {
    lse.shape.elements().saturating_mul(lse.dtype.size_bytes())
}

/// A step's record, with the pointers left open; `operands` are those of the step that kernels read.
fn record(step: &Step, operands: &[usize], is_causal: bool, scale: f64) -> Attention {
    let factors: Vec<Factor> = operands.iter().map(|&n| Factor::of(&step.inputs[n].layout, false)).collect();
    // One that nothing reads stands for those that are missing.
    let batches: [&Layout; MOST_INPUTS] =
        std::array::from_fn(|n| &factors.get(n).unwrap_or(&factors[0]).batch);
    let (walk, strides) = walk(batches[0].shape(), batches);
    let size = |operand: usize, back: usize| {
        let shape = step.inputs[operand].layout.shape();
        shape[shape.rank() - back] as u32
    };
    let mut record = Attention {
        walk,
        queries: size(0, 2),
        keys: size(1, 2),
        width: size(0, 1),
        value_width: size(2, 1),
        is_causal: is_causal.into(),
        scale,
        ..Attention::default()
    };
    for (n, factor) in factors.iter().enumerate() {
        record.operands[n].strides = strides[n];
        record.rows[n] = factor.row;
        record.columns[n] = factor.column;
    }
    record
}

/// Reads of operands by their numbers.
fn reads(step: &Step, numbers: &[usize]) -> Uses {
    let at = |n| view_at(offset_of!(Attention, operands), n);
    numbers.iter().map(|&n| Use::read(at(n), &step.inputs[OPERANDS[n]])).collect()
}

/// A kernel's name by the widest head that it takes.
fn of_width(kernel: &str, record: &Attention) -> String {
    let most = if record.width.max(record.value_width) <= 64 { 64 } else { 256 };
    format!("{kernel}_{most}")
}

impl Lowering<'_> {
    pub(super) fn attention(&mut self, step: &Step, is_causal: bool, scale: f64) -> Result<(), BuildError> {
        let (y, lse) = (&step.outputs[0], &step.outputs[1]);
        let record = record(step, &OPERANDS[..3], is_causal, scale);
        let mut uses = reads(step, &[0, 1, 2]);
        uses.push(Use::write(offset_of!(Attention, out), y));
        uses.push(Use::write(offset_of!(Attention, lse), lse));
        let jobs = record.walk.elements * u64::from(record.queries).div_ceil(tile(y.dtype));
        let function = self.function(Source::Attention, &of_width("attention", &record), name(y.dtype))?;
        self.push(function, (blocks(jobs), THREADS), &record, &uses);
        Ok(())
    }

    pub(super) fn attention_grad(
        &mut self,
        step: &Step,
        is_causal: bool,
        scale: f64,
    ) -> Result<(), BuildError> {
        let dtype = step.outputs[0].dtype;
        let record = record(step, &OPERANDS, is_causal, scale);
        let (heads, queries, keys) =
            (record.walk.elements, u64::from(record.queries), u64::from(record.keys));
        let sums = |access| {
            let bytes = (heads * queries) as usize * wide_bytes(dtype);
            Use::scratch(offset_of!(Attention, shared), step.scratch, 0, access).part(0, bytes)
        };
        let mut uses = reads(step, &RESULT);
        uses.push(sums(Access::Write));
        let function = self.function(Source::AttentionGrad, "attention_shared", name(dtype))?;
        self.push(function, (blocks((heads * queries).div_ceil(8)), THREADS), &record, &uses);

        let mut factors = reads(step, &FACTORS);
        factors.push(Use::read(offset_of!(Attention, lse), &step.inputs[LOGARITHMS]));
        factors.push(sums(Access::Read));
        let mut uses = factors.clone();
        uses.push(Use::write(offset_of!(Attention, out), &step.outputs[0]));
        let kernel = of_width("attention_grad_queries", &record);
        let function = self.function(Source::AttentionGrad, &kernel, name(dtype))?;
        self.push(function, (blocks(heads * queries.div_ceil(tile(dtype))), THREADS), &record, &uses);

        let mut uses = factors;
        uses.push(Use::write(offset_of!(Attention, out), &step.outputs[1]));
        uses.push(Use::write(offset_of!(Attention, second_out), &step.outputs[2]));
        let kernel = of_width("attention_grad_keys", &record);
        let function = self.function(Source::AttentionGrad, &kernel, name(dtype))?;
        self.push(function, (blocks(heads * keys.div_ceil(tile(dtype))), THREADS), &record, &uses);
        Ok(())
    }
}
