//! Functions of one tensor, element by element.

use super::{Call, Entry, Operand, Outcome, Scalar, Value, arithmetic::combine, elementary, entry};
use crate::{
    artifact::Problem,
    graph::{Binary, Compare, Op, Unary, ValueId},
    tensor::{DType, Shape},
};

pub(super) const ENTRIES: &[Entry] = &[
    entry("abs(self)", absolute),
    entry("rsqrt(self)", |call| simple(call, Unary::Rsqrt)),
    entry("reciprocal(self)", |call| simple(call, Unary::Reciprocal)),
    entry("exp(self)", |call| simple(call, Unary::Exp)),
    entry("log(self)", |call| simple(call, Unary::Log)),
    entry("sin(self)", |call| simple(call, Unary::Sin)),
    entry("cos(self)", |call| simple(call, Unary::Cos)),
    entry("erf(self)", |call| simple(call, Unary::Erf)),
    entry("relu(self)", |call| match whole(call, "self")? {
        Some(x) => bounded(call, x, [Some(0.0), None]),
        None => simple(call, Unary::Relu),
    }),
    entry("sigmoid(self)", |call| simple(call, Unary::Sigmoid)),
    entry("tanh(self)", |call| simple(call, Unary::Tanh)),
    entry("silu(self)", |call| simple(call, Unary::Silu)),
    entry("hardswish(self)", |call| simple(call, Unary::Hardswish)),
    entry("hardsigmoid(self)", |call| simple(call, Unary::Hardsigmoid)),
    entry("relu6(self)", |call| between(call, 0.0, 6.0)),
    entry("square(self)", |call| match whole(call, "self")? {
        Some(x) => {
            let y = combine(call, Binary::Mul, Operand::Tensor(x), Operand::Tensor(x))?;
            call.fresh(y)
        }
        None => simple(call, Unary::PowScalar { exponent: 2.0 }),
    }),
    entry("leaky_relu(self, negative_slope=0.01)", |call| {
        let slope = call.float("negative_slope")?;
        simple(call, Unary::LeakyRelu { slope })
    }),
    entry("elu(self, alpha=1.0, scale=1.0, input_scale=1.0)", |call| {
        if call.float("input_scale")? != 1.0 {
            return Err(Problem::unsupported("elu with an input scale"));
        }
        let (alpha, scale) = (call.float("alpha")?, call.float("scale")?);
        let y = map(call, Unary::Elu { alpha })?;
        let y = call.scale(y, scale)?;
        call.fresh(y)
    }),
    entry("selu(self)", |call| {
        let y = map(call, Unary::Elu { alpha: 1.673_263_242_354_377_2 })?;
        let y = call.scale(y, 1.050_700_987_355_480_5)?;
        call.fresh(y)
    }),
    entry("gelu(self, *, approximate='none')", |call| match &*call.text("approximate")? {
        "none" => simple(call, Unary::Gelu),
        "tanh" => simple(call, Unary::GeluTanh),
        other => Err(Problem::unsupported(format!("gelu approximated by {other:?}"))),
    }),
    entry("softplus(self, beta=1, threshold=20)", |call| {
        let (beta, threshold) = (call.float("beta")?, call.float("threshold")?);
        simple(call, Unary::Softplus { beta, threshold })
    }),
    entry("hardtanh(self, min_val=-1, max_val=1)", |call| {
        let (min, max) = (call.float("min_val")?, call.float("max_val")?);
        between(call, min, max)
    }),
    entry("clamp(self, min=None, max=None)", clamp),
    entry("clip(self, min=None, max=None)", clamp),
    entry("celu(self, alpha=1.0)", |call| {
        let alpha = call.float("alpha")?;
        let x = floating(call, "self")?;
        let scaled = call.scale(x, 1.0 / alpha)?;
        // α·elu(x/α) is x above 0 and α·(e^(x/α) − 1) below.
        let y = call.unary(Unary::Elu { alpha: 1.0 }, scaled)?;
        let y = call.scale(y, alpha)?;
        call.fresh(y)
    }),
    entry("log2(self)", |call| {
        let y = map(call, Unary::Log)?;
        let y = call.scale(y, std::f64::consts::LOG2_E)?;
        call.fresh(y)
    }),
    entry("clamp_min(self, min)", clamp),
    entry("clamp_max(self, max)", clamp),
    entry("mish(self)", |call| {
        let x = floating(call, "self")?;
        let soft = call.unary(Unary::Softplus { beta: 1.0, threshold: 20.0 }, x)?;
        let gate = call.unary(Unary::Tanh, soft)?;
        let y = call.apply(Op::Binary(Binary::Mul), &[x, gate])?;
        call.fresh(y)
    }),
    entry("log1p(self)", |call| simple(call, Unary::Log1p)),
    entry("log_sigmoid(self)", |call| {
        let x = floating(call, "self")?;
        let negated = call.unary(Unary::Neg, x)?;
        let soft = call.unary(Unary::Softplus { beta: 1.0, threshold: 20.0 }, negated)?;
        let y = call.unary(Unary::Neg, soft)?;
        call.fresh(y)
    }),
    entry("prelu(self, weight)", prelu),
    entry("_prelu_kernel(self, weight)", prelu),
    entry("glu(self, dim=-1)", |call| {
        let x = floating(call, "self")?;
        let shape = call.shape(x);
        let dim = call.dim("dim", &shape)?;
        if shape.rank() == 0 || !shape[dim].is_multiple_of(2) {
            return Err(Problem::argument(format!("dimension {dim} of shape {shape} cannot be halved")));
        }
        let len = shape[dim] / 2;
        let half = |start| Op::Slice { dim, start, len, step: 1 };
        let (a, b) = (call.apply(half(0), &[x])?, call.apply(half(len), &[x])?);
        let gate = call.unary(Unary::Sigmoid, b)?;
        let y = call.apply(Op::Binary(Binary::Mul), &[a, gate])?;
        call.fresh(y)
    }),
];

/// A tensor argument as floating-point numbers, which integers become.
pub(super) fn floating(call: &mut Call<'_, '_>, name: &str) -> Result<ValueId, Problem> {
    let x = call.tensor(name)?;
    if call.dtype_of(x).is_floating_point() { Ok(x) } else { call.cast(x, DType::F32) }
}

/// A tensor argument, where it holds integers.
fn whole(call: &mut Call<'_, '_>, name: &str) -> Result<Option<ValueId>, Problem> {
    let x = call.tensor(name)?;
    let dtype = call.dtype_of(x);
    Ok(Some(x).filter(|_| !dtype.is_floating_point() && dtype != DType::Bool))
}

/// Integers between bounds, whose fractions are cut off.
fn bounded(call: &mut Call<'_, '_>, x: ValueId, [min, max]: [Option<f64>; 2]) -> Outcome {
    let mut y = x;
    for (bound, op) in [(min, Binary::Maximum), (max, Binary::Minimum)] {
        if let Some(bound) = bound {
            let bound = Operand::Number(Scalar::Int(bound as i64));
            y = combine(call, op, Operand::Tensor(y), bound)?;
        }
    }
    call.fresh(y)
}

fn between(call: &mut Call<'_, '_>, min: f64, max: f64) -> Outcome {
    match whole(call, "self")? {
        Some(x) => bounded(call, x, [Some(min), Some(max)]),
        None => simple(call, Unary::Hardtanh { min, max }),
    }
}

pub(super) fn absolute(call: &mut Call<'_, '_>) -> Outcome {
    let Some(x) = whole(call, "self")? else { return simple(call, Unary::Abs) };
    let zero = Operand::Number(Scalar::Int(0));
    let negated = combine(call, Binary::Sub, zero, Operand::Tensor(x))?;
    let y = combine(call, Binary::Maximum, Operand::Tensor(x), Operand::Tensor(negated))?;
    call.fresh(y)
}

fn map(call: &mut Call<'_, '_>, unary: Unary) -> Result<ValueId, Problem> {
    let x = floating(call, "self")?;
    call.unary(unary, x)
}

fn simple(call: &mut Call<'_, '_>, unary: Unary) -> Outcome {
    let y = map(call, unary)?;
    call.fresh(y)
}

/// Between two numbers in one operation; whole numbers and bounds that are tensors take two.
fn clamp(call: &mut Call<'_, '_>) -> Outcome {
    let x = call.tensor("self")?;
    let by_tensors =
        ["min", "max"].iter().any(|name| matches!(call.get(name), Value::Tensor(_) | Value::Known(_)));
    if by_tensors || !call.dtype_of(x).is_floating_point() {
        return elementary::clamp(call);
    }
    let bound = |name: &str, otherwise: f64| match call.get(name) {
        Value::None => Ok(otherwise),
        _ => call.float(name),
    };
    let (min, max) = (bound("min", f64::NEG_INFINITY)?, bound("max", f64::INFINITY)?);
    simple(call, Unary::Hardtanh { min, max })
}

fn prelu(call: &mut Call<'_, '_>) -> Outcome {
    let (x, mut weight) = (floating(call, "self")?, call.tensor("weight")?);
    let (shape, slopes) = (call.shape(x), call.shape(weight));
    if slopes.rank() == 1 && slopes[0] != 1 && shape.rank() >= 2 {
        let along = (0..shape.rank()).map(|i| if i == 1 { slopes[0] } else { 1 }).collect();
        weight = call.reshape(weight, along)?;
    }
    // A choice, not a sum of two relus: at 0 the gradient is the weight's, as PyTorch's is.
    let zero = call.full(Shape::scalar(), call.dtype_of(x), 0.0)?;
    let positive = call.apply(Op::Compare(Compare::Gt), &[x, zero])?;
    let scaled = call.apply(Op::Binary(Binary::Mul), &[x, weight])?;
    let y = call.apply(Op::Where, &[positive, x, scaled])?;
    call.fresh(y)
}
