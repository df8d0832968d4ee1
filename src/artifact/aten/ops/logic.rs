//! Comparisons and choices.

use super::{
    Call, Entry, Operand, Outcome, Scalar,
    arithmetic::{fold, materialise, result_type},
    entry,
};
use crate::{
    artifact::Problem,
    graph::{Compare, Op, ValueId},
    tensor::{DType, Shape},
};

pub(super) const ENTRIES: &[Entry] = &[
    entry("eq(self, other)", |call| compare(call, Compare::Eq)),
    entry("ne(self, other)", |call| compare(call, Compare::Ne)),
    entry("lt(self, other)", |call| compare(call, Compare::Lt)),
    entry("le(self, other)", |call| compare(call, Compare::Le)),
    entry("gt(self, other)", |call| compare(call, Compare::Gt)),
    entry("ge(self, other)", |call| compare(call, Compare::Ge)),
    entry("where(condition, self, other)", |call| {
        let condition = truth(call, "condition")?;
        let (a, b) = (call.operand("self")?, call.operand("other")?);
        choose(call, condition, a, b)
    }),
    entry("masked_fill(self, mask, value)", |call| {
        let mask = truth(call, "mask")?;
        let (x, value) = (call.tensor("self")?, call.operand("value")?);
        let dtype = call.dtype_of(x);
        let value = materialise(call, value, dtype)?;
        let y = call.apply(Op::Where, &[mask, value, x])?;
        call.fresh(y)
    }),
    entry("logical_not(self)", |call| {
        let x = call.tensor("self")?;
        let x = truth_of(call, x)?;
        let y = inverted(call, x)?;
        call.fresh(y)
    }),
    entry("bitwise_not(self)", not),
    entry("logical_and(self, other)", |call| {
        let (a, b) = (truth(call, "self")?, truth(call, "other")?);
        let y = joined(call, a, b, true)?;
        call.fresh(y)
    }),
    entry("bitwise_and(self, other)", |call| junction(call, true)),
    entry("logical_or(self, other)", |call| {
        let (a, b) = (truth(call, "self")?, truth(call, "other")?);
        let y = joined(call, a, b, false)?;
        call.fresh(y)
    }),
    entry("bitwise_or(self, other)", |call| junction(call, false)),
    entry("tril(self, diagonal=0)", |call| triangle(call, Compare::Le)),
    entry("triu(self, diagonal=0)", |call| triangle(call, Compare::Ge)),
];

fn compare(call: &mut Call<'_, '_>, compare: Compare) -> Outcome {
    let (a, b) = (call.operand("self")?, call.operand("other")?);
    let known = fold(call, a, b, |x, y| {
        let order = match (x.to_i64(), y.to_i64()) {
            (Some(x), Some(y)) => Some(x.cmp(&y)),
            _ => x.to_f64().partial_cmp(&y.to_f64()),
        };
        Ok(Scalar::Bool(match compare {
            Compare::Eq => order.is_some_and(|o| o.is_eq()),
            Compare::Ne => order.is_none_or(|o| o.is_ne()),
            Compare::Lt => order.is_some_and(|o| o.is_lt()),
            Compare::Le => order.is_some_and(|o| o.is_le()),
            Compare::Gt => order.is_some_and(|o| o.is_gt()),
            Compare::Ge => order.is_some_and(|o| o.is_ge()),
        }))
    });
    if let Some(known) = known {
        return known;
    }
    let dtype = result_type(call, &[a, b]);
    let (a, b) = (materialise(call, a, dtype)?, materialise(call, b, dtype)?);
    let y = call.apply(Op::Compare(compare), &[a, b])?;
    call.fresh(y)
}

/// A condition as bool; numbers hold where they are not zero.
fn truth(call: &mut Call<'_, '_>, name: &str) -> Result<ValueId, Problem> {
    let x = call.tensor(name)?;
    truth_of(call, x)
}

/// Where a tensor is not zero.
pub(super) fn truth_of(call: &mut Call<'_, '_>, x: ValueId) -> Result<ValueId, Problem> {
    let dtype = call.dtype_of(x);
    if dtype == DType::Bool {
        return Ok(x);
    }
    let zero = call.full(Shape::scalar(), dtype, 0.0)?;
    call.apply(Op::Compare(Compare::Ne), &[x, zero])
}

fn choose(call: &mut Call<'_, '_>, condition: ValueId, a: Operand, b: Operand) -> Outcome {
    let dtype = result_type(call, &[a, b]);
    let (a, b) = (materialise(call, a, dtype)?, materialise(call, b, dtype)?);
    let y = call.apply(Op::Where, &[condition, a, b])?;
    call.fresh(y)
}

fn not(call: &mut Call<'_, '_>) -> Outcome {
    let x = call.tensor("self")?;
    if call.dtype_of(x) != DType::Bool {
        return Err(Problem::unsupported("negating the bits of what is not bool"));
    }
    let y = inverted(call, x)?;
    call.fresh(y)
}

fn inverted(call: &mut Call<'_, '_>, x: ValueId) -> Result<ValueId, Problem> {
    let (no, yes) =
        (call.full(Shape::scalar(), DType::Bool, 0.0)?, call.full(Shape::scalar(), DType::Bool, 1.0)?);
    call.apply(Op::Where, &[x, no, yes])
}

pub(super) fn junction(call: &mut Call<'_, '_>, and: bool) -> Outcome {
    let (a, b) = (call.tensor("self")?, call.tensor("other")?);
    if call.dtype_of(a) != DType::Bool || call.dtype_of(b) != DType::Bool {
        return Err(Problem::unsupported("joining the bits of what is not bool"));
    }
    let y = joined(call, a, b, and)?;
    call.fresh(y)
}

fn joined(call: &mut Call<'_, '_>, a: ValueId, b: ValueId, and: bool) -> Result<ValueId, Problem> {
    let otherwise = call.full(Shape::scalar(), DType::Bool, if and { 0.0 } else { 1.0 })?;
    let operands = if and { [a, b, otherwise] } else { [a, otherwise, b] };
    call.apply(Op::Where, &operands)
}

/// Whether column − row compares so with `diagonal`, for each element of a matrix.
pub(super) fn band(
    call: &mut Call<'_, '_>,
    [rows, columns]: [usize; 2],
    compare: Compare,
    diagonal: i64,
) -> Result<ValueId, Problem> {
    let arange = |start, len| Op::Arange { start, step: 1.0, len, dtype: DType::I64 };
    let row = call.apply(arange(diagonal as f64, rows), &[])?;
    let row = call.apply(Op::Reshape([rows, 1].into()), &[row])?;
    let column = call.apply(arange(0.0, columns), &[])?;
    let column = call.apply(Op::Reshape([1, columns].into()), &[column])?;
    call.apply(Op::Compare(compare), &[column, row])
}

fn triangle(call: &mut Call<'_, '_>, compare: Compare) -> Outcome {
    let x = call.tensor("self")?;
    let (shape, dtype) = (call.shape(x), call.dtype_of(x));
    let Some(rank) = shape.rank().checked_sub(2) else {
        return Err(Problem::argument(format!("shape {shape} is no matrix")));
    };
    let diagonal = call.int("diagonal")?;
    let mask = band(call, [shape[rank], shape[rank + 1]], compare, diagonal)?;
    let zero = call.full(Shape::scalar(), dtype, 0.0)?;
    let y = call.apply(Op::Where, &[mask, x, zero])?;
    call.fresh(y)
}
