//! The cases that gradients are checked on.

use crate::{
    graph::{Binary, Builder, Compare, Conv2d, GraphError, Op, Pool2d, Reduction, Unary, ValueId},
    tensor::{DType, Shape},
};

type Build = Box<dyn Fn(&mut Builder, &[ValueId]) -> Result<ValueId, GraphError>>;

/// A small graph over `f64` inputs drawn from a range.
pub(crate) struct Case {
    pub name: String,
    pub shapes: Vec<Shape>,
    pub range: (f64, f64),
    pub build: Build,
}

fn case(
    name: impl Into<String>,
    shapes: &[&[usize]],
    build: impl Fn(&mut Builder, &[ValueId]) -> Result<ValueId, GraphError> + 'static,
) -> Case {
    let shapes = shapes.iter().map(|&s| Shape::from(s)).collect();
    Case { name: name.into(), shapes, range: (-2.0, 2.0), build: Box::new(build) }
}

fn op(name: impl Into<String>, shapes: &[&[usize]], op: Op) -> Case {
    case(name, shapes, move |b, inputs| b.apply(op.clone(), inputs))
}

fn within(mut case: Case, low: f64, high: f64) -> Case {
    case.range = (low, high);
    case
}

pub(crate) fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    unaries(&mut all);
    binaries(&mut all);
    movements(&mut all);
    reductions(&mut all);
    contractions(&mut all);
    attentions(&mut all);
    pools(&mut all);
    norms(&mut all);
    mixtures(&mut all);
    empties(&mut all);
    all
}

fn unaries(all: &mut Vec<Case>) {
    let anywhere = [
        Unary::Neg,
        Unary::Abs,
        Unary::Exp,
        Unary::Expm1,
        Unary::Sign,
        Unary::Floor,
        Unary::Ceil,
        Unary::Round,
        Unary::Trunc,
        Unary::Sin,
        Unary::Cos,
        Unary::Erf,
        Unary::Relu,
        Unary::LeakyRelu { slope: 0.1 },
        Unary::Elu { alpha: 1.5 },
        Unary::Gelu,
        Unary::GeluTanh,
        Unary::Silu,
        Unary::Sigmoid,
        Unary::Tanh,
        Unary::Softplus { beta: 2.0, threshold: 3.0 },
        Unary::Hardswish,
        Unary::Hardsigmoid,
        Unary::Hardtanh { min: -1.0, max: 0.5 },
        Unary::Hardtanh { min: f64::NEG_INFINITY, max: 0.5 },
        Unary::Hardtanh { min: -0.1, max: 1.0 },
        Unary::AddScalar { value: 3.0 },
        Unary::MulScalar { value: -2.5 },
        Unary::PowScalar { exponent: 3.0 },
        Unary::PowScalar { exponent: 0.0 },
        Unary::PowScalar { exponent: 1.0 },
    ];
    for unary in anywhere {
        all.push(within(op(format!("{unary:?}"), &[&[3, 5]], Op::Unary(unary)), -4.0, 4.0));
    }
    let positive = [
        Unary::Sqrt,
        Unary::Rsqrt,
        Unary::Reciprocal,
        Unary::Log,
        Unary::Log1p,
        Unary::PowScalar { exponent: 0.5 },
        Unary::PowScalar { exponent: -1.5 },
    ];
    for unary in positive {
        all.push(within(op(format!("{unary:?}"), &[&[3, 5]], Op::Unary(unary)), 0.5, 3.0));
    }
    all.push(op("cast", &[&[4]], Op::Cast(DType::F64)));
    all.push(op("dropout", &[&[6, 7]], Op::Dropout { p: 0.3, site: 2 }));
}

fn binaries(all: &mut Vec<Case>) {
    let shapes: [[&[usize]; 2]; 4] =
        [[&[2, 3], &[2, 3]], [&[2, 3], &[3]], [&[2, 1, 4], &[3, 1]], [&[], &[2, 2]]];
    for binary in [Binary::Add, Binary::Sub, Binary::Mul, Binary::Maximum, Binary::Minimum] {
        for pair in &shapes {
            all.push(op(format!("{binary:?} {pair:?}"), pair, Op::Binary(binary)));
        }
    }
    for binary in [Binary::Div, Binary::Pow] {
        for pair in &shapes {
            all.push(within(op(format!("{binary:?} {pair:?}"), pair, Op::Binary(binary)), 0.5, 2.5));
        }
    }
    all.push(case("where", &[&[4, 3], &[3], &[4, 1]], |b, x| {
        let condition = b.apply(Op::Compare(Compare::Lt), &[x[0], x[1]])?;
        b.apply(Op::Where, &[condition, x[1], x[2]])
    }));
    all.push(case("the same operand twice", &[&[3]], |b, x| b.apply(Op::Binary(Binary::Mul), &[x[0], x[0]])));
}

fn movements(all: &mut Vec<Case>) {
    all.push(op("reshape", &[&[2, 6]], Op::Reshape([3, 4].into())));
    all.push(op("permute", &[&[2, 3, 4]], Op::Permute(vec![2, 0, 1])));
    all.push(op("expand", &[&[3, 1]], Op::Expand([2, 3, 4].into())));
    all.push(op("slice", &[&[3, 7]], Op::Slice { dim: 1, start: 1, len: 3, step: 2 }));
    all.push(op("empty slice", &[&[3, 7]], Op::Slice { dim: 1, start: 7, len: 0, step: 1 }));
    all.push(op("unslice", &[&[3, 3]], Op::Unslice { dim: 1, size: 8, start: 1, step: 3 }));
    for dim in 0..3 {
        // Some twice, some never, one from the end.
        all.push(case(format!("pick {dim}"), &[&[3, 4, 3]], move |b, x| {
            let indices = indices(b)?;
            b.apply(Op::Pick { dim }, &[x[0], indices])
        }));
        let mut shape = [3, 4, 3];
        shape[dim] = 5;
        all.push(case(format!("unpick {dim}"), &[&shape], move |b, x| {
            let indices = indices(b)?;
            b.apply(Op::Unpick { dim, size: 4 }, &[indices, x[0]])
        }));
    }
    all.push(op("cat", &[&[2, 3], &[2, 1], &[2, 4]], Op::Cat { dim: 1 }));
}

fn indices(b: &mut Builder) -> Result<ValueId, GraphError> {
    let run = |start, len| Op::Arange { start, step: 1.0, len, dtype: DType::I64 };
    let (few, more) = (b.apply(run(-1.0, 3), &[])?, b.apply(run(0.0, 2), &[])?);
    b.apply(Op::Cat { dim: 0 }, &[few, more])
}

/// Batches of nothing: x has no elements, and what it is combined with gets a gradient of zeros.
fn empties(all: &mut Vec<Case>) {
    let none = |name: &str, shapes: &[&[usize]], empty: Op| op(format!("{name}, no batch"), shapes, empty);
    let conv = Conv2d { stride: [1, 1], padding: [1, 1], dilation: [1, 1], groups: 1 };
    let pool = Pool2d { kernel: [2, 2], stride: [2, 2], padding: [0, 0], dilation: [1, 1], ceil: false };
    let eps = 1e-5;
    all.push(none("mul", &[&[0, 3], &[3]], Op::Binary(Binary::Mul)));
    all.push(none("gelu", &[&[0, 3]], Op::Unary(Unary::Gelu)));
    all.push(none("expand", &[&[0, 1]], Op::Expand([0, 4].into())));
    all.push(none("permute", &[&[0, 3, 2]], Op::Permute(vec![2, 0, 1])));
    all.push(none("cat", &[&[0, 3], &[0, 2]], Op::Cat { dim: 1 }));
    all.push(none("cat of one that is empty", &[&[0, 3], &[2, 3]], Op::Cat { dim: 0 }));
    all.push(none("slice", &[&[0, 5]], Op::Slice { dim: 1, start: 1, len: 2, step: 2 }));
    all.push(none("sum", &[&[0, 3]], Op::Reduce { reduction: Reduction::Sum, dims: vec![0] }));
    let squares = Op::Reduce { reduction: Reduction::SumOfSquares, dims: vec![0] };
    all.push(none("sum of squares", &[&[0, 3]], squares));
    all.push(none("mean", &[&[0, 3]], Op::Reduce { reduction: Reduction::Mean, dims: vec![1] }));
    all.push(none("amax", &[&[0, 3]], Op::Reduce { reduction: Reduction::Amax, dims: vec![1] }));
    all.push(none("softmax", &[&[0, 3]], Op::Softmax { dim: 1 }));
    all.push(none("log_softmax", &[&[0, 3, 2]], Op::LogSoftmax { dim: 1 }));
    all.push(none("matmul", &[&[0, 3], &[3, 4]], Op::MatMul { transpose_a: false, transpose_b: false }));
    all.push(none("bmm", &[&[0, 2, 3], &[0, 4, 3]], Op::MatMul { transpose_a: false, transpose_b: true }));
    let attention = Op::Attention { causal: true, scale: 0.5 };
    all.push(none("attention", &[&[0, 3, 4], &[0, 2, 4], &[0, 2, 5]], attention));
    all.push(none("conv2d", &[&[0, 2, 4, 4], &[3, 2, 3, 3]], Op::Conv2d(conv)));
    let depthwise = Conv2d { groups: 2, ..conv };
    all.push(none("depthwise", &[&[0, 2, 4, 4], &[2, 1, 3, 3]], Op::Conv2d(depthwise)));
    all.push(none("max_pool2d", &[&[0, 2, 4, 4]], Op::MaxPool2d(pool)));
    let average = Op::AvgPool2d { pool, count_include_pad: true, divisor: None };
    all.push(none("avg_pool2d", &[&[0, 2, 4, 4]], average));
    all.push(none("adaptive", &[&[0, 2, 4, 4]], Op::AdaptiveAvgPool2d { output_size: [3, 2] }));
    all.push(none("layer_norm", &[&[0, 4], &[4], &[4]], Op::LayerNorm { dims: 1, eps }));
    all.push(none("group_norm", &[&[0, 4, 3], &[4], &[4]], Op::GroupNorm { groups: 2, eps }));
    all.push(none("dropout", &[&[0, 4]], Op::Dropout { p: 0.5, site: 0 }));
    all.push(case("pick, no index", &[&[3, 2]], |b, x| {
        let none = b.apply(Op::Arange { start: 0.0, step: 1.0, len: 0, dtype: DType::I64 }, &[])?;
        b.apply(Op::Pick { dim: 0 }, &[x[0], none])
    }));
}

fn reductions(all: &mut Vec<Case>) {
    for reduction in [Reduction::Sum, Reduction::SumOfSquares, Reduction::Mean, Reduction::Amax] {
        for dims in [vec![0], vec![1], vec![0, 2], vec![0, 1, 2], vec![]] {
            all.push(op(format!("{reduction:?} {dims:?}"), &[&[2, 3, 4]], Op::Reduce { reduction, dims }));
        }
    }
    for dim in 0..3 {
        all.push(op(format!("softmax {dim}"), &[&[2, 3, 4]], Op::Softmax { dim }));
        all.push(op(format!("log_softmax {dim}"), &[&[2, 3, 4]], Op::LogSoftmax { dim }));
    }
}

fn contractions(all: &mut Vec<Case>) {
    for (transpose_a, transpose_b) in [(false, false), (false, true), (true, false), (true, true)] {
        for batch in [&[][..], &[2], &[2, 2]] {
            let matrix = |m, k, transposed| {
                let sides: [usize; 2] = if transposed { [k, m] } else { [m, k] };
                [batch, &sides].concat()
            };
            let (a, b) = (matrix(3, 4, transpose_a), matrix(4, 2, transpose_b));
            let matmul = Op::MatMul { transpose_a, transpose_b };
            all.push(op(format!("matmul {transpose_a} {transpose_b} {batch:?}"), &[&a, &b], matmul));
        }
    }
    let conv = |stride, padding, dilation, groups| Conv2d { stride, padding, dilation, groups };
    let convolutions: [(&[usize], &[usize], Conv2d); 7] = [
        (&[2, 3, 5, 4], &[4, 3, 3, 3], conv([1, 1], [1, 1], [1, 1], 1)),
        (&[2, 3, 5, 4], &[4, 3, 1, 1], conv([1, 1], [0, 0], [1, 1], 1)),
        (&[1, 2, 7, 6], &[3, 2, 3, 2], conv([2, 3], [1, 0], [1, 1], 1)),
        (&[1, 2, 7, 7], &[2, 2, 3, 3], conv([1, 1], [2, 1], [2, 3], 1)),
        (&[2, 4, 5, 5], &[6, 2, 3, 3], conv([2, 1], [1, 1], [1, 1], 2)),
        (&[2, 3, 5, 5], &[3, 1, 3, 3], conv([1, 1], [1, 1], [1, 1], 3)),
        (&[2, 3, 5, 5], &[6, 1, 3, 3], conv([2, 2], [1, 1], [1, 1], 3)),
    ];
    for (x, w, attributes) in convolutions {
        all.push(op(format!("{attributes:?} {x:?} {w:?}"), &[x, w], Op::Conv2d(attributes)));
    }
    let transposed = conv([2, 2], [1, 1], [1, 1], 1);
    let grad_input = Op::Conv2dGradInput { conv: transposed, input_size: [6, 5] };
    all.push(op("transposed convolution", &[&[3, 2, 3, 3], &[2, 3, 3, 3]], grad_input));
}

fn attentions(all: &mut Vec<Case>) {
    let shapes: [[&[usize]; 3]; 5] = [
        [&[3, 4], &[3, 4], &[3, 4]],
        [&[2, 5, 3], &[2, 2, 3], &[2, 2, 7]],
        [&[2, 2, 5], &[2, 6, 5], &[2, 6, 1]],
        [&[2, 3, 4, 3], &[2, 3, 4, 3], &[2, 3, 4, 2]],
        [&[1, 1], &[1, 1], &[1, 1]],
    ];
    for operands in &shapes {
        for (causal, scale) in [(false, 0.5), (true, 0.5), (false, -1.25)] {
            let attention = Op::Attention { causal, scale };
            all.push(op(format!("{attention:?} {operands:?}"), operands, attention));
        }
    }
    // As heads are split out of one projection, and joined again.
    all.push(case("attention of one projection", &[&[2, 3, 12]], |b, x| {
        let heads = b.apply(Op::Reshape([2, 3, 3, 2, 2].into()), &[x[0]])?;
        let heads = b.apply(Op::Permute(vec![2, 0, 3, 1, 4]), &[heads])?;
        let mut parts = [heads; 3];
        for (start, part) in parts.iter_mut().enumerate() {
            let one = b.apply(Op::Slice { dim: 0, start, len: 1, step: 1 }, &[heads])?;
            *part = b.apply(Op::Reshape([2, 2, 3, 2].into()), &[one])?;
        }
        let y = b.apply(Op::Attention { causal: true, scale: 0.7 }, &parts)?;
        let y = b.apply(Op::Permute(vec![0, 2, 1, 3]), &[y])?;
        b.apply(Op::Reshape([2, 3, 4].into()), &[y])
    }));
}

fn pools(all: &mut Vec<Case>) {
    let pool = |kernel, stride, padding, dilation, ceil| Pool2d { kernel, stride, padding, dilation, ceil };
    let windows = [
        pool([2, 2], [2, 2], [0, 0], [1, 1], false),
        pool([3, 3], [2, 2], [1, 1], [1, 1], false),
        pool([3, 2], [2, 1], [1, 0], [1, 1], true),
        pool([2, 2], [3, 3], [1, 1], [1, 1], true),
    ];
    for window in windows {
        all.push(op(format!("max {window:?}"), &[&[2, 2, 6, 5]], Op::MaxPool2d(window)));
        for (count_include_pad, divisor) in [(true, None), (false, None), (true, Some(3))] {
            let average = Op::AvgPool2d { pool: window, count_include_pad, divisor };
            all.push(op(
                format!("average {count_include_pad} {divisor:?} {window:?}"),
                &[&[2, 2, 6, 5]],
                average,
            ));
        }
    }
    let dilated = pool([2, 2], [1, 1], [1, 1], [2, 2], false);
    all.push(op("max, dilated", &[&[1, 2, 6, 5]], Op::MaxPool2d(dilated)));
    for output_size in [[1, 1], [3, 2], [5, 7]] {
        all.push(op(
            format!("adaptive {output_size:?}"),
            &[&[2, 2, 6, 5]],
            Op::AdaptiveAvgPool2d { output_size },
        ));
    }
}

fn norms(all: &mut Vec<Case>) {
    let eps = 1e-3;
    for x in [&[4, 3][..], &[2, 3, 4], &[2, 3, 2, 2]] {
        all.push(op(format!("batch_norm {x:?}"), &[x, &[3], &[3]], Op::BatchNorm { eps }));
        // Running statistics are constants here, as they are buffers in a kernel.
        all.push(case(format!("batch_norm_eval {x:?}"), &[x, &[3], &[3]], move |b, inputs| {
            let full = |value| Op::Full { shape: [3].into(), dtype: DType::F64, value };
            let (mean, var) = (b.apply(full(0.3), &[])?, b.apply(full(1.7), &[])?);
            b.apply(Op::BatchNormEval { eps }, &[inputs[0], inputs[1], inputs[2], mean, var])
        }));
    }
    for dims in 1..=2 {
        let inner = &[3, 4][2 - dims..];
        all.push(op(format!("layer_norm {dims}"), &[&[2, 3, 4], inner, inner], Op::LayerNorm { dims, eps }));
    }
    for groups in [1, 2, 4] {
        let group_norm = Op::GroupNorm { groups, eps };
        all.push(op(format!("group_norm {groups}"), &[&[2, 4, 3], &[4], &[4]], group_norm));
    }
}

fn mixtures(all: &mut Vec<Case>) {
    all.push(case("attention by hand", &[&[2, 3, 4], &[2, 3, 4], &[2, 3, 4]], |b, x| {
        let scores = b.apply(Op::MatMul { transpose_a: false, transpose_b: true }, &[x[0], x[1]])?;
        let scaled = b.apply(Op::Unary(Unary::MulScalar { value: 0.5 }), &[scores])?;
        let weights = b.apply(Op::Softmax { dim: 2 }, &[scaled])?;
        b.apply(Op::MatMul { transpose_a: false, transpose_b: false }, &[weights, x[2]])
    }));
    all.push(case("a value read by three branches", &[&[2, 6]], |b, x| {
        let h = b.apply(Op::Unary(Unary::Tanh), &[x[0]])?;
        let left = b.apply(Op::Slice { dim: 1, start: 0, len: 3, step: 1 }, &[h])?;
        let right = b.apply(Op::Slice { dim: 1, start: 3, len: 3, step: 1 }, &[h])?;
        let product = b.apply(Op::Binary(Binary::Mul), &[left, right])?;
        let joined = b.apply(Op::Cat { dim: 1 }, &[product, left])?;
        b.apply(Op::Binary(Binary::Add), &[joined, h])
    }));
}
