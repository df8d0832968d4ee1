//! The kernels' sources, embedded, and what they include.

use super::arguments;

/// One source file; a module of the device is made of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Unary,
    Binary,
    Chain,
    Cast,
    Movement,
    Reduce,
    Softmax,
    MatMul,
    Attention,
    AttentionGrad,
    Conv,
    Pool,
    BatchNorm,
    RowNorm,
}

impl Source {
    /// Every source, in the order of their numbers.
    pub(super) const ALL: [Self; 14] = [
        Self::Unary,
        Self::Binary,
        Self::Chain,
        Self::Cast,
        Self::Movement,
        Self::Reduce,
        Self::Softmax,
        Self::MatMul,
        Self::Attention,
        Self::AttentionGrad,
        Self::Conv,
        Self::Pool,
        Self::BatchNorm,
        Self::RowNorm,
    ];

    /// The file's name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Unary => "unary.cu",
            Self::Binary => "binary.cu",
            Self::Chain => "chain.cu",
            Self::Cast => "cast.cu",
            Self::Movement => "movement.cu",
            Self::Reduce => "reduce.cu",
            Self::Softmax => "softmax.cu",
            Self::MatMul => "matmul.cu",
            Self::Attention => "attention.cu",
            Self::AttentionGrad => "attention_grad.cu",
            Self::Conv => "conv.cu",
            Self::Pool => "pool.cu",
            Self::BatchNorm => "batch_norm.cu",
            Self::RowNorm => "row_norm.cu",
        }
    }

    /// The file's text.
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Unary => include_str!("unary.cu"),
            Self::Binary => include_str!("binary.cu"),
            Self::Chain => include_str!("chain.cu"),
            Self::Cast => include_str!("cast.cu"),
            Self::Movement => include_str!("movement.cu"),
            Self::Reduce => include_str!("reduce.cu"),
            Self::Softmax => include_str!("softmax.cu"),
            Self::MatMul => include_str!("matmul.cu"),
            Self::Attention => include_str!("attention.cu"),
            Self::AttentionGrad => include_str!("attention_grad.cu"),
            Self::Conv => include_str!("conv.cu"),
            Self::Pool => include_str!("pool.cu"),
            Self::BatchNorm => include_str!("batch_norm.cu"),
            Self::RowNorm => include_str!("row_norm.cu"),
        }
    }
}

/// What the sources include, by name.
pub(super) fn headers() -> Vec<(&'static str, String)> {
    vec![
        ("prelude.cuh", include_str!("prelude.cuh").into()),
        ("math.cuh", include_str!("math.cuh").into()),
        ("gemm.cuh", include_str!("gemm.cuh").into()),
        ("attention.cuh", include_str!("attention.cuh").into()),
        ("arguments.cuh", arguments::header()),
    ]
}
