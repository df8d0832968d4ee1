//! What the CPU takes: which types, which operands by strides, how much scratch.

use super::{attention, batch_norm, contraction, conv, real::Real, row_norm, winograd::Winograd};
use crate::{
    backend::{
        BuildError,
        plan::{Addmm, Target},
    },
    graph::{Graph, Op, ValueInfo},
    tensor::{DType, Layout, Shape},
};

/// The CPU as planning sees it.
pub(super) struct Cpu {
    pub(super) threads: usize,
    pub(super) winograd: Winograd,
}

impl Target for Cpu {
    fn takes_strides(&self, op: &Op, operand: usize) -> bool {
        match op {
            Op::Unary(_)
            | Op::UnaryGrad(_)
            | Op::Binary(_)
            | Op::Compare(_)
            | Op::Where
            | Op::Cast(_)
            | Op::Cat { .. }
            | Op::Unslice { .. }
            | Op::MatMul { .. } => true,
            Op::Reduce { .. } => operand == 0,
            // All but the sums' logarithms.
            Op::Attention { .. } | Op::AttentionGrad { .. } => operand != 4,
            _ => false,
        }
    }

    fn scratch_bytes(&self, op: &Op, inputs: &[&ValueInfo], _: &[&Layout], outputs: &[&ValueInfo]) -> usize {
        match outputs.first().map(|info| info.dtype) {
            Some(DType::F64) => self.scratch::<f64>(op, inputs, outputs),
            _ => self.scratch::<f32>(op, inputs, outputs),
        }
    }

    fn joins(&self, x: &Shape) -> bool {
        batch_norm::joins(x, self.threads)
    }

    fn addmm_bytes(&self, addmm: Addmm, [a, ..]: [&Layout; 3], y: &ValueInfo) -> Option<usize> {
        let scratch = match y.dtype {
            DType::F64 => contraction::scratch::<f64>,
            _ => contraction::scratch::<f32>,
        };
        let elements = scratch(a.shape(), addmm.transpose_a, &y.shape, self.threads);
        Some(elements.saturating_mul(y.dtype.size_bytes()))
    }
}

impl Cpu {
    /// Scratch bytes of an operation that is computed in `T`.
    fn scratch<T: Real>(&self, op: &Op, inputs: &[&ValueInfo], outputs: &[&ValueInfo]) -> usize {
        let elements = match op {
            Op::MatMul { transpose_a, .. } => {
                contraction::scratch::<T>(&inputs[0].shape, *transpose_a, &outputs[0].shape, self.threads)
            }
            Op::Conv2d(conv) => conv::forward_scratch::<T>(conv, inputs, outputs, self),
            Op::Conv2dGradInput { conv, .. } => conv::grad_input_scratch::<T>(conv, inputs, outputs, self),
            Op::Conv2dGradWeight { conv, .. } => conv::grad_weight_scratch::<T>(conv, inputs, outputs, self),
            Op::Attention { .. } => attention::forward_scratch(inputs, self.threads),
            Op::AttentionGrad { .. } => attention::backward_scratch(inputs, self.threads),
            Op::LayerNormGrad { .. } => row_norm::layer_grad_scratch(inputs),
            Op::GroupNormGrad { .. } => row_norm::group_grad_scratch(inputs),
            _ => 0,
        };
        elements.saturating_mul(size_of::<T>())
    }
}

/// Refuses what has no implementation here.
pub(super) fn check(graph: &Graph) -> Result<(), BuildError> {
    for node in &graph.nodes {
        let infos = || node.inputs.iter().chain(&node.outputs).map(|&value| graph.info(value));
        let small = infos().any(|info| matches!(info.dtype, DType::I32 | DType::U8 | DType::Bool));
        if small && matches!(node.op, Op::Binary(_) | Op::Reduce { .. }) {
            return Err(BuildError::Unsupported {
                device: "cpu".into(),
                op: node.op.name().into(),
                reason: "whole numbers are computed in int64: cast the operands first".into(),
            });
        }
    }
    Ok(())
}
