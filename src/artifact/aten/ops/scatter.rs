//! A tensor with one part of it replaced: what writes through views become when a program is decomposed.

use super::{Call, Entry, entry, view, window};
use crate::{artifact::Problem, graph::ValueId};

pub(super) const ENTRIES: &[Entry] = &[
    entry("slice_scatter(self, src, dim=0, start=None, end=None, step=1)", |call| {
        let x = call.tensor("self")?;
        let shape = call.shape(x);
        let range = view::range(call, &shape)?;
        let source = part(call, x, range)?;
        let y = call.lowering.put_slice(x, range, source)?;
        call.fresh(y)
    }),
    entry("select_scatter(self, src, dim, index)", |call| {
        let x = call.tensor("self")?;
        let shape = call.shape(x);
        let (dim, index) = (call.dim("dim", &shape)?, call.int("index")?);
        let size = shape.get(dim).copied().unwrap_or(0);
        let Some(at) = view::wrap(index, size).filter(|&at| at < size) else {
            return Err(Problem::argument(format!("index {index} is out of range for size {size}")));
        };
        let source = part(call, x, [dim, at, 1, 1])?;
        let y = call.lowering.put_slice(x, [dim, at, 1, 1], source)?;
        call.fresh(y)
    }),
    entry("diagonal_scatter(self, src, offset=0, dim1=0, dim2=1)", |call| {
        let x = call.tensor("self")?;
        let old = window::diagonal_of(call, x)?;
        let (shape, dtype) = (call.shape(old), call.dtype_of(x));
        let source = call.tensor("src")?;
        let source = call.cast(source, dtype)?;
        let source = call.reshape(source, shape)?;
        let y = call.lowering.replace(x, old, source)?;
        call.fresh(y)
    }),
];

/// `src` in the shape and type that the part of `x` has.
fn part(call: &mut Call<'_, '_>, x: ValueId, [dim, _, len, _]: [usize; 4]) -> Result<ValueId, Problem> {
    let mut shape = call.shape(x).to_vec();
    shape[dim] = len;
    let dtype = call.dtype_of(x);
    let source = call.tensor("src")?;
    let source = call.cast(source, dtype)?;
    call.reshape(source, shape.into())
}
