//! Arithmetic of two operands, with PyTorch's type promotion; known numbers are folded.

use super::{
    Call, Entry, Known, Operand, Outcome, Scalar, Value, entry, logic,
    rounding::{Rounding, quotient},
};
use crate::{
    artifact::Problem,
    graph::{Binary, Op, Unary, ValueId},
    tensor::{DType, Shape},
};

pub(super) const ENTRIES: &[Entry] = &[
    entry("add(self, other, *, alpha=1)", |call| weighted(call, "self", "other", 1.0)),
    entry("sub(self, other, *, alpha=1)", |call| weighted(call, "self", "other", -1.0)),
    entry("subtract(self, other, *, alpha=1)", |call| weighted(call, "self", "other", -1.0)),
    entry("rsub(self, other, alpha=1)", |call| weighted(call, "other", "self", -1.0)),
    entry("mul(self, other)", |call| binary(call, Binary::Mul)),
    entry("multiply(self, other)", |call| binary(call, Binary::Mul)),
    entry("div(self, other, *, rounding_mode=None)", divide),
    entry("divide(self, other, *, rounding_mode=None)", divide),
    entry("true_divide(self, other)", divide),
    entry("pow(self, exponent)", |call| {
        let (a, b) = (call.operand("self")?, call.operand("exponent")?);
        let y = combine(call, Binary::Pow, a, b)?;
        call.fresh(y)
    }),
    entry("maximum(self, other)", |call| binary(call, Binary::Maximum)),
    entry("minimum(self, other)", |call| binary(call, Binary::Minimum)),
    entry("addcmul(self, tensor1, tensor2, *, value=1)", |call| fused(call, Binary::Mul)),
    entry("addcdiv(self, tensor1, tensor2, *, value=1)", |call| fused(call, Binary::Div)),
    entry("lerp(self, end, weight)", |call| {
        let given = [call.operand("self")?, call.operand("end")?, call.operand("weight")?];
        let (dtype, [start, end, weight]) = widen(call, given)?;
        let step = combine(call, Binary::Sub, end, start)?;
        let part = combine(call, Binary::Mul, Operand::Tensor(step), weight)?;
        let y = combine(call, Binary::Add, start, Operand::Tensor(part))?;
        let y = call.cast(y, dtype)?;
        call.fresh(y)
    }),
];

/// What an operand is to promotion: a tensor with dimensions counts more than one without, and that more
/// than a number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Number,
    Scalar,
    Tensor,
}

fn category(dtype: DType) -> u8 {
    match dtype {
        DType::Bool => 0,
        dtype if dtype.is_floating_point() => 2,
        _ => 1,
    }
}

/// `torch.promote_types`.
fn promote(a: DType, b: DType) -> DType {
    use DType::{BF16, Bool, F16, F32, F64, I32, I64, U8};
    match (a, b) {
        _ if a == b => a,
        (Bool, other) | (other, Bool) => other,
        (F64, _) | (_, F64) => F64,
        (BF16, F16) | (F16, BF16) | (F32, _) | (_, F32) => F32,
        (BF16, _) | (_, BF16) => BF16,
        (F16, _) | (_, F16) => F16,
        (I64, _) | (_, I64) => I64,
        (I32 | U8, _) => I32,
    }
}

/// `torch.result_type`.
pub(super) fn result_type(call: &Call<'_, '_>, operands: &[Operand]) -> DType {
    let mut best: [Option<DType>; 3] = [None; 3];
    for operand in operands {
        let (rank, dtype) = match operand {
            Operand::Number(scalar) => (Rank::Number, scalar.dtype()),
            Operand::Known(known) => (Rank::Scalar, known.dtype),
            Operand::Tensor(value) if call.shape(*value).rank() == 0 => (Rank::Scalar, call.dtype_of(*value)),
            Operand::Tensor(value) => (Rank::Tensor, call.dtype_of(*value)),
        };
        let slot = &mut best[rank as usize];
        *slot = Some(slot.map_or(dtype, |known| promote(known, dtype)));
    }
    let [numbers, scalars, tensors] = best;
    let combine = |higher: Option<DType>, lower: Option<DType>| match (higher, lower) {
        (Some(high), Some(low)) if category(low) > category(high) => Some(promote(high, low)),
        (high, low) => high.or(low),
    };
    combine(tensors, combine(scalars, numbers)).unwrap_or(DType::F32)
}

/// An operand as a tensor of a type.
pub(super) fn materialise(
    call: &mut Call<'_, '_>,
    operand: Operand,
    dtype: DType,
) -> Result<ValueId, Problem> {
    match operand {
        Operand::Tensor(value) => call.cast(value, dtype),
        Operand::Number(scalar) | Operand::Known(Known { scalar, .. }) => {
            call.lowering.filled(Shape::scalar(), dtype, scalar.cast(dtype))
        }
    }
}

/// a ∘ b under promotion.
pub(super) fn combine(
    call: &mut Call<'_, '_>,
    op: Binary,
    a: Operand,
    b: Operand,
) -> Result<ValueId, Problem> {
    let mut dtype = result_type(call, &[a, b]);
    if op == Binary::Div && !dtype.is_floating_point() {
        dtype = DType::F32;
    }
    if dtype.is_floating_point() {
        match (a, b) {
            (Operand::Tensor(x), other) if let Some(s) = other.number() => {
                let unary = match op {
                    Binary::Add => Some(Unary::AddScalar { value: s }),
                    Binary::Sub => Some(Unary::AddScalar { value: -s }),
                    Binary::Mul => Some(Unary::MulScalar { value: s }),
                    Binary::Div => Some(Unary::MulScalar { value: 1.0 / s }),
                    Binary::Pow => Some(Unary::PowScalar { exponent: s }),
                    Binary::Maximum | Binary::Minimum => None,
                };
                if let Some(unary) = unary {
                    let x = call.cast(x, dtype)?;
                    return call.unary(unary, x);
                }
            }
            (other, Operand::Tensor(x)) if let Some(s) = other.number() => {
                let (first, then) = match op {
                    Binary::Add => (None, Some(Unary::AddScalar { value: s })),
                    Binary::Sub => (Some(Unary::Neg), Some(Unary::AddScalar { value: s })),
                    Binary::Mul => (None, Some(Unary::MulScalar { value: s })),
                    Binary::Div => (Some(Unary::Reciprocal), Some(Unary::MulScalar { value: s })),
                    Binary::Pow | Binary::Maximum | Binary::Minimum => (None, None),
                };
                if let Some(then) = then {
                    let mut x = call.cast(x, dtype)?;
                    if let Some(first) = first {
                        x = call.unary(first, x)?;
                    }
                    return call.unary(then, x);
                }
            }
            _ => {}
        }
    }
    if dtype == DType::Bool && op == Binary::Sub {
        return Err(Problem::argument("bools are not subtracted: use logical_xor or logical_not"));
    }
    // Integers are reckoned in int64; bools as well, and what is not 0 is true.
    let reckoned = if dtype.is_floating_point() { dtype } else { DType::I64 };
    let a = materialise(call, a, reckoned)?;
    let b = materialise(call, b, reckoned)?;
    let y = call.apply(Op::Binary(op), &[a, b])?;
    call.cast(y, dtype)
}

impl Operand {
    /// The number that this operand is, as a factor or summand.
    fn number(self) -> Option<f64> {
        match self {
            Operand::Tensor(_) => None,
            Operand::Number(scalar) | Operand::Known(Known { scalar, .. }) => Some(scalar.to_f64()),
        }
    }

    pub(super) fn scalar(self) -> Option<Scalar> {
        match self {
            Operand::Tensor(_) => None,
            Operand::Number(scalar) | Operand::Known(Known { scalar, .. }) => Some(scalar),
        }
    }
}

/// Two known operands give a known result: a tensor where either is one.
pub(super) fn fold(
    call: &Call<'_, '_>,
    a: Operand,
    b: Operand,
    f: impl Fn(Scalar, Scalar) -> Result<Scalar, Problem>,
) -> Option<Result<Value, Problem>> {
    let (x, y) = (a.scalar()?, b.scalar()?);
    let numbers = matches!((a, b), (Operand::Number(_), Operand::Number(_)));
    let dtype = result_type(call, &[a, b]);
    Some(f(x, y).map(|scalar| match scalar {
        _ if numbers => Value::Number(scalar),
        Scalar::Bool(_) => Value::known(scalar, DType::Bool),
        Scalar::Float(_) if !dtype.is_floating_point() => Value::known(scalar, DType::F32),
        _ => Value::known(scalar, dtype),
    }))
}

/// Exact integer arithmetic where both are integers, floating point otherwise.
pub(super) fn arithmetic(
    ints: impl Fn(i64, i64) -> Option<i64>,
    floats: impl Fn(f64, f64) -> f64,
) -> impl Fn(Scalar, Scalar) -> Result<Scalar, Problem> {
    move |a, b| match (a.to_i64(), b.to_i64()) {
        (Some(x), Some(y)) => match ints(x, y) {
            Some(value) => Ok(Scalar::Int(value)),
            None => Err(Problem::argument(format!("{x} and {y} overflow or divide by zero"))),
        },
        _ => Ok(Scalar::Float(floats(a.to_f64(), b.to_f64()))),
    }
}

fn binary(call: &mut Call<'_, '_>, op: Binary) -> Outcome {
    let a = call.operand("self")?;
    let b = if op == Binary::Mul { call.second("other")? } else { call.operand("other")? };
    let folded = match op {
        Binary::Mul => fold(call, a, b, arithmetic(i64::checked_mul, |x, y| x * y)),
        Binary::Maximum => fold(call, a, b, arithmetic(|x, y| Some(x.max(y)), f64::max)),
        Binary::Minimum => fold(call, a, b, arithmetic(|x, y| Some(x.min(y)), f64::min)),
        Binary::Add | Binary::Sub | Binary::Div | Binary::Pow => None,
    };
    if let Some(folded) = folded {
        return folded;
    }
    if op == Binary::Mul && result_type(call, &[a, b]) == DType::Bool {
        return logic::junction(call, true);
    }
    let y = combine(call, op, a, b)?;
    call.fresh(y)
}

/// a + sign·alpha·b.
fn weighted(call: &mut Call<'_, '_>, left: &str, right: &str, sign: f64) -> Outcome {
    let a = call.operand(left)?;
    let mut b = if right == "other" { call.second(right)? } else { call.operand(right)? };
    let alpha = call.number("alpha")?;
    if alpha.to_f64() != 1.0 {
        let alpha = Operand::Number(alpha);
        b = match fold(call, alpha, b, arithmetic(i64::checked_mul, |x, y| x * y)) {
            Some(folded) => match folded? {
                Value::Number(scalar) => Operand::Number(scalar),
                Value::Known(known) => Operand::Known(known),
                other => return Err(Problem::argument(format!("{} is no summand", other.kind()))),
            },
            None => Operand::Tensor(combine(call, Binary::Mul, b, alpha)?),
        };
    }
    let folded = if sign > 0.0 {
        fold(call, a, b, arithmetic(i64::checked_add, |x, y| x + y))
    } else {
        fold(call, a, b, arithmetic(i64::checked_sub, |x, y| x - y))
    };
    if let Some(folded) = folded {
        return folded;
    }
    let y = combine(call, if sign > 0.0 { Binary::Add } else { Binary::Sub }, a, b)?;
    call.fresh(y)
}

fn divide(call: &mut Call<'_, '_>) -> Outcome {
    let (a, b) = (call.operand("self")?, call.second("other")?);
    let mode = call.get("rounding_mode");
    if let Value::Str(mode) = mode {
        let folded = match &*mode {
            "floor" => fold(call, a, b, arithmetic(super::number::floor_divide, |x, y| (x / y).floor())),
            "trunc" => fold(call, a, b, arithmetic(i64::checked_div, |x, y| (x / y).trunc())),
            _ => return Err(Problem::argument(format!("it does not round by {mode:?}"))),
        };
        if let Some(folded) = folded {
            return folded;
        }
        let rounding = if &*mode == "floor" { Rounding::Floor } else { Rounding::Trunc };
        let y = quotient(call, a, b, rounding)?;
        return call.fresh(y);
    }
    if let Some(folded) = fold(call, a, b, |x, y| Ok(Scalar::Float(x.to_f64() / y.to_f64()))) {
        return folded;
    }
    let y = combine(call, Binary::Div, a, b)?;
    call.fresh(y)
}

/// The type of a result, and its operands as float32 where that is a half: what PyTorch has one kernel for is
/// rounded once.
fn widen(call: &mut Call<'_, '_>, operands: [Operand; 3]) -> Result<(DType, [Operand; 3]), Problem> {
    let dtype = result_type(call, &operands);
    if !matches!(dtype, DType::F16 | DType::BF16) {
        return Ok((dtype, operands));
    }
    let mut wide = operands;
    for operand in &mut wide {
        if let Operand::Tensor(x) = *operand {
            *operand = Operand::Tensor(call.cast(x, DType::F32)?);
        }
    }
    Ok((dtype, wide))
}

/// self + value·(tensor1 ∘ tensor2).
fn fused(call: &mut Call<'_, '_>, op: Binary) -> Outcome {
    let given = [call.operand("self")?, call.operand("tensor1")?, call.operand("tensor2")?];
    let (dtype, [base, a, b]) = widen(call, given)?;
    let value = call.float("value")?;
    let product = combine(call, op, a, b)?;
    let product = call.scale(product, value)?;
    let y = combine(call, Binary::Add, base, Operand::Tensor(product))?;
    let y = call.cast(y, dtype)?;
    call.fresh(y)
}
