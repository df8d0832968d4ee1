//! What each operation knows of itself, one family a file: the shapes it gives and its gradient.

mod attention;
mod contraction;
mod elementwise;
mod movement;
mod norm;
mod pool;
mod random;
mod reduce;
mod source;

use smallvec::{SmallVec, smallvec};

pub use random::keep;

use super::{Binary, Builder, GraphError, Node, Op, Reduction, Unary, ValueId, ValueInfo};
use crate::tensor::{DType, Shape, ShapeError};

/// Types and shapes of an operation's results.
pub type Results = SmallVec<[ValueInfo; 2]>;

/// Puts an operation's name to a shape's error.
pub(super) trait Checked<T> {
    fn named(self, op: &'static str) -> Result<T, GraphError>;
}

impl<T> Checked<T> for Result<T, ShapeError> {
    fn named(self, op: &'static str) -> Result<T, GraphError> {
        self.map_err(|source| GraphError::Shape { op, source })
    }
}

/// The operands of one operation, with the complaints they may give rise to.
#[derive(Clone, Copy)]
struct Operands<'a> {
    op: &'a Op,
    infos: &'a [&'a ValueInfo],
}

impl<'a> Operands<'a> {
    fn fail<T>(&self, reason: impl Into<String>) -> Result<T, GraphError> {
        Err(GraphError::operands(self.op, self.infos, reason))
    }

    fn ensure(&self, holds: bool, reason: impl FnOnce() -> String) -> Result<(), GraphError> {
        if holds { Ok(()) } else { self.fail(reason()) }
    }

    fn exactly<const N: usize>(&self) -> Result<[&'a ValueInfo; N], GraphError> {
        match <[&ValueInfo; N]>::try_from(self.infos) {
            Ok(infos) => Ok(infos),
            Err(_) => self.fail(format!("it takes {N} operands, not {}", self.infos.len())),
        }
    }

    /// The floating-point type that all operands share.
    fn floating(&self) -> Result<DType, GraphError> {
        let dtype = self.same_dtype()?;
        self.ensure(dtype.is_floating_point(), || "it takes floating-point operands".into())?;
        Ok(dtype)
    }

    fn same_dtype(&self) -> Result<DType, GraphError> {
        let Some(first) = self.infos.first() else { return self.fail("it takes at least one operand") };
        let same = self.infos.iter().all(|info| info.dtype == first.dtype);
        self.ensure(same, || "the operands must be of one type".into())?;
        Ok(first.dtype)
    }

    fn rank(&self, index: usize, rank: usize) -> Result<(), GraphError> {
        let actual = self.infos[index].shape.rank();
        self.ensure(actual == rank, || {
            format!("operand {} must have {rank} dimensions, it has {actual}", index + 1)
        })
    }

    fn shape(&self, index: usize, expected: &Shape) -> Result<(), GraphError> {
        let actual = &self.infos[index].shape;
        self.ensure(actual == expected, || {
            format!("operand {} must be of shape {expected}, it is {actual}", index + 1)
        })
    }
}

fn one(shape: Shape, dtype: DType) -> Results {
    smallvec![ValueInfo { shape, dtype }]
}

/// The types and shapes that an operation gives for its operands.
///
/// # Errors
/// [`GraphError`] naming the operation, its operands and what does not fit.
pub fn infer(op: &Op, inputs: &[&ValueInfo]) -> Result<Results, GraphError> {
    let operands = Operands { op, infos: inputs };
    match op {
        Op::Unary(_) | Op::UnaryGrad(_) | Op::Binary(_) | Op::Compare(_) | Op::Where | Op::Cast(_) => {
            elementwise::infer(op, operands)
        }
        Op::Reshape(_)
        | Op::Permute(_)
        | Op::Expand(_)
        | Op::Slice { .. }
        | Op::Unslice { .. }
        | Op::Pick { .. }
        | Op::Unpick { .. }
        | Op::Detach
        | Op::Cat { .. } => movement::infer(op, operands),
        Op::Reduce { .. }
        | Op::Softmax { .. }
        | Op::SoftmaxGrad { .. }
        | Op::LogSoftmax { .. }
        | Op::LogSoftmaxGrad { .. } => reduce::infer(op, operands),
        Op::MatMul { .. } | Op::Conv2d(_) | Op::Conv2dGradInput { .. } | Op::Conv2dGradWeight { .. } => {
            contraction::infer(op, operands)
        }
        Op::Attention { .. } | Op::AttentionGrad { .. } => attention::infer(op, operands),
        Op::MaxPool2d(_)
        | Op::MaxPool2dGrad { .. }
        | Op::AvgPool2d { .. }
        | Op::AvgPool2dGrad { .. }
        | Op::AdaptiveAvgPool2d { .. }
        | Op::AdaptiveAvgPool2dGrad { .. } => pool::infer(op, operands),
        Op::BatchNorm { .. }
        | Op::BatchNormGrad
        | Op::BatchNormEval { .. }
        | Op::BatchNormEvalGrad { .. }
        | Op::LayerNorm { .. }
        | Op::LayerNormGrad { .. }
        | Op::GroupNorm { .. }
        | Op::GroupNormGrad { .. } => norm::infer(op, operands),
        Op::Dropout { .. } => random::infer(op, operands),
        Op::Full { .. } | Op::Arange { .. } => source::infer(op, operands),
    }
}

/// The gradients of an operation's operands, in their order; none where there is none to give.
pub(super) type OperandGradients = SmallVec<[Option<ValueId>; 4]>;

/// One operation met on the way back: what its rule may read and build with.
pub(super) struct Rule<'a> {
    /// Where the gradient's nodes are appended.
    pub(super) builder: &'a mut Builder,
    /// The operation in place.
    pub(super) node: &'a Node,
    /// By result: the gradient that has arrived for it.
    pub(super) gradients: &'a [Option<ValueId>],
    /// By operand: whether its gradient is needed.
    pub(super) wanted: &'a [bool],
}

impl Rule<'_> {
    fn input(&self, index: usize) -> ValueId {
        self.node.inputs[index]
    }

    fn output(&self, index: usize) -> ValueId {
        self.node.outputs[index]
    }

    fn input_shape(&self, index: usize) -> Shape {
        self.builder.shape(self.input(index)).clone()
    }

    /// The gradient of the first result. Statistics beside it (mean, rstd, indices) carry none.
    fn gradient(&self) -> Result<ValueId, GraphError> {
        let beside = self.gradients.iter().skip(1).any(Option::is_some);
        self.gradients[0].filter(|_| !beside).ok_or_else(|| self.none())
    }

    /// The complaint that this operation has no gradient.
    fn none(&self) -> GraphError {
        GraphError::NoGradient { op: self.node.op.name() }
    }

    fn op(&mut self, op: Op, inputs: &[ValueId]) -> Result<ValueId, GraphError> {
        self.builder.apply(op, inputs)
    }

    fn unary(&mut self, unary: Unary, x: ValueId) -> Result<ValueId, GraphError> {
        self.op(Op::Unary(unary), &[x])
    }

    fn binary(&mut self, binary: Binary, a: ValueId, b: ValueId) -> Result<ValueId, GraphError> {
        self.op(Op::Binary(binary), &[a, b])
    }

    /// A scalar constant of a value's type.
    fn scalar_like(&mut self, like: ValueId, value: f64) -> Result<ValueId, GraphError> {
        let dtype = self.builder.dtype(like);
        self.op(Op::Full { shape: Shape::scalar(), dtype, value }, &[])
    }

    /// Sums a gradient over the dimensions along which broadcasting repeated the operand.
    fn unbroadcast(&mut self, gradient: ValueId, shape: &Shape) -> Result<ValueId, GraphError> {
        let from = self.builder.shape(gradient).clone();
        if from == *shape {
            return Ok(gradient);
        }
        let added = from.rank() - shape.rank();
        let dims: Vec<usize> =
            (0..from.rank()).filter(|&d| d < added || (shape[d - added] == 1 && from[d] != 1)).collect();
        let sum = self.op(Op::Reduce { reduction: Reduction::Sum, dims }, &[gradient])?;
        self.op(Op::Reshape(shape.clone()), &[sum])
    }
}

/// The vector-Jacobian product of one operation, as operations.
///
/// # Errors
/// [`GraphError::NoGradient`] where the operation has none.
pub(super) fn vjp(rule: &mut Rule<'_>) -> Result<OperandGradients, GraphError> {
    match rule.node.op {
        Op::Unary(_) | Op::UnaryGrad(_) | Op::Binary(_) | Op::Compare(_) | Op::Where | Op::Cast(_) => {
            elementwise::vjp(rule)
        }
        Op::Reshape(_)
        | Op::Permute(_)
        | Op::Expand(_)
        | Op::Slice { .. }
        | Op::Unslice { .. }
        | Op::Pick { .. }
        | Op::Unpick { .. }
        | Op::Detach
        | Op::Cat { .. } => movement::vjp(rule),
        Op::Reduce { .. }
        | Op::Softmax { .. }
        | Op::SoftmaxGrad { .. }
        | Op::LogSoftmax { .. }
        | Op::LogSoftmaxGrad { .. } => reduce::vjp(rule),
        Op::MatMul { .. } | Op::Conv2d(_) | Op::Conv2dGradInput { .. } | Op::Conv2dGradWeight { .. } => {
            contraction::vjp(rule)
        }
        Op::Attention { .. } | Op::AttentionGrad { .. } => attention::vjp(rule),
        Op::MaxPool2d(_)
        | Op::MaxPool2dGrad { .. }
        | Op::AvgPool2d { .. }
        | Op::AvgPool2dGrad { .. }
        | Op::AdaptiveAvgPool2d { .. }
        | Op::AdaptiveAvgPool2dGrad { .. } => pool::vjp(rule),
        Op::BatchNorm { .. }
        | Op::BatchNormGrad
        | Op::BatchNormEval { .. }
        | Op::BatchNormEvalGrad { .. }
        | Op::LayerNorm { .. }
        | Op::LayerNormGrad { .. }
        | Op::GroupNorm { .. }
        | Op::GroupNormGrad { .. } => norm::vjp(rule),
        Op::Dropout { .. } => random::vjp(rule),
        Op::Full { .. } | Op::Arange { .. } => Ok(smallvec![]),
    }
}
