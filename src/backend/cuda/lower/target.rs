//! What the device takes: which types and sizes, which operands by strides, how much scratch.

use std::cell::RefCell;

use super::{attention, contraction::Sizes, norm, pool, reduce, routine::Planned};
use crate::{
    backend::{
        BuildError,
        plan::{Addmm, Target},
    },
    graph::{Graph, Op, ValueInfo},
    tensor::{DType, Layout},
};

/// A CUDA device as planning sees it. All are alike but for what their libraries ask for: otherwise what a plan looks like
/// does not depend on the card.
pub(in crate::backend::cuda) struct Cuda(RefCell<Planned>);

impl Cuda {
    /// A device with libraries, or none.
    pub(in crate::backend::cuda) fn new(routines: Planned) -> Self {
        Self(RefCell::new(routines))
    }

    /// What was planned with its libraries.
    pub(in crate::backend::cuda) fn into_routines(self) -> Planned {
        self.0.into_inner()
    }
}

impl Target for Cuda {
    fn takes_strides(&self, op: &Op, operand: usize) -> bool {
        match op {
            Op::Unary(_)
            | Op::UnaryGrad(_)
            | Op::Binary(_)
            | Op::Compare(_)
            | Op::Where
            | Op::Cast(_)
            | Op::Dropout { .. }
            | Op::Cat { .. }
            | Op::MatMul { .. } => true,
            Op::Reduce { .. } => operand == 0,
            // All but the sums' logarithms.
            Op::Attention { .. } | Op::AttentionGrad { .. } => operand != 4,
            _ => false,
        }
    }

    fn scratch_bytes(
        &self,
        op: &Op,
        inputs: &[&ValueInfo],
        layouts: &[&Layout],
        outputs: &[&ValueInfo],
    ) -> usize {
        let y = outputs[0];
        if let Some(planned) = self.0.borrow_mut().plan(op, layouts, y) {
            return planned.workspace_bytes;
        }
        match op {
            Op::Reduce { .. } => reduce::scratch_bytes(inputs[0], y),
            Op::MatMul { transpose_a, .. } => {
                Sizes::of_matmul(*transpose_a, &inputs[0].shape, &y.shape).scratch_bytes(false, y)
            }
            Op::Conv2d(_) | Op::Conv2dGradInput { .. } | Op::Conv2dGradWeight { .. } => {
                let sizes = Sizes::of_conv(op, &inputs[0].shape, &inputs[1].shape, &y.shape);
                sizes.map_or(0, |sizes| sizes.scratch_bytes(true, y))
            }
            Op::MaxPool2dGrad { .. } if pool::sums_beside(y.dtype) => {
                y.shape.elements().saturating_mul(size_of::<f32>())
            }
            Op::AttentionGrad { .. } => attention::scratch_bytes(inputs[4]),
            Op::LayerNormGrad { dims } => norm::scratch_bytes(inputs[0], *dims),
            _ => 0,
        }
    }

    fn addmm_bytes(&self, addmm: Addmm, [a, b, bias]: [&Layout; 3], y: &ValueInfo) -> Option<usize> {
        // Its address is not promised to be good for what the library does with it, unless it begins a block.
        if bias.offset() > 0 {
            return None;
        }
        let planned = self.0.borrow_mut().plan_addmm(addmm, [a, b], y)?;
        Some(planned.workspace_bytes)
    }
}

/// Refuses what has no kernel, before anything is planned.
pub(in crate::backend::cuda) fn check(graph: &Graph, device: &str) -> Result<(), BuildError> {
    for node in &graph.nodes {
        let infos = || node.inputs.iter().chain(&node.outputs).map(|&value| graph.info(value));
        let refuse = |reason: &str| {
            Err(BuildError::Unsupported {
                device: device.into(),
                op: node.op.name().into(),
                reason: reason.into(),
            })
        };
        let small = infos().any(|info| matches!(info.dtype, DType::I32 | DType::U8 | DType::Bool));
        if small && matches!(node.op, Op::Binary(_) | Op::Reduce { .. }) {
            return refuse("whole numbers are computed in int64: cast the operands first");
        }
        if !counts(graph, node) {
            return refuse("it has a dimension of 2³¹ or more: use a smaller batch");
        }
    }
    Ok(())
}

/// Whether an operation's sizes fit the 32 bits that its kernel counts in.
fn counts(graph: &Graph, node: &crate::graph::Node) -> bool {
    let shape = |value| &graph.info(value).shape;
    let y = shape(node.outputs[0]);
    match &node.op {
        Op::MatMul { transpose_a, .. } => Sizes::of_matmul(*transpose_a, shape(node.inputs[0]), y).fit(),
        // A tile beyond the last row still fits.
        Op::Attention { .. } | Op::AttentionGrad { .. } => {
            let mut operands = node.inputs.iter().map(|&value| shape(value));
            operands.all(|shape| shape.iter().all(|&n| n < 1 << 30))
        }
        Op::Conv2d(conv) | Op::Conv2dGradInput { conv, .. } | Op::Conv2dGradWeight { conv, .. } => {
            let (first, second) = (shape(node.inputs[0]), shape(node.inputs[1]));
            let attributes = [conv.stride, conv.padding, conv.dilation].into_iter().flatten();
            let reach = [first, second, y].into_iter().flat_map(|shape| shape.iter().copied());
            // A sum of three such numbers still fits.
            attributes.chain(reach).all(|n| n < 1 << 30)
                && Sizes::of_conv(&node.op, first, second, y).is_some_and(Sizes::fit)
        }
        Op::MaxPool2d(_)
        | Op::MaxPool2dGrad { .. }
        | Op::AvgPool2d { .. }
        | Op::AvgPool2dGrad { .. }
        | Op::AdaptiveAvgPool2d { .. }
        | Op::AdaptiveAvgPool2dGrad { .. } => {
            let window = match &node.op {
                Op::MaxPool2d(pool) | Op::AvgPool2d { pool, .. } | Op::AvgPool2dGrad { pool, .. } => {
                    Some(pool)
                }
                _ => None,
            };
            let attributes = window.into_iter().flat_map(|pool| {
                [pool.kernel, pool.stride, pool.padding, pool.dilation].into_iter().flatten()
            });
            let mut planes = node.inputs.iter().chain(&node.outputs).map(|&value| &shape(value)[2..]);
            attributes.into_iter().all(|n| n < 1 << 28)
                && planes.all(|plane| plane.iter().map(|&n| n as u64).product::<u64>() < 1 << 30)
        }
        _ => true,
    }
}
