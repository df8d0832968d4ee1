//! Dropout, active by the mode asked for and not by what was exported.

use super::{Call, Entry, entry};
use crate::{
    artifact::{Mode, Problem},
    graph::{Binary, Compare, Op, ValueId},
    tensor::{DType, Shape},
};

pub(super) const ENTRIES: &[Entry] = &[
    entry("dropout(input, p, train)", |call| {
        let x = call.tensor("input")?;
        let p = call.float("p")?;
        if call.mode() == Mode::Eval || p == 0.0 {
            return Ok(call.get("input"));
        }
        let y = drop(call, x, p)?;
        call.fresh(y)
    }),
    entry("feature_dropout(input, p, train)", |call| {
        let x = call.tensor("input")?;
        let p = call.float("p")?;
        if call.mode() == Mode::Eval || p == 0.0 {
            return Ok(call.get("input"));
        }
        let (shape, dtype) = (call.shape(x), call.dtype_of(x));
        if shape.rank() < 2 {
            return Err(Problem::argument(format!("shape {shape} has no channels to drop")));
        }
        // One draw for each channel of each element of the batch.
        let each: Shape = shape.iter().enumerate().map(|(i, &n)| if i < 2 { n } else { 1 }).collect();
        let ones = call.full(each, dtype, 1.0)?;
        let mask = drop(call, ones, p)?;
        let y = call.apply(Op::Binary(Binary::Mul), &[x, mask])?;
        call.fresh(y)
    }),
    entry("native_dropout(input, p, train)", |call| {
        let x = call.tensor("input")?;
        let (shape, dtype) = (call.shape(x), call.dtype_of(x));
        let p = call.float("p")?;
        if call.mode() == Mode::Eval || p == 0.0 {
            let mask = call.full(shape, DType::Bool, 1.0)?;
            return call.fresh_tuple(&[x, mask]);
        }
        let ones = call.full(shape, dtype, 1.0)?;
        let scaled = drop(call, ones, p)?;
        let zero = call.full(Shape::scalar(), dtype, 0.0)?;
        let mask = call.apply(Op::Compare(Compare::Ne), &[scaled, zero])?;
        let y = call.apply(Op::Binary(Binary::Mul), &[x, scaled])?;
        call.fresh_tuple(&[y, mask])
    }),
];

/// x with elements dropped at random and the others scaled up.
pub(super) fn drop(call: &mut Call<'_, '_>, x: ValueId, p: f64) -> Result<ValueId, Problem> {
    let site = call.lowering.dropout_site();
    call.apply(Op::Dropout { p, site }, &[x])
}
