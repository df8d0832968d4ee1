//! Picking by indices whose content is known: computed from constants, and from buffers as the artifact holds
//! them.

use super::{super::folding::Content, Call, Entry, Outcome, Value, combine::join, entry, view::cut};
use crate::{
    artifact::Problem,
    graph::{Binary, Compare, Op, ValueId},
    tensor::{DType, Shape},
};

pub(super) const ENTRIES: &[Entry] = &[
    entry("index(self, indices)", index),
    entry("index_select(self, dim, index)", |call| {
        let x = call.tensor("self")?;
        let shape = call.shape(x);
        let (dim, indices) = (call.dim("dim", &shape)?, call.tensor("index")?);
        let y = pick(call, x, dim, indices)?;
        call.fresh(y)
    }),
    entry("embedding(weight, indices, padding_idx=-1, scale_grad_by_freq=False, sparse=False)", |call| {
        if call.int("padding_idx")? >= 0 || call.flag("scale_grad_by_freq")? {
            return Err(Problem::unsupported("an embedding that changes its gradient"));
        }
        let (weight, indices) = (call.tensor("weight")?, call.tensor("indices")?);
        let y = pick(call, weight, 0, indices)?;
        call.fresh(y)
    }),
];

/// The most indices of constants that are cut one by one.
const MAX_CUTS: usize = 1024;

/// `x[:, …, indices]`: one tensor of integers, whole dimensions elsewhere.
fn index(call: &mut Call<'_, '_>) -> Outcome {
    let x = call.tensor("self")?;
    let (Value::List(items) | Value::Tuple(items)) = call.get("indices") else {
        return Err(Problem::argument("it takes a list of indices"));
    };
    let given = call.lowering.items(items).to_vec();
    let mut found = given.iter().enumerate().filter(|(_, item)| **item != Value::None);
    let (Some((dim, indices)), None) = (found.next(), found.next()) else {
        return Err(Problem::unsupported("indexing by several tensors"));
    };
    let indices = call.lowering.materialise(indices)?;
    let y = pick(call, x, dim, indices)?;
    call.fresh(y)
}

fn pick(call: &mut Call<'_, '_>, x: ValueId, dim: usize, indices: ValueId) -> Result<ValueId, Problem> {
    let shape = call.shape(x);
    let Some(&size) = shape.get(dim) else {
        return Err(Problem::argument(format!("shape {shape} has no dimension {dim}")));
    };
    if !matches!(call.dtype_of(indices), DType::I64 | DType::I32) {
        return Err(Problem::unsupported("indexing by what are no integers"));
    }
    let Some(Content { tensor, fixed }) = call.lowering.content(indices)? else {
        return Err(Problem::unsupported("indexing by values that depend on the input or a parameter"));
    };
    let mut places = Vec::new();
    for value in tensor.to_f64() {
        let place = if value < 0.0 { value + size as f64 } else { value };
        if !(0.0..size as f64).contains(&place) {
            return Err(Problem::argument(format!("index {value} is out of range for size {size}")));
        }
        places.push(place as usize);
    }
    let index_shape = call.shape(indices);
    let picked = if fixed && (1..=MAX_CUTS).contains(&places.len()) {
        let parts = places.iter().map(|&place| cut(call, x, dim, place, 1)).collect::<Result<Vec<_>, _>>()?;
        join(call, &parts, dim)?
    } else {
        select(call, x, dim, indices, places.len())?
    };
    let sizes: Shape =
        shape[..dim].iter().chain(index_shape.iter()).chain(&shape[dim + 1..]).copied().collect();
    call.reshape(picked, sizes)
}

/// A matrix product with a row of one 1 for each index: a buffer's content may be another when this runs.
fn select(
    call: &mut Call<'_, '_>,
    x: ValueId,
    dim: usize,
    indices: ValueId,
    count: usize,
) -> Result<ValueId, Problem> {
    let (shape, dtype) = (call.shape(x), call.dtype_of(x));
    let size = shape[dim];
    let indices = call.cast(indices, DType::I64)?;
    let column = call.reshape(indices, [count, 1].into())?;
    let zero = call.full(Shape::scalar(), DType::I64, 0.0)?;
    let whole = call.full(Shape::scalar(), DType::I64, size as f64)?;
    let negative = call.apply(Op::Compare(Compare::Lt), &[column, zero])?;
    let wrapped = call.apply(Op::Binary(Binary::Add), &[column, whole])?;
    let column = call.apply(Op::Where, &[negative, wrapped, column])?;
    let every = call.apply(Op::Arange { start: 0.0, step: 1.0, len: size, dtype: DType::I64 }, &[])?;
    let every = call.reshape(every, [1, size].into())?;
    let chosen = call.apply(Op::Compare(Compare::Eq), &[column, every])?;
    let chosen = call.cast(chosen, dtype)?;
    let front = std::iter::once(dim).chain((0..shape.rank()).filter(|&d| d != dim)).collect();
    let moved = call.permute(x, front)?;
    let rest: Vec<usize> = call.shape(moved)[1..].to_vec();
    let flat = call.reshape(moved, [size, super::view::volume(&rest)?].into())?;
    let rows = call.apply(Op::MatMul { transpose_a: false, transpose_b: false }, &[chosen, flat])?;
    let rows = call.reshape(rows, std::iter::once(count).chain(rest).collect())?;
    let back = (0..shape.rank()).map(|d| if d == dim { 0 } else { d + usize::from(d < dim) }).collect();
    call.permute(rows, back)
}
