//! Picking by indices: whole rows along one dimension, or element by element.

use super::{super::folding::Content, Call, Entry, Outcome, Value, entry, view::cut};
use crate::{
    artifact::Problem,
    graph::{Binary, Compare, Op, ValueId},
    tensor::{DType, Shape},
};

pub(super) const ENTRIES: &[Entry] = &[
    entry("index(self, indices)", index),
    entry("_unsafe_index(self, indices)", index),
    entry("index_select(self, dim, index)", |call| {
        let x = call.tensor("self")?;
        let shape = call.shape(x);
        let (dim, indices) = (call.dim("dim", &shape)?, call.tensor("index")?);
        let y = pick(call, x, dim, indices)?;
        call.fresh(y)
    }),
    entry("embedding(weight, indices, padding_idx=-1, scale_grad_by_freq=False, sparse=False)", |call| {
        if call.flag("scale_grad_by_freq")? {
            return Err(Problem::unsupported("an embedding that scales its gradient"));
        }
        let (mut weight, indices) = (call.tensor("weight")?, call.tensor("indices")?);
        let (padding, shape) = (call.int("padding_idx")?, call.shape(weight));
        if padding >= 0 && shape.rank() == 2 {
            // The padding's row is read and not learned.
            let rows =
                call.apply(Op::Arange { start: 0.0, step: 1.0, len: shape[0], dtype: DType::I64 }, &[])?;
            let rows = call.reshape(rows, [shape[0], 1].into())?;
            let row = call.full(Shape::scalar(), DType::I64, padding as f64)?;
            let padded = call.apply(Op::Compare(Compare::Eq), &[rows, row])?;
            let still = call.apply(Op::Detach, &[weight])?;
            weight = call.apply(Op::Where, &[padded, still, weight])?;
        }
        let y = pick(call, weight, 0, indices)?;
        call.fresh(y)
    }),
    entry("gather(self, dim, index, *, sparse_grad=False)", |call| gather(call, "index")),
    entry("take_along_dim(self, indices, dim)", |call| gather(call, "indices")),
    entry("flip(self, dims)", |call| {
        let mut x = call.tensor("self")?;
        let shape = call.shape(x);
        let given = call.ints("dims")?;
        let dims = if given.is_empty() { Vec::new() } else { call.dims("dims", &shape)? };
        for dim in dims {
            let backwards =
                Op::Arange { start: shape[dim] as f64 - 1.0, step: -1.0, len: shape[dim], dtype: DType::I64 };
            let indices = call.apply(backwards, &[])?;
            x = call.apply(Op::Pick { dim }, &[x, indices])?;
        }
        call.fresh(x)
    }),
];

/// `x[:, …, i, j, …]`: one or several tensors of integers side by side, whole dimensions elsewhere.
fn index(call: &mut Call<'_, '_>) -> Outcome {
    let x = call.tensor("self")?;
    let (Value::List(items) | Value::Tuple(items)) = call.get("indices") else {
        return Err(Problem::argument("it takes a list of indices"));
    };
    let given = call.lowering.items(items).to_vec();
    let found: Vec<usize> = (0..given.len()).filter(|&dim| given[dim] != Value::None).collect();
    let [first, .., last] = found[..] else {
        let Some(&dim) = found.first() else { return Err(Problem::argument("it takes an index")) };
        let indices = call.lowering.materialise(&given[dim])?;
        let y = pick(call, x, dim, indices)?;
        return call.fresh(y);
    };
    if last - first + 1 != found.len() {
        return Err(Problem::unsupported("indexing by several tensors with whole dimensions between"));
    }
    let shape = call.shape(x);
    if last >= shape.rank() {
        return Err(Problem::argument(format!("shape {shape} has no dimension {last}")));
    }
    let mut common = Shape::scalar();
    let mut indices = Vec::new();
    for dim in found {
        let index = call.lowering.materialise(&given[dim])?;
        common = common.broadcast(&call.shape(index))?;
        let wrapped = within(call, index, shape[dim])?;
        indices.push((wrapped, shape[dim]));
    }
    let place = linear(call, &indices)?;
    let place = call.expand(place, &common)?;
    let merged = super::view::volume(&shape[first..=last])?;
    let flat = shape[..first].iter().chain([&merged]).chain(&shape[last + 1..]).copied().collect();
    let flat = call.reshape(x, flat)?;
    let y = pick(call, flat, first, place)?;
    call.fresh(y)
}

/// Element by element: along `dim` by the index, elsewhere at the index's own place.
fn gather(call: &mut Call<'_, '_>, name: &str) -> Outcome {
    let (x, index) = (call.tensor("self")?, call.tensor(name)?);
    let (shape, wanted) = (call.shape(x), call.shape(index));
    let dim = call.dim("dim", &shape)?;
    let fits = wanted.rank() == shape.rank()
        && wanted.iter().zip(shape.iter()).enumerate().all(|(i, (n, size))| i == dim || n <= size);
    if !fits || shape.rank() == 0 {
        return Err(Problem::argument(format!("an index of shape {wanted} does not fit shape {shape}")));
    }
    let mut indices = Vec::new();
    for (i, (&len, &size)) in wanted.iter().zip(shape.iter()).enumerate() {
        let place = if i == dim {
            within(call, index, size)?
        } else {
            let own = call.apply(Op::Arange { start: 0.0, step: 1.0, len, dtype: DType::I64 }, &[])?;
            let along = (0..wanted.rank()).map(|d| if d == i { len } else { 1 }).collect();
            call.reshape(own, along)?
        };
        indices.push((place, size));
    }
    let place = linear(call, &indices)?;
    let flat = call.reshape(x, [shape.elements()].into())?;
    let y = pick(call, flat, 0, place)?;
    call.fresh(y)
}

/// So far out of range that no sum of places comes back.
const NOWHERE: f64 = (1u64 << 61) as f64;

/// Indices from the front; those out of range point nowhere.
fn within(call: &mut Call<'_, '_>, index: ValueId, size: usize) -> Result<ValueId, Problem> {
    if !matches!(call.dtype_of(index), DType::I64 | DType::I32) {
        return Err(Problem::unsupported("indexing by what are no integers"));
    }
    if let Some(Content { tensor, .. }) = call.lowering.content(index)? {
        in_range(&tensor.to_f64(), size)?;
    }
    let index = call.cast(index, DType::I64)?;
    let number = |call: &mut Call<'_, '_>, value| call.full(Shape::scalar(), DType::I64, value);
    let (zero, whole, nowhere) = (number(call, 0.0)?, number(call, size as f64)?, number(call, NOWHERE)?);
    let negative = call.apply(Op::Compare(Compare::Lt), &[index, zero])?;
    let wrapped = call.apply(Op::Binary(Binary::Add), &[index, whole])?;
    let place = call.apply(Op::Where, &[negative, wrapped, index])?;
    let low = call.apply(Op::Compare(Compare::Ge), &[place, zero])?;
    let high = call.apply(Op::Compare(Compare::Lt), &[place, whole])?;
    let place = call.apply(Op::Where, &[low, place, nowhere])?;
    call.apply(Op::Where, &[high, place, nowhere])
}

/// Places in several dimensions as one in all of them together.
fn linear(call: &mut Call<'_, '_>, indices: &[(ValueId, usize)]) -> Result<ValueId, Problem> {
    let zero = call.full(Shape::scalar(), DType::I64, 0.0)?;
    let nowhere = call.full(Shape::scalar(), DType::I64, NOWHERE)?;
    let (mut sum, mut lost) = (zero, None);
    for &(place, size) in indices {
        let size = call.full(Shape::scalar(), DType::I64, size as f64)?;
        let scaled = call.apply(Op::Binary(Binary::Mul), &[sum, size])?;
        sum = call.apply(Op::Binary(Binary::Add), &[scaled, place])?;
        let out = call.apply(Op::Compare(Compare::Eq), &[place, nowhere])?;
        let out = call.cast(out, DType::I64)?;
        lost = Some(match lost {
            Some(known) => call.apply(Op::Binary(Binary::Maximum), &[known, out])?,
            None => out,
        });
    }
    let Some(lost) = lost else { return Ok(sum) };
    let lost = call.apply(Op::Compare(Compare::Ne), &[lost, zero])?;
    call.apply(Op::Where, &[lost, nowhere, sum])
}

fn in_range(indices: &[f64], size: usize) -> Result<Vec<usize>, Problem> {
    let mut places = Vec::with_capacity(indices.len());
    for &value in indices {
        let place = if value < 0.0 { value + size as f64 } else { value };
        if !(0.0..size as f64).contains(&place) {
            return Err(Problem::argument(format!("index {value} is out of range for size {size}")));
        }
        places.push(place as usize);
    }
    Ok(places)
}

/// x at the indices along one dimension, whose place the indices' dimensions take.
pub(super) fn pick(
    call: &mut Call<'_, '_>,
    x: ValueId,
    dim: usize,
    indices: ValueId,
) -> Result<ValueId, Problem> {
    let shape = call.shape(x);
    let Some(&size) = shape.get(dim) else {
        return Err(Problem::argument(format!("shape {shape} has no dimension {dim}")));
    };
    if !matches!(call.dtype_of(indices), DType::I64 | DType::I32) {
        return Err(Problem::unsupported("indexing by what are no integers"));
    }
    let (index_shape, mut run) = (call.shape(indices), None);
    if let Some(Content { tensor, fixed }) = call.lowering.content(indices)? {
        let places = in_range(&tensor.to_f64(), size)?;
        let consecutive = fixed && places.windows(2).all(|pair| pair[1] == pair[0] + 1);
        run = places.first().copied().filter(|_| consecutive);
    }
    let picked = match run {
        Some(start) => cut(call, x, dim, start, index_shape.elements())?,
        None => {
            let flat = call.cast(indices, DType::I64)?;
            let flat = call.reshape(flat, [index_shape.elements()].into())?;
            call.apply(Op::Pick { dim }, &[x, flat])?
        }
    };
    let sizes: Shape =
        shape[..dim].iter().chain(index_shape.iter()).chain(&shape[dim + 1..]).copied().collect();
    call.reshape(picked, sizes)
}
