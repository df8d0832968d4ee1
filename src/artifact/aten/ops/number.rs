//! Sizes and numbers: what a program computes about shapes, all known while it is lowered.

use super::{
    super::folding::Content,
    Call, Entry, Operand, Outcome, Scalar, Value,
    arithmetic::{arithmetic, combine, fold},
    entry,
    rounding::{Rounding, quotient, rest},
};
use crate::{
    artifact::Problem,
    graph::{Binary, Op, Unary, ValueId},
    tensor::{DType, HostTensor, Shape},
};

pub(super) const ENTRIES: &[Entry] = &[
    entry("size(self, dim=None)", size),
    entry("sym_size(self, dim=None)", size),
    entry("numel(self)", numel),
    entry("sym_numel(self)", numel),
    entry("dim(self)", |call| Ok(Value::int(info(call)?.rank() as i64))),
    entry("ndimension(self)", |call| Ok(Value::int(info(call)?.rank() as i64))),
    entry("floordiv(self, other)", divided),
    entry("floor_divide(self, other)", divided),
    entry("remainder(self, other)", |call| {
        exact(call, modulo, |x, y| x - (x / y).floor() * y, |call, a, b| rest(call, a, b, Rounding::Floor))
    }),
    entry("fmod(self, other)", |call| {
        exact(call, i64::checked_rem, |x, y| x % y, |call, a, b| rest(call, a, b, Rounding::Trunc))
    }),
    entry("neg(self)", |call| match call.operand("self")? {
        Operand::Tensor(x) => {
            let y = if call.dtype_of(x).is_floating_point() {
                call.unary(Unary::Neg, x)?
            } else {
                combine(call, Binary::Sub, Operand::Number(Scalar::Int(0)), Operand::Tensor(x))?
            };
            call.fresh(y)
        }
        _ => known(call, |scalar| match scalar.to_i64() {
            Some(value) => value.checked_neg().map(Scalar::Int),
            None => Some(Scalar::Float(-scalar.to_f64())),
        }),
    }),
    entry("sqrt(self)", |call| match call.operand("self")? {
        Operand::Tensor(_) => {
            let x = super::activation::floating(call, "self")?;
            let y = call.unary(Unary::Sqrt, x)?;
            call.fresh(y)
        }
        _ => known(call, |scalar| Some(Scalar::Float(scalar.to_f64().sqrt()))),
    }),
    entry("floor(self)", |call| round(call, f64::floor, Unary::Floor)),
    entry("ceil(self)", |call| round(call, f64::ceil, Unary::Ceil)),
    entry("round(self)", |call| round(call, f64::round_ties_even, Unary::Round)),
    entry("NumToTensor(a)", |call| number(call).map(|scalar| Value::known(scalar, scalar.dtype()))),
    entry("ScalarImplicit(a)", |call| number(call).map(Value::Number)),
    entry("IntImplicit(a)", |call| number(call).map(Value::Number)),
    entry("FloatImplicit(a)", |call| number(call).map(Value::Number)),
    entry("sym_float(a)", |call| number(call).map(|scalar| Value::float(scalar.to_f64()))),
    entry("item(self)", |call| match call.get("self").scalar() {
        Some(scalar) => Ok(Value::Number(scalar)),
        None => Err(Problem::unsupported("reading a tensor's data as a number")),
    }),
];

/// The quotient rounded down, as Python's `//`.
pub(super) fn floor_divide(a: i64, b: i64) -> Option<i64> {
    let quotient = a.checked_div(b)?;
    if a % b != 0 && (a < 0) != (b < 0) { quotient.checked_sub(1) } else { Some(quotient) }
}

fn modulo(a: i64, b: i64) -> Option<i64> {
    a.checked_sub(floor_divide(a, b)?.checked_mul(b)?)
}

fn info(call: &Call<'_, '_>) -> Result<Shape, Problem> {
    match call.lowering.info(&call.get("self")) {
        Some((shape, _)) => Ok(shape),
        None => Err(Problem::argument("it takes a tensor")),
    }
}

fn size(call: &mut Call<'_, '_>) -> Outcome {
    let shape = info(call)?;
    if call.get("dim") == Value::None {
        let sizes = shape.iter().map(|&n| Value::int(n as i64)).collect();
        return Ok(call.lowering.list(sizes));
    }
    let dim = call.dim("dim", &shape)?;
    match shape.get(dim) {
        Some(&size) => Ok(Value::int(size as i64)),
        None => Err(Problem::argument("a tensor without dimensions has no size")),
    }
}

fn numel(call: &mut Call<'_, '_>) -> Outcome {
    Ok(Value::int(info(call)?.elements() as i64))
}

fn number(call: &Call<'_, '_>) -> Result<Scalar, Problem> {
    match call.get("a") {
        Value::Tensor(_) => Err(Problem::unsupported("reading a tensor's data as a number")),
        _ => call.number("a"),
    }
}

/// PyTorch defines no gradient for this one.
fn divided(call: &mut Call<'_, '_>) -> Outcome {
    exact(
        call,
        floor_divide,
        |x, y| (x / y).floor(),
        |call, a, b| {
            let y = quotient(call, a, b, Rounding::Floor)?;
            call.apply(Op::Detach, &[y])
        },
    )
}

fn round(call: &mut Call<'_, '_>, numbers: fn(f64) -> f64, unary: Unary) -> Outcome {
    match call.operand("self")? {
        Operand::Tensor(x) => {
            let y = super::rounding::rounded(call, x, unary)?;
            call.fresh(y)
        }
        _ => known(call, |scalar| rounded(scalar, numbers)),
    }
}

fn exact(
    call: &mut Call<'_, '_>,
    ints: fn(i64, i64) -> Option<i64>,
    floats: fn(f64, f64) -> f64,
    tensors: fn(&mut Call<'_, '_>, Operand, Operand) -> Result<ValueId, Problem>,
) -> Outcome {
    let (a, b) = (call.operand("self")?, call.operand("other")?);
    if let Some(folded) = fold(call, a, b, arithmetic(ints, floats)) {
        return folded;
    }
    let y = match constants(call, a, b, ints)? {
        Some(values) => call.lowering.builder.constant(values)?,
        None => tensors(call, a, b)?,
    };
    call.fresh(y)
}

/// The results of integers that constants decide, as in the shifted indices of a `roll`.
fn constants(
    call: &mut Call<'_, '_>,
    a: Operand,
    b: Operand,
    f: fn(i64, i64) -> Option<i64>,
) -> Result<Option<HostTensor>, Problem> {
    let (Operand::Tensor(x), Some(b)) = (a, b.scalar().and_then(Scalar::to_i64)) else { return Ok(None) };
    if call.dtype_of(x) != DType::I64 {
        return Ok(None);
    }
    let Some(Content { tensor, fixed: true }) = call.lowering.content(x)? else { return Ok(None) };
    let values = tensor.to_values::<i64>().unwrap_or_default();
    let results = values.iter().map(|&a| f(a, b)).collect::<Option<Vec<_>>>();
    let results = results.ok_or_else(|| Problem::argument(format!("a division by {b} overflows")))?;
    Ok(HostTensor::from_values(tensor.shape().clone(), &results).ok())
}

fn rounded(scalar: Scalar, round: fn(f64) -> f64) -> Option<Scalar> {
    match scalar.to_i64() {
        Some(value) => Some(Scalar::Int(value)),
        None => {
            let value = round(scalar.to_f64());
            (value.abs() < 9e18).then_some(Scalar::Int(value as i64))
        }
    }
}

/// A function of one known number; of a tensor's data it is refused.
fn known(call: &mut Call<'_, '_>, f: impl Fn(Scalar) -> Option<Scalar>) -> Outcome {
    let value = call.get("self");
    let Some(scalar) = value.scalar() else {
        return Err(Problem::unsupported("rounding a tensor"));
    };
    let Some(result) = f(scalar) else { return Err(Problem::argument("the result overflows")) };
    Ok(match value {
        Value::Known(known) => Value::known(result, known.dtype),
        _ => Value::Number(result),
    })
}
