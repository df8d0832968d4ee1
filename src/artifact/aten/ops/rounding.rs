//! Rounding, and division with rounding, of tensors.

use super::{
    Call, Entry, Operand, Outcome,
    arithmetic::{materialise, result_type},
    entry,
};
use crate::{
    artifact::Problem,
    graph::{Binary, Compare, Op, Unary, ValueId},
    tensor::{DType, Shape},
};

pub(super) const ENTRIES: &[Entry] = &[
    entry("sign(self)", sign),
    entry("sgn(self)", sign),
    entry("trunc(self)", |call| {
        let x = call.tensor("self")?;
        let y = rounded(call, x, Unary::Trunc)?;
        call.fresh(y)
    }),
    entry("fix(self)", |call| {
        let x = call.tensor("self")?;
        let y = rounded(call, x, Unary::Trunc)?;
        call.fresh(y)
    }),
    entry("frac(self)", |call| {
        let x = call.tensor("self")?;
        let whole = rounded(call, x, Unary::Trunc)?;
        let y = call.apply(Op::Binary(Binary::Sub), &[x, whole])?;
        call.fresh(y)
    }),
];

/// What stands between a quotient and a whole number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rounding {
    Floor,
    Trunc,
}

impl Rounding {
    fn unary(self) -> Unary {
        match self {
            Self::Floor => Unary::Floor,
            Self::Trunc => Unary::Trunc,
        }
    }
}

/// x to a whole number; integers are whole already.
pub(super) fn rounded(call: &mut Call<'_, '_>, x: ValueId, unary: Unary) -> Result<ValueId, Problem> {
    if call.dtype_of(x).is_floating_point() { call.unary(unary, x) } else { Ok(x) }
}

fn sign(call: &mut Call<'_, '_>) -> Outcome {
    let x = call.tensor("self")?;
    let dtype = call.dtype_of(x);
    let y = if dtype.is_floating_point() {
        call.unary(Unary::Sign, x)?
    } else {
        let numbers = call.cast(x, DType::F64)?;
        let sign = call.unary(Unary::Sign, numbers)?;
        call.cast(sign, dtype)?
    };
    call.fresh(y)
}

fn both(call: &mut Call<'_, '_>, a: Operand, b: Operand) -> Result<[ValueId; 2], Problem> {
    let dtype = result_type(call, &[a, b]);
    let dtype = if dtype == DType::Bool { DType::I64 } else { dtype };
    Ok([materialise(call, a, dtype)?, materialise(call, b, dtype)?])
}

/// The quotient as a whole number. A division of integers by zero, an error in PyTorch, gives some number.
pub(super) fn quotient(
    call: &mut Call<'_, '_>,
    a: Operand,
    b: Operand,
    rounding: Rounding,
) -> Result<ValueId, Problem> {
    let [a, b] = both(call, a, b)?;
    let dtype = call.dtype_of(a);
    if dtype.is_floating_point() {
        let ratio = call.apply(Op::Binary(Binary::Div), &[a, b])?;
        return call.unary(rounding.unary(), ratio);
    }
    let [a, b] = [call.cast(a, DType::I64)?, call.cast(b, DType::I64)?];
    let mut y = call.apply(Op::Binary(Binary::Div), &[a, b])?;
    if rounding == Rounding::Floor {
        // Integers divide towards zero: one less where a rest is left and the signs differ.
        let product = call.apply(Op::Binary(Binary::Mul), &[y, b])?;
        let rest = call.apply(Op::Compare(Compare::Ne), &[product, a])?;
        let zero = call.full(Shape::scalar(), DType::I64, 0.0)?;
        let one = call.full(Shape::scalar(), DType::I64, 1.0)?;
        let negative_a = call.apply(Op::Compare(Compare::Lt), &[a, zero])?;
        let negative_b = call.apply(Op::Compare(Compare::Lt), &[b, zero])?;
        let differ = call.apply(Op::Compare(Compare::Ne), &[negative_a, negative_b])?;
        let less = call.apply(Op::Binary(Binary::Sub), &[y, one])?;
        let corrected = call.apply(Op::Where, &[rest, less, y])?;
        y = call.apply(Op::Where, &[differ, corrected, y])?;
    }
    call.cast(y, dtype)
}

/// a − b·⌊a/b⌋, whose gradient is 1 for a and −⌊a/b⌋ for b.
pub(super) fn rest(
    call: &mut Call<'_, '_>,
    a: Operand,
    b: Operand,
    rounding: Rounding,
) -> Result<ValueId, Problem> {
    let whole = quotient(call, a, b, rounding)?;
    let [a, b] = both(call, a, b)?;
    let dtype = call.dtype_of(a);
    let wide = if dtype.is_floating_point() { dtype } else { DType::I64 };
    let [a, b, whole] = [call.cast(a, wide)?, call.cast(b, wide)?, call.cast(whole, wide)?];
    let taken = call.apply(Op::Binary(Binary::Mul), &[b, whole])?;
    let y = call.apply(Op::Binary(Binary::Sub), &[a, taken])?;
    call.cast(y, dtype)
}
