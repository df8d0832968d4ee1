//! The same elements under another shape, order or range.

use super::{Call, Entry, Outcome, Value, entry};
use crate::{
    artifact::Problem,
    graph::{Op, ValueId},
    tensor::Shape,
};

pub(super) const ENTRIES: &[Entry] = &[
    entry("view(self, size)", |call| {
        let y = reshape(call, "size")?;
        call.view("self", y)
    }),
    entry("_unsafe_view(self, size)", |call| {
        let y = reshape(call, "size")?;
        call.view("self", y)
    }),
    entry("reshape(self, shape)", |call| {
        let y = reshape(call, "shape")?;
        call.maybe_view("self", y)
    }),
    entry("view_as(self, other)", |call| {
        let y = like(call)?;
        call.view("self", y)
    }),
    entry("reshape_as(self, other)", |call| {
        let y = like(call)?;
        call.maybe_view("self", y)
    }),
    entry("flatten(self, start_dim=0, end_dim=-1)", flatten),
    entry("unflatten(self, dim, sizes)", |call| {
        let x = call.tensor("self")?;
        let shape = call.shape(x);
        let dim = call.dim("dim", &shape)?;
        let given = call.ints("sizes")?;
        let part = resolve(&given, shape.get(dim).copied().unwrap_or(1))?;
        let sizes = shape.iter().take(dim).chain(part.iter()).chain(shape.iter().skip(dim + 1));
        let sizes = sizes.copied().collect();
        let y = call.reshape(x, sizes)?;
        call.view("self", y)
    }),
    entry("unsqueeze(self, dim)", |call| {
        let x = call.tensor("self")?;
        let shape = call.shape(x);
        // One more place than the shape has: behind the last dimension.
        let longer: Shape = shape.iter().copied().chain([1]).collect();
        let dim = call.dim("dim", &longer)?;
        let y = unsqueeze(call, x, dim)?;
        call.view("self", y)
    }),
    entry("squeeze(self, dim=None)", |call| {
        let x = call.tensor("self")?;
        let shape = call.shape(x);
        let dims = match call.get("dim") {
            Value::None => (0..shape.rank()).collect(),
            // Unlike a reduction, it takes an empty list for no dimension.
            _ if call.ints("dim")?.is_empty() => Vec::new(),
            _ => call.dims("dim", &shape)?,
        };
        let kept = shape.iter().enumerate().filter(|(i, n)| **n != 1 || !dims.contains(i)).map(|(_, &n)| n);
        let kept = kept.collect();
        let y = call.reshape(x, kept)?;
        call.view("self", y)
    }),
    entry("permute(self, dims)", |call| {
        let x = call.tensor("self")?;
        let shape = call.shape(x);
        let order = call.ints("dims")?;
        let order = order.iter().map(|&d| shape.resolve_dim(d)).collect::<Result<_, _>>()?;
        let y = call.permute(x, order)?;
        call.view("self", y)
    }),
    entry("transpose(self, dim0, dim1)", |call| swapped(call, "dim0", "dim1")),
    entry("swapaxes(self, axis0, axis1)", |call| swapped(call, "axis0", "axis1")),
    entry("swapdims(self, dim0, dim1)", |call| swapped(call, "dim0", "dim1")),
    entry("movedim(self, source, destination)", |call| {
        let x = call.tensor("self")?;
        let shape = call.shape(x);
        let resolve = |name: &str| -> Result<Vec<usize>, Problem> {
            Ok(call.ints(name)?.iter().map(|&d| shape.resolve_dim(d)).collect::<Result<_, _>>()?)
        };
        let (from, to) = (resolve("source")?, resolve("destination")?);
        if from.len() != to.len() {
            return Err(Problem::argument(format!("{from:?} cannot move to {to:?}")));
        }
        let mut order = vec![None; shape.rank()];
        for (&from, &to) in from.iter().zip(&to) {
            if let Some(slot) = order.get_mut(to) {
                *slot = Some(from);
            }
        }
        let mut rest = (0..shape.rank()).filter(|d| !from.contains(d));
        let order = order.into_iter().map(|slot| slot.or_else(|| rest.next())).collect::<Option<_>>();
        let Some(order) = order else { return Err(Problem::argument("a dimension is moved twice")) };
        let y = call.permute(x, order)?;
        call.view("self", y)
    }),
    entry("pixel_shuffle(self, upscale_factor)", |call| {
        let (x, factor) = (call.tensor("self")?, call.size("upscale_factor")?);
        let shape = call.shape(x);
        let ([n, c, h, w], Some(area @ 1..)) = (sizes4(&shape)?, factor.checked_mul(factor)) else {
            return Err(Problem::argument(format!("the factor {factor} is out of range")));
        };
        if !c.is_multiple_of(area) {
            return Err(Problem::argument(format!("{area} does not divide {c} channels")));
        }
        let out = c / area;
        let split = call.reshape(x, [n, out, factor, factor, h, w].into())?;
        let moved = call.permute(split, vec![0, 1, 4, 2, 5, 3])?;
        let (Some(height), Some(width)) = (h.checked_mul(factor), w.checked_mul(factor)) else {
            return Err(Problem::argument("the result overflows"));
        };
        let y = call.reshape(moved, [n, out, height, width].into())?;
        call.fresh(y)
    }),
    entry("channel_shuffle(self, groups)", |call| {
        let (x, groups) = (call.tensor("self")?, call.size("groups")?);
        let shape = call.shape(x);
        let [n, c, h, w] = sizes4(&shape)?;
        if groups == 0 || !c.is_multiple_of(groups) {
            return Err(Problem::argument(format!("{groups} groups do not divide {c} channels")));
        }
        let split = call.reshape(x, [n, groups, c / groups, h, w].into())?;
        let moved = call.permute(split, vec![0, 2, 1, 3, 4])?;
        let y = call.reshape(moved, shape)?;
        call.fresh(y)
    }),
    entry("t(self)", |call| reversed(call, 0..=2)),
    entry("numpy_T(self)", |call| reversed(call, 0..=usize::MAX)),
    entry("matrix_H(self)", |call| reversed(call, 2..=2)),
    entry("mT(self)", |call| {
        let x = call.tensor("self")?;
        let Some(last) = call.shape(x).rank().checked_sub(2) else {
            return Err(Problem::argument("it takes a matrix"));
        };
        let y = swap(call, x, last, last + 1)?;
        call.view("self", y)
    }),
    entry("expand(self, size, *, implicit=False)", |call| {
        let x = call.tensor("self")?;
        let (old, given) = (call.shape(x), call.ints("size")?);
        let Some(new) = given.len().checked_sub(old.rank()) else {
            return Err(Problem::argument(format!("shape {old} has more dimensions than {given:?}")));
        };
        let sizes = given.iter().enumerate().map(|(i, &n)| match n {
            -1 => i.checked_sub(new).map(|i| old[i]),
            n => usize::try_from(n).ok(),
        });
        let Some(shape) = sizes.collect::<Option<Vec<_>>>() else {
            return Err(Problem::argument(format!("{given:?} are no sizes for shape {old}")));
        };
        let y = call.expand(x, &shape.into())?;
        call.view("self", y)
    }),
    entry("expand_as(self, other)", |call| {
        let (x, other) = (call.tensor("self")?, call.tensor("other")?);
        let shape = call.shape(other);
        let y = call.expand(x, &shape)?;
        call.view("self", y)
    }),
    entry("slice(self, dim=0, start=None, end=None, step=1)", slice),
    entry("select(self, dim, index)", |call| {
        let x = call.tensor("self")?;
        let shape = call.shape(x);
        let dim = call.dim("dim", &shape)?;
        let size = shape.get(dim).copied().unwrap_or(0);
        let index = call.int("index")?;
        let Some(at) = wrap(index, size).filter(|&at| at < size) else {
            return Err(Problem::argument(format!("index {index} is out of range for size {size}")));
        };
        let y = select(call, x, dim, at)?;
        call.view("self", y)
    }),
    entry("narrow(self, dim, start, length)", |call| {
        let x = call.tensor("self")?;
        let shape = call.shape(x);
        let dim = call.dim("dim", &shape)?;
        let size = shape.get(dim).copied().unwrap_or(0);
        let start = call.int("start")?;
        let Some(start) = wrap(start, size) else {
            return Err(Problem::argument(format!("start {start} is out of range for size {size}")));
        };
        let len = call.size("length")?;
        let y = cut(call, x, dim, start, len)?;
        call.view("self", y)
    }),
    entry("split(self, split_size, dim=0)", split),
    entry("split_with_sizes(self, split_sizes, dim=0)", split),
    entry("chunk(self, chunks, dim=0)", |call| {
        let x = call.tensor("self")?;
        let shape = call.shape(x);
        let dim = call.dim("dim", &shape)?;
        let size = shape.get(dim).copied().unwrap_or(0);
        let chunks = call.size("chunks")?;
        if chunks == 0 {
            return Err(Problem::argument("it cannot cut into 0 chunks"));
        }
        if size == 0 && chunks <= MAX_PIECES {
            return pieces(call, x, dim, &vec![0; chunks]);
        }
        let each = size.div_ceil(chunks).max(1);
        pieces(call, x, dim, &even(size, each)?)
    }),
    entry("unbind(self, dim=0)", |call| {
        let x = call.tensor("self")?;
        let shape = call.shape(x);
        let dim = call.dim("dim", &shape)?;
        let mut items = Vec::new();
        for at in 0..shape.get(dim).copied().unwrap_or(0) {
            let y = select(call, x, dim, at)?;
            items.push(call.view("self", y)?);
        }
        Ok(call.lowering.list(items))
    }),
];

/// Sizes with at most one −1 in them, resolved for a number of elements.
fn resolve(given: &[i64], elements: usize) -> Result<Shape, Problem> {
    let wrong = || Problem::argument(format!("{elements} elements do not fit shape {given:?}"));
    let mut free = None;
    let mut known = 1usize;
    for (i, &n) in given.iter().enumerate() {
        match usize::try_from(n) {
            Ok(n) => known = known.checked_mul(n).ok_or_else(wrong)?,
            Err(_) if n == -1 && free.is_none() => free = Some(i),
            Err(_) => return Err(wrong()),
        }
    }
    let rest = match free {
        Some(_) if known == 0 || !elements.is_multiple_of(known) => return Err(wrong()),
        Some(_) => elements / known,
        None => 1,
    };
    Ok(given.iter().enumerate().map(|(i, &n)| if Some(i) == free { rest } else { n as usize }).collect())
}

/// The product of some sizes of a shape; beside a size of 0 the others can be anything.
pub(super) fn volume(sizes: &[usize]) -> Result<usize, Problem> {
    Ok(Shape::from(sizes).checked_elements()?)
}

fn reshape(call: &mut Call<'_, '_>, name: &str) -> Result<ValueId, Problem> {
    let x = call.tensor("self")?;
    let given = call.ints(name)?;
    let shape = resolve(&given, call.shape(x).elements())?;
    call.reshape(x, shape)
}

fn like(call: &mut Call<'_, '_>) -> Result<ValueId, Problem> {
    let (x, other) = (call.tensor("self")?, call.tensor("other")?);
    let shape = call.shape(other);
    call.reshape(x, shape)
}

fn flatten(call: &mut Call<'_, '_>) -> Outcome {
    let x = call.tensor("self")?;
    let shape = call.shape(x);
    let (start, end) = (call.dim("start_dim", &shape)?, call.dim("end_dim", &shape)?);
    if start > end {
        return Err(Problem::argument(format!("it cannot flatten from dimension {start} back to {end}")));
    }
    let merged = volume(shape.get(start..=end).unwrap_or(&[]))?;
    let sizes = shape.iter().copied().take(start).chain([merged]).chain(shape.iter().copied().skip(end + 1));
    let sizes = sizes.collect();
    let y = call.reshape(x, sizes)?;
    call.maybe_view("self", y)
}

/// x with a dimension of size 1 at `dim`.
pub(super) fn unsqueeze(call: &mut Call<'_, '_>, x: ValueId, dim: usize) -> Result<ValueId, Problem> {
    let mut sizes = call.shape(x).to_vec();
    sizes.insert(dim.min(sizes.len()), 1);
    call.reshape(x, sizes.into())
}

/// x with two dimensions exchanged.
pub(super) fn swap(call: &mut Call<'_, '_>, x: ValueId, a: usize, b: usize) -> Result<ValueId, Problem> {
    let mut order: Vec<usize> = (0..call.shape(x).rank()).collect();
    if order.is_empty() {
        return Ok(x);
    }
    order.swap(a, b);
    call.permute(x, order)
}

fn swapped(call: &mut Call<'_, '_>, first: &str, second: &str) -> Outcome {
    let x = call.tensor("self")?;
    let shape = call.shape(x);
    let (a, b) = (call.dim(first, &shape)?, call.dim(second, &shape)?);
    let y = swap(call, x, a, b)?;
    call.view("self", y)
}

fn sizes4(shape: &Shape) -> Result<[usize; 4], Problem> {
    <[usize; 4]>::try_from(shape.dims())
        .map_err(|_| Problem::argument(format!("shape {shape} is not [N, C, H, W]")))
}

fn reversed(call: &mut Call<'_, '_>, ranks: std::ops::RangeInclusive<usize>) -> Outcome {
    let x = call.tensor("self")?;
    let rank = call.shape(x).rank();
    if !ranks.contains(&rank) {
        return Err(Problem::argument(format!("it does not take {rank} dimensions")));
    }
    let y = call.permute(x, (0..rank).rev().collect())?;
    call.view("self", y)
}

/// An index counted from the front; one past the end is allowed.
pub(super) fn wrap(index: i64, size: usize) -> Option<usize> {
    let size = size as i64;
    let index = if index < 0 { index.checked_add(size)? } else { index };
    (0..=size).contains(&index).then_some(index as usize)
}

/// `len` indices of one dimension from `start`.
pub(super) fn cut(
    call: &mut Call<'_, '_>,
    x: ValueId,
    dim: usize,
    start: usize,
    len: usize,
) -> Result<ValueId, Problem> {
    if start == 0 && call.shape(x).get(dim) == Some(&len) {
        return Ok(x);
    }
    call.apply(Op::Slice { dim, start, len, step: 1 }, &[x])
}

fn select(call: &mut Call<'_, '_>, x: ValueId, dim: usize, at: usize) -> Result<ValueId, Problem> {
    let one = cut(call, x, dim, at, 1)?;
    let shape = call.shape(one);
    let rest = shape.iter().enumerate().filter(|(i, _)| *i != dim).map(|(_, &n)| n).collect();
    call.reshape(one, rest)
}

fn slice(call: &mut Call<'_, '_>) -> Outcome {
    let x = call.tensor("self")?;
    let shape = call.shape(x);
    let [dim, start, len, step] = range(call, &shape)?;
    if step == 1 {
        let y = cut(call, x, dim, start, len)?;
        return call.view("self", y);
    }
    let y = call.apply(Op::Slice { dim, start, len, step }, &[x])?;
    call.view("self", y)
}

/// The arguments `dim`, `start`, `end` and `step` as a dimension, its first index, how many, and the step.
pub(super) fn range(call: &Call<'_, '_>, shape: &Shape) -> Result<[usize; 4], Problem> {
    let dim = call.dim("dim", shape)?;
    let Some(&size) = shape.get(dim) else {
        return Err(Problem::argument("a tensor without dimensions cannot be sliced"));
    };
    let clamp = |given: Option<i64>, otherwise: usize| match given {
        None => otherwise,
        Some(n) if n < 0 => n.saturating_add(size as i64).max(0) as usize,
        Some(n) => (n as usize).min(size),
    };
    let (start, end) = (clamp(call.optional_int("start")?, 0), clamp(call.optional_int("end")?, size));
    let step = call.size("step")?;
    if step == 0 {
        return Err(Problem::argument("a slice needs a step of at least 1"));
    }
    Ok([dim, start, end.saturating_sub(start).div_ceil(step), step])
}

/// How many pieces a tensor may be cut into: a size of 2³⁰ could ask for as many.
const MAX_PIECES: usize = 65_536;

fn even(size: usize, each: usize) -> Result<Vec<usize>, Problem> {
    if each == 0 || size / each > MAX_PIECES {
        return Err(Problem::argument(format!("it cannot cut {size} into pieces of {each}")));
    }
    Ok((0..size.div_ceil(each).max(1)).map(|i| each.min(size - i * each)).collect())
}

fn split(call: &mut Call<'_, '_>) -> Outcome {
    let x = call.tensor("self")?;
    let shape = call.shape(x);
    let dim = call.dim("dim", &shape)?;
    let size = shape.get(dim).copied().unwrap_or(0);
    let name = if call.get("split_size") == Value::None { "split_sizes" } else { "split_size" };
    let sizes = match call.get(name) {
        Value::List(_) | Value::Tuple(_) => call.sizes(name)?,
        _ => even(size, call.size(name)?)?,
    };
    if sizes.iter().try_fold(0usize, |sum, &n| sum.checked_add(n)) != Some(size) {
        return Err(Problem::argument(format!("{sizes:?} do not add up to {size}")));
    }
    pieces(call, x, dim, &sizes)
}

fn pieces(call: &mut Call<'_, '_>, x: ValueId, dim: usize, sizes: &[usize]) -> Outcome {
    let (mut start, mut items) = (0, Vec::with_capacity(sizes.len()));
    for &len in sizes {
        let y = cut(call, x, dim, start, len)?;
        items.push(call.view("self", y)?);
        start += len;
    }
    Ok(call.lowering.list(items))
}
