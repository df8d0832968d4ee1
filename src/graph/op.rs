//! The operations a graph may hold: the whitelist itself.
//!
//! Every operation has static attributes; shapes follow from its inputs by `infer`. Operands come in the
//! order each variant states. What PyTorch has and this list has not (linear, masked attention, instance norm,
//! 1-d convolution, …) the readers compose out of these.

use serde::{Deserialize, Serialize};

use crate::tensor::{DType, Shape};

/// An element-by-element function of one floating-point tensor, named as in `torch` or
/// `torch.nn.functional`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Unary {
    /// −x.
    Neg,
    /// |x|; its gradient at 0 is 0.
    Abs,
    /// √x.
    Sqrt,
    /// 1/√x.
    Rsqrt,
    /// 1/x.
    Reciprocal,
    /// eˣ.
    Exp,
    /// eˣ − 1, without loss near 0.
    Expm1,
    /// Natural logarithm.
    Log,
    /// ln(1 + x), without loss near 0.
    Log1p,
    /// sin x.
    Sin,
    /// cos x.
    Cos,
    /// Error function.
    Erf,
    /// −1, 0 or 1; as of the four below, its gradient is 0 everywhere.
    Sign,
    /// The largest whole number not above x.
    Floor,
    /// The smallest whole number not below x.
    Ceil,
    /// The nearest whole number, of two the even one.
    Round,
    /// x without what stands behind the point.
    Trunc,
    /// max(x, 0); its gradient at 0 is 0. NaN passes through.
    Relu,
    /// x where x > 0, `slope`·x elsewhere.
    LeakyRelu {
        /// `negative_slope`.
        slope: f64,
    },
    /// x where x > 0, `alpha`·(eˣ − 1) elsewhere.
    Elu {
        /// `alpha`.
        alpha: f64,
    },
    /// x·Φ(x), by the error function (`approximate="none"`).
    Gelu,
    /// The tanh approximation of [`Unary::Gelu`] (`approximate="tanh"`).
    GeluTanh,
    /// x·σ(x).
    Silu,
    /// 1/(1 + e⁻ˣ).
    Sigmoid,
    /// Hyperbolic tangent.
    Tanh,
    /// ln(1 + e^(βx))/β, and x itself where βx passes the threshold.
    Softplus {
        /// `beta`.
        beta: f64,
        /// `threshold`.
        threshold: f64,
    },
    /// x·relu6(x + 3)/6.
    Hardswish,
    /// relu6(x + 3)/6.
    Hardsigmoid,
    /// min(max(x, `min`), `max`), as `hardtanh`, `relu6` and `clamp` by numbers have it: the gradient is 0 at
    /// the bounds themselves.
    Hardtanh {
        /// Lower bound; may be −∞.
        min: f64,
        /// Upper bound; may be +∞.
        max: f64,
    },
    /// x + `value`.
    AddScalar {
        /// The constant.
        value: f64,
    },
    /// x·`value`.
    MulScalar {
        /// The constant.
        value: f64,
    },
    /// x raised to `exponent`, as `pow(x, scalar)`.
    PowScalar {
        /// The constant.
        exponent: f64,
    },
}

/// An element-by-element function of two tensors of one type; shapes broadcast.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Binary {
    /// a + b.
    Add,
    /// a − b.
    Sub,
    /// a·b.
    Mul,
    /// a/b.
    Div,
    /// a raised to b.
    Pow,
    /// The larger; a tie gives each half the gradient, as PyTorch does.
    Maximum,
    /// The smaller; a tie gives each half the gradient.
    Minimum,
}

/// A comparison of two tensors of one type; gives `bool`; shapes broadcast.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Compare {
    /// a = b.
    Eq,
    /// a ≠ b.
    Ne,
    /// a < b.
    Lt,
    /// a ≤ b.
    Le,
    /// a > b.
    Gt,
    /// a ≥ b.
    Ge,
}

/// How a dimension is reduced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reduction {
    /// The sum.
    Sum,
    /// The sum of the squares.
    SumOfSquares,
    /// The arithmetic mean.
    Mean,
    /// The largest; equal elements share the gradient evenly, as `amax` does.
    Amax,
}

/// The attributes of a 2-d convolution; a pair is (height, width).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Conv2d {
    /// `stride`, at least 1.
    pub stride: [usize; 2],
    /// `padding` with zeros on both sides.
    pub padding: [usize; 2],
    /// `dilation`, at least 1.
    pub dilation: [usize; 2],
    /// `groups`, dividing both channel counts.
    pub groups: usize,
}

/// The attributes of a 2-d pooling window; a pair is (height, width).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Pool2d {
    /// `kernel_size`.
    pub kernel: [usize; 2],
    /// `stride`, at least 1.
    pub stride: [usize; 2],
    /// `padding`, at most half the kernel.
    pub padding: [usize; 2],
    /// `dilation`, at least 1; average pooling has only 1.
    pub dilation: [usize; 2],
    /// `ceil_mode`.
    pub ceil: bool,
}

/// One operation. `N`, `C`, `H`, `W` are batch, channels, height, width; `…` is any leading shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Op {
    // ---- element by element ----
    /// (x) → y.
    Unary(Unary),
    /// (x, gy) → gx = gy·f′(x), in one pass.
    UnaryGrad(Unary),
    /// (a, b) → y.
    Binary(Binary),
    /// (a, b) → bool.
    Compare(Compare),
    /// (condition: bool, a, b) → a where the condition holds, else b; shapes broadcast.
    Where,
    /// (x) → x in another type.
    Cast(DType),

    // ---- views and movement ----
    /// (x) → the same elements in the same order under another shape.
    Reshape(Shape),
    /// (x) → y with `y.shape[i] = x.shape[order[i]]`.
    Permute(Vec<usize>),
    /// (x) → x broadcast to the shape, which x's own must broadcast to.
    Expand(Shape),
    /// (x) → indices `start, start + step, …` of one dimension, `len` of them.
    Slice {
        /// The dimension.
        dim: usize,
        /// The first index.
        start: usize,
        /// How many indices.
        len: usize,
        /// From one index to the next, at least 1.
        step: usize,
    },
    /// (gy) → zeros of length `size` along `dim` with gy at the indices that [`Op::Slice`] reads.
    Unslice {
        /// The dimension.
        dim: usize,
        /// The length along `dim` of the result.
        size: usize,
        /// The first index.
        start: usize,
        /// From one index to the next, at least 1.
        step: usize,
    },
    /// (x, indices: int64 `[n]`) → x at the indices of one dimension, n of them. A negative index counts from the
    /// end. One out of range gives NaN (0 in whole numbers, false), which a guarded pass refuses.
    Pick {
        /// The dimension.
        dim: usize,
    },
    /// (indices, gy) → gx of [`Op::Pick`]: zeros with gy added at the indices, equal ones together.
    Unpick {
        /// The dimension.
        dim: usize,
        /// The length along `dim` of the result.
        size: usize,
    },
    /// (x) → x, whose gradient goes no further.
    Detach,
    /// (x₁, x₂, …) → the tensors end to end along one dimension; one type, at least one operand.
    Cat {
        /// The dimension.
        dim: usize,
    },

    // ---- reductions ----
    /// (x) → y, the reduced dimensions kept as 1. `dims` ascend; none at all means no reduction.
    Reduce {
        /// How.
        reduction: Reduction,
        /// Which dimensions.
        dims: Vec<usize>,
    },
    /// (x) → eˣ/Σeˣ along one dimension.
    Softmax {
        /// The dimension.
        dim: usize,
    },
    /// (y, gy) → gx of [`Op::Softmax`].
    SoftmaxGrad {
        /// The dimension.
        dim: usize,
    },
    /// (x) → ln of [`Op::Softmax`].
    LogSoftmax {
        /// The dimension.
        dim: usize,
    },
    /// (y, gy) → gx of [`Op::LogSoftmax`].
    LogSoftmaxGrad {
        /// The dimension.
        dim: usize,
    },

    // ---- contractions ----
    /// (a: [batch…, m, k], b: [batch…, k, n]) → [batch…, m, n]; equal batch dimensions (expand first);
    /// with a flag set, that operand's last two dimensions lie transposed.
    MatMul {
        /// `a` is [batch…, k, m].
        transpose_a: bool,
        /// `b` is [batch…, n, k].
        transpose_b: bool,
    },
    /// (x: [N, C, H, W], w: [O, C/groups, kh, kw]) → [N, O, H′, W′].
    Conv2d(Conv2d),
    /// (w, gy) → gx of [`Op::Conv2d`]; also the forward of a transposed convolution.
    Conv2dGradInput {
        /// The convolution's attributes.
        conv: Conv2d,
        /// (H, W) of its input.
        input_size: [usize; 2],
    },
    /// (x, gy) → gw of [`Op::Conv2d`].
    Conv2dGradWeight {
        /// The convolution's attributes.
        conv: Conv2d,
        /// (kh, kw) of its weight.
        kernel_size: [usize; 2],
    },

    // ---- attention ----
    /// (q: […, L, E], k: […, S, E], v: […, S, F]) → (y: […, L, F], lse: […, L]): softmax(`scale`·q·kᵀ)·v, and the
    /// logarithm of each row's sum of exponentials, in float64 for float64, else in float32. E and F are at most
    /// [`Op::MOST_HEAD_WIDTH`], L and S at least 1.
    ///
    /// A row with a score that is NaN or +∞, or with none but −∞, is NaN, as softmax has it. A value that is not
    /// finite may also reach queries that must not see it, and so may such a query or key on the way back.
    Attention {
        /// Whether query i sees keys 0 to i alone, as PyTorch's `is_causal`.
        causal: bool,
        /// The factor of the scores.
        scale: f64,
    },
    /// (q, k, v, y, lse, gy) → (gq, gk, gv) of [`Op::Attention`]. The weights are computed anew.
    AttentionGrad {
        /// As in [`Op::Attention`].
        causal: bool,
        /// As in [`Op::Attention`].
        scale: f64,
    },

    // ---- pooling, over [N, C, H, W] ----
    /// (x) → (y, indices: int64 within each H×W plane). NaN wins, as in PyTorch.
    MaxPool2d(Pool2d),
    /// (indices, gy) → gx of [`Op::MaxPool2d`].
    MaxPool2dGrad {
        /// (H, W) of its input.
        input_size: [usize; 2],
    },
    /// (x) → y.
    AvgPool2d {
        /// The window.
        pool: Pool2d,
        /// `count_include_pad`.
        count_include_pad: bool,
        /// `divisor_override`.
        divisor: Option<usize>,
    },
    /// (gy) → gx of [`Op::AvgPool2d`].
    AvgPool2dGrad {
        /// The window.
        pool: Pool2d,
        /// `count_include_pad`.
        count_include_pad: bool,
        /// `divisor_override`.
        divisor: Option<usize>,
        /// (H, W) of its input.
        input_size: [usize; 2],
    },
    /// (x) → [N, C, output…], windows as `adaptive_avg_pool2d` chooses them.
    AdaptiveAvgPool2d {
        /// (H, W) of the result.
        output_size: [usize; 2],
    },
    /// (gy) → gx of [`Op::AdaptiveAvgPool2d`].
    AdaptiveAvgPool2dGrad {
        /// (H, W) of its input.
        input_size: [usize; 2],
    },

    // ---- normalisation; weight and bias are always operands (ones and zeros where absent) ----
    /// `(x: [N, C, …], weight: [C], bias: [C]) → (y, mean: [C], rstd: [C], var: [C] biased)`, by batch
    /// statistics.
    BatchNorm {
        /// `eps`.
        eps: f64,
    },
    /// (x, weight, mean, rstd, gy) → (gx, gweight, gbias) of [`Op::BatchNorm`].
    BatchNormGrad,
    /// (x, weight, bias, running_mean, running_var) → y, by running statistics.
    BatchNormEval {
        /// `eps`.
        eps: f64,
    },
    /// (x, weight, running_mean, running_var, gy) → (gx, gweight, gbias) of [`Op::BatchNormEval`].
    BatchNormEvalGrad {
        /// `eps`.
        eps: f64,
    },
    /// (x: [outer…, inner…], weight: [inner…], bias: [inner…]) → (y, mean: [outer…], rstd: [outer…]); the
    /// last `dims` dimensions are the inner ones.
    LayerNorm {
        /// How many innermost dimensions are normalised together, at least 1.
        dims: usize,
        /// `eps`.
        eps: f64,
    },
    /// (x, weight, mean, rstd, gy) → (gx, gweight, gbias) of [`Op::LayerNorm`].
    LayerNormGrad {
        /// As in [`Op::LayerNorm`].
        dims: usize,
    },
    /// `(x: [N, C, …], weight: [C], bias: [C]) → (y, mean: [N, groups], rstd: [N, groups])`.
    GroupNorm {
        /// `num_groups`, dividing C.
        groups: usize,
        /// `eps`.
        eps: f64,
    },
    /// (x, weight, mean, rstd, gy) → (gx, gweight, gbias) of [`Op::GroupNorm`].
    GroupNormGrad {
        /// As in [`Op::GroupNorm`].
        groups: usize,
    },

    // ---- chance ----
    /// (x) → x·mask/(1 − p). The mask is a pure function of the pass's seed, `site` and the element's
    /// index, so the gradient is the same operation on gy and no mask is saved.
    Dropout {
        /// The probability of a zero, in [0, 1].
        p: f64,
        /// Tells one dropout of a graph from another.
        site: u32,
    },

    // ---- sources ----
    /// () → every element `value`.
    Full {
        /// The shape.
        shape: Shape,
        /// The type.
        dtype: DType,
        /// The value, converted to the type.
        value: f64,
    },
    /// () → start, start + step, … along one dimension.
    Arange {
        /// The first value.
        start: f64,
        /// From one value to the next.
        step: f64,
        /// How many.
        len: usize,
        /// The type.
        dtype: DType,
    },
}

impl Unary {
    /// The function's short name.
    pub fn name(&self) -> &'static str {
        match self {
            Unary::Neg => "neg",
            Unary::Abs => "abs",
            Unary::Sqrt => "sqrt",
            Unary::Rsqrt => "rsqrt",
            Unary::Reciprocal => "reciprocal",
            Unary::Exp => "exp",
            Unary::Expm1 => "expm1",
            Unary::Log => "log",
            Unary::Log1p => "log1p",
            Unary::Sin => "sin",
            Unary::Cos => "cos",
            Unary::Erf => "erf",
            Unary::Sign => "sign",
            Unary::Floor => "floor",
            Unary::Ceil => "ceil",
            Unary::Round => "round",
            Unary::Trunc => "trunc",
            Unary::Relu => "relu",
            Unary::LeakyRelu { .. } => "leaky_relu",
            Unary::Elu { .. } => "elu",
            Unary::Gelu => "gelu",
            Unary::GeluTanh => "gelu_tanh",
            Unary::Silu => "silu",
            Unary::Sigmoid => "sigmoid",
            Unary::Tanh => "tanh",
            Unary::Softplus { .. } => "softplus",
            Unary::Hardswish => "hardswish",
            Unary::Hardsigmoid => "hardsigmoid",
            Unary::Hardtanh { .. } => "hardtanh",
            Unary::AddScalar { .. } => "add_scalar",
            Unary::MulScalar { .. } => "mul_scalar",
            Unary::PowScalar { .. } => "pow_scalar",
        }
    }
}

impl Binary {
    /// The function's short name.
    pub fn name(&self) -> &'static str {
        match self {
            Binary::Add => "add",
            Binary::Sub => "sub",
            Binary::Mul => "mul",
            Binary::Div => "div",
            Binary::Pow => "pow",
            Binary::Maximum => "maximum",
            Binary::Minimum => "minimum",
        }
    }
}

impl Op {
    /// The widest head of an [`Op::Attention`]: as much as a GPU's block keeps of a query and its result.
    pub const MOST_HEAD_WIDTH: usize = 256;

    /// Every short name that [`name`](Self::name) gives: the whitelist as text.
    pub const NAMES: &'static [&'static str] = &[
        "abs",
        "adaptive_avg_pool2d",
        "adaptive_avg_pool2d_grad",
        "add",
        "add_scalar",
        "arange",
        "attention",
        "attention_grad",
        "avg_pool2d",
        "avg_pool2d_grad",
        "batch_norm",
        "batch_norm_eval",
        "batch_norm_eval_grad",
        "batch_norm_grad",
        "cast",
        "cat",
        "ceil",
        "compare",
        "conv2d",
        "conv2d_grad_input",
        "conv2d_grad_weight",
        "cos",
        "detach",
        "div",
        "dropout",
        "elu",
        "erf",
        "exp",
        "expand",
        "expm1",
        "floor",
        "full",
        "gelu",
        "gelu_tanh",
        "group_norm",
        "group_norm_grad",
        "hardsigmoid",
        "hardswish",
        "hardtanh",
        "layer_norm",
        "layer_norm_grad",
        "leaky_relu",
        "log",
        "log1p",
        "log_softmax",
        "log_softmax_grad",
        "matmul",
        "max_pool2d",
        "max_pool2d_grad",
        "maximum",
        "minimum",
        "mul",
        "mul_scalar",
        "neg",
        "permute",
        "pick",
        "pow",
        "pow_scalar",
        "reciprocal",
        "reduce",
        "relu",
        "reshape",
        "round",
        "rsqrt",
        "sigmoid",
        "sign",
        "silu",
        "sin",
        "slice",
        "softmax",
        "softmax_grad",
        "softplus",
        "sqrt",
        "sub",
        "tanh",
        "trunc",
        "unary_grad",
        "unpick",
        "unslice",
        "where",
    ];

    /// The operation's short name, as it stands in errors and printed graphs.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Unary(unary) => unary.name(),
            Op::Binary(binary) => binary.name(),
            Op::UnaryGrad(_) => "unary_grad",
            Op::Compare(_) => "compare",
            Op::Where => "where",
            Op::Cast(_) => "cast",
            Op::Reshape(_) => "reshape",
            Op::Permute(_) => "permute",
            Op::Expand(_) => "expand",
            Op::Slice { .. } => "slice",
            Op::Unslice { .. } => "unslice",
            Op::Pick { .. } => "pick",
            Op::Unpick { .. } => "unpick",
            Op::Detach => "detach",
            Op::Cat { .. } => "cat",
            Op::Reduce { .. } => "reduce",
            Op::Softmax { .. } => "softmax",
            Op::SoftmaxGrad { .. } => "softmax_grad",
            Op::LogSoftmax { .. } => "log_softmax",
            Op::LogSoftmaxGrad { .. } => "log_softmax_grad",
            Op::MatMul { .. } => "matmul",
            Op::Conv2d(_) => "conv2d",
            Op::Conv2dGradInput { .. } => "conv2d_grad_input",
            Op::Conv2dGradWeight { .. } => "conv2d_grad_weight",
            Op::Attention { .. } => "attention",
            Op::AttentionGrad { .. } => "attention_grad",
            Op::MaxPool2d(_) => "max_pool2d",
            Op::MaxPool2dGrad { .. } => "max_pool2d_grad",
            Op::AvgPool2d { .. } => "avg_pool2d",
            Op::AvgPool2dGrad { .. } => "avg_pool2d_grad",
            Op::AdaptiveAvgPool2d { .. } => "adaptive_avg_pool2d",
            Op::AdaptiveAvgPool2dGrad { .. } => "adaptive_avg_pool2d_grad",
            Op::BatchNorm { .. } => "batch_norm",
            Op::BatchNormGrad => "batch_norm_grad",
            Op::BatchNormEval { .. } => "batch_norm_eval",
            Op::BatchNormEvalGrad { .. } => "batch_norm_eval_grad",
            Op::LayerNorm { .. } => "layer_norm",
            Op::LayerNormGrad { .. } => "layer_norm_grad",
            Op::GroupNorm { .. } => "group_norm",
            Op::GroupNormGrad { .. } => "group_norm_grad",
            Op::Dropout { .. } => "dropout",
            Op::Full { .. } => "full",
            Op::Arange { .. } => "arange",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Op;

    #[test]
    fn the_list_of_names_is_what_the_source_gives() {
        let source = include_str!("op.rs");
        let mut given: Vec<&str> = source
            .lines()
            .filter_map(|line| line.split_once("=> \"")?.1.split_once('"'))
            .map(|(name, _)| name)
            .collect();
        given.sort_unstable();
        given.dedup();
        assert_eq!(given, Op::NAMES);
    }
}
