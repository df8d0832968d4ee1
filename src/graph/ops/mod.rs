//! What each operation knows of itself, one family a file: the shapes it gives and its gradient.

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

use super::{GraphError, Op, ValueInfo};
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
        | Op::Cat { .. } => movement::infer(op, operands),
        Op::Reduce { .. }
        | Op::Softmax { .. }
        | Op::SoftmaxGrad { .. }
        | Op::LogSoftmax { .. }
        | Op::LogSoftmaxGrad { .. } => reduce::infer(op, operands),
        Op::MatMul { .. } | Op::Conv2d(_) | Op::Conv2dGradInput { .. } | Op::Conv2dGradWeight { .. } => {
            contraction::infer(op, operands)
        }
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
