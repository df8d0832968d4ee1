//! What the CPU takes: which types, which operands by strides, how much scratch.

use super::{attention, conv, row_norm, winograd::Winograd};
use crate::{
    backend::{
        BuildError,
        plan::{Addmm, Target},
    },
    graph::{Graph, Op, ValueInfo},
    tensor::{DType, Layout},
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
        let how = (self.winograd, self.threads);
        let elements = match op {
            Op::Conv2d(attributes) => conv::forward_scratch(attributes, inputs, outputs, how),
            Op::Conv2dGradInput { conv, .. } => conv::grad_input_scratch(conv, inputs, outputs, how),
            Op::Conv2dGradWeight { conv, .. } => {
                conv::grad_weight_scratch(conv, inputs, outputs, self.winograd)
            }
            Op::Attention { .. } => attention::forward_scratch(inputs, self.threads),
            Op::AttentionGrad { .. } => attention::backward_scratch(inputs, self.threads),
            Op::LayerNormGrad { .. } => row_norm::layer_grad_scratch(inputs),
            Op::GroupNormGrad { .. } => row_norm::group_grad_scratch(inputs),
            _ => 0,
        };
        elements.saturating_mul(outputs.first().map_or(0, |info| info.dtype.size_bytes()))
    }

    fn addmm_bytes(&self, _: Addmm, _: [&Layout; 3], _: &ValueInfo) -> Option<usize> {
        Some(0)
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
