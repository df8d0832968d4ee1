//! Elementary functions that are short compositions of the graph's own.

use super::{
    Call, Entry, Operand, Outcome, Scalar, Value,
    activation::{absolute, floating},
    arithmetic::{materialise, result_type},
    entry,
    logic::junction,
};
use crate::{
    artifact::Problem,
    graph::{Binary, Compare, Op, Unary, ValueId},
    tensor::{DType, Shape},
};

pub(super) const ENTRIES: &[Entry] = &[
    entry("expm1(self)", |call| one(call, Unary::Expm1)),
    entry("exp2(self)", |call| {
        let x = floating(call, "self")?;
        let scaled = call.scale(x, std::f64::consts::LN_2)?;
        let y = call.unary(Unary::Exp, scaled)?;
        call.fresh(y)
    }),
    entry("log10(self)", |call| {
        let x = floating(call, "self")?;
        let log = call.unary(Unary::Log, x)?;
        let y = call.scale(log, std::f64::consts::LOG10_E)?;
        call.fresh(y)
    }),
    entry("tan(self)", |call| {
        let x = floating(call, "self")?;
        let (sine, cosine) = (call.unary(Unary::Sin, x)?, call.unary(Unary::Cos, x)?);
        let y = call.apply(Op::Binary(Binary::Div), &[sine, cosine])?;
        call.fresh(y)
    }),
    entry("erfc(self)", |call| {
        let x = floating(call, "self")?;
        let erf = call.unary(Unary::Erf, x)?;
        let negated = call.unary(Unary::Neg, erf)?;
        let y = call.unary(Unary::AddScalar { value: 1.0 }, negated)?;
        call.fresh(y)
    }),
    entry("absolute(self)", absolute),
    entry("positive(self)", |call| Ok(call.get("self"))),
    entry("softsign(self)", |call| {
        let x = floating(call, "self")?;
        let size = call.unary(Unary::Abs, x)?;
        let over = call.unary(Unary::AddScalar { value: 1.0 }, size)?;
        let y = call.apply(Op::Binary(Binary::Div), &[x, over])?;
        call.fresh(y)
    }),
    entry("tanhshrink(self)", |call| {
        let x = floating(call, "self")?;
        let tanh = call.unary(Unary::Tanh, x)?;
        let y = call.apply(Op::Binary(Binary::Sub), &[x, tanh])?;
        call.fresh(y)
    }),
    entry("threshold(self, threshold, value)", |call| {
        let (x, bound, value) = (call.tensor("self")?, call.float("threshold")?, call.float("value")?);
        let above = against(call, x, Compare::Gt, bound)?;
        let y = otherwise(call, above, x, value)?;
        call.fresh(y)
    }),
    entry("hardshrink(self, lambd=0.5)", |call| {
        let (x, bound) = (floating(call, "self")?, call.float("lambd")?);
        let size = call.unary(Unary::Abs, x)?;
        let above = against(call, size, Compare::Gt, bound)?;
        let y = otherwise(call, above, x, 0.0)?;
        call.fresh(y)
    }),
    entry("softshrink(self, lambd=0.5)", |call| {
        let (x, bound) = (floating(call, "self")?, call.float("lambd")?);
        let above = call.unary(Unary::AddScalar { value: -bound }, x)?;
        let above = call.unary(Unary::Relu, above)?;
        let below = call.unary(Unary::Neg, x)?;
        let below = call.unary(Unary::AddScalar { value: -bound }, below)?;
        let below = call.unary(Unary::Relu, below)?;
        let y = call.apply(Op::Binary(Binary::Sub), &[above, below])?;
        call.fresh(y)
    }),
    entry("logit(self, eps=None)", |call| {
        let mut x = floating(call, "self")?;
        if call.get("eps") != Value::None {
            let eps = call.float("eps")?;
            x = call.unary(Unary::Hardtanh { min: eps, max: 1.0 - eps }, x)?;
        }
        let rest = call.unary(Unary::Neg, x)?;
        let rest = call.unary(Unary::AddScalar { value: 1.0 }, rest)?;
        let odds = call.apply(Op::Binary(Binary::Div), &[x, rest])?;
        let y = call.unary(Unary::Log, odds)?;
        call.fresh(y)
    }),
    entry("hypot(self, other)", |call| {
        let (a, b) = pair(call)?;
        let (a, b) =
            (call.apply(Op::Binary(Binary::Mul), &[a, a])?, call.apply(Op::Binary(Binary::Mul), &[b, b])?);
        let sum = call.apply(Op::Binary(Binary::Add), &[a, b])?;
        let y = call.unary(Unary::Sqrt, sum)?;
        call.fresh(y)
    }),
    // max + ln(1 + e^−|a − b|): no overflow, and at a tie each has half the gradient.
    entry("logaddexp(self, other)", |call| {
        let (a, b) = pair(call)?;
        let largest = call.apply(Op::Binary(Binary::Maximum), &[a, b])?;
        let still = call.apply(Op::Detach, &[largest])?;
        let mut exps = Vec::new();
        for x in [a, b] {
            let shifted = call.apply(Op::Binary(Binary::Sub), &[x, still])?;
            exps.push(call.unary(Unary::Exp, shifted)?);
        }
        let sum = call.apply(Op::Binary(Binary::Add), &exps)?;
        let log = call.unary(Unary::Log, sum)?;
        let y = call.apply(Op::Binary(Binary::Add), &[log, still])?;
        call.fresh(y)
    }),
    entry("isnan(self)", |call| {
        let x = call.tensor("self")?;
        let y = call.apply(Op::Compare(Compare::Ne), &[x, x])?;
        call.fresh(y)
    }),
    entry("isinf(self)", |call| {
        let x = floating(call, "self")?;
        let size = call.unary(Unary::Abs, x)?;
        let y = against(call, size, Compare::Eq, f64::INFINITY)?;
        call.fresh(y)
    }),
    entry("isfinite(self)", |call| {
        let x = floating(call, "self")?;
        let size = call.unary(Unary::Abs, x)?;
        let y = against(call, size, Compare::Lt, f64::INFINITY)?;
        call.fresh(y)
    }),
    entry("nan_to_num(self, nan=None, posinf=None, neginf=None)", |call| {
        let x = floating(call, "self")?;
        let largest = match call.dtype_of(x) {
            DType::F64 => f64::MAX,
            DType::F16 => half::f16::MAX.to_f64(),
            DType::BF16 => half::bf16::MAX.to_f64(),
            _ => f64::from(f32::MAX),
        };
        let given = |call: &Call<'_, '_>, name, otherwise| {
            if call.get(name) == Value::None { Ok(otherwise) } else { call.float(name) }
        };
        let (nan, high, low) =
            (given(call, "nan", 0.0)?, given(call, "posinf", largest)?, given(call, "neginf", -largest)?);
        let number = call.apply(Op::Compare(Compare::Eq), &[x, x])?;
        let y = otherwise(call, number, x, nan)?;
        let below = against(call, x, Compare::Ne, f64::INFINITY)?;
        let y = otherwise(call, below, y, high)?;
        let above = against(call, x, Compare::Ne, f64::NEG_INFINITY)?;
        let y = otherwise(call, above, y, low)?;
        call.fresh(y)
    }),
    // a·¬b + ¬a·b
    entry("logical_xor(self, other)", |call| {
        let (a, b) = (call.tensor("self")?, call.tensor("other")?);
        let [a, b] = [super::logic::truth_of(call, a)?, super::logic::truth_of(call, b)?];
        let y = call.apply(Op::Compare(Compare::Ne), &[a, b])?;
        call.fresh(y)
    }),
    entry("__and__(self, other)", |call| junction(call, true)),
    entry("__or__(self, other)", |call| junction(call, false)),
    entry("clamp.Tensor(self, min=None, max=None)", clamp),
    entry("clamp_min.Tensor(self, min)", clamp),
    entry("clamp_max.Tensor(self, max)", clamp),
];

/// Between bounds of any kind, in the type that all of them share. As with `maximum`, tensor and bound share the
/// gradient where they are equal.
pub(super) fn clamp(call: &mut Call<'_, '_>) -> Outcome {
    let x = call.operand("self")?;
    let mut bounds = Vec::new();
    for (name, op) in [("min", Binary::Maximum), ("max", Binary::Minimum)] {
        if call.get(name) != Value::None {
            bounds.push((call.operand(name)?, op));
        }
    }
    let operands: Vec<Operand> = bounds.iter().map(|(bound, _)| *bound).chain([x]).collect();
    let dtype = result_type(call, &operands);
    let mut y = materialise(call, x, dtype)?;
    for (bound, op) in bounds {
        let bound = materialise(call, bound, dtype)?;
        y = call.apply(Op::Binary(op), &[y, bound])?;
    }
    call.fresh(y)
}

fn one(call: &mut Call<'_, '_>, unary: Unary) -> Outcome {
    let x = floating(call, "self")?;
    let y = call.unary(unary, x)?;
    call.fresh(y)
}

/// Both operands in the floating-point type they share.
fn pair(call: &mut Call<'_, '_>) -> Result<(ValueId, ValueId), Problem> {
    let (a, b) = (call.operand("self")?, call.operand("other")?);
    let dtype = Some(result_type(call, &[a, b])).filter(|dtype| dtype.is_floating_point());
    let dtype = dtype.unwrap_or(DType::F32);
    Ok((materialise(call, a, dtype)?, materialise(call, b, dtype)?))
}

/// Compares each element with a number.
pub(super) fn against(
    call: &mut Call<'_, '_>,
    x: ValueId,
    compare: Compare,
    number: f64,
) -> Result<ValueId, Problem> {
    let dtype = call.dtype_of(x);
    let number = materialise(call, Operand::Number(Scalar::Float(number)), dtype)?;
    call.apply(Op::Compare(compare), &[x, number])
}

/// x where the condition holds, else a number.
pub(super) fn otherwise(
    call: &mut Call<'_, '_>,
    condition: ValueId,
    x: ValueId,
    number: f64,
) -> Result<ValueId, Problem> {
    let dtype = call.dtype_of(x);
    let number = call.full(Shape::scalar(), dtype, number)?;
    call.apply(Op::Where, &[condition, x, number])
}
