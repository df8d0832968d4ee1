//! Windows, diagonals, grids and other rearrangements that are no plain views here.

use super::{Call, Entry, Outcome, Value, entry, view::swap};
use crate::{
    artifact::Problem,
    graph::{Op, ValueId},
    tensor::{HostTensor, Shape},
};

pub(super) const ENTRIES: &[Entry] = &[
    entry("unfold(self, dimension, size, step)", |call| {
        let x = call.tensor("self")?;
        let shape = call.shape(x);
        let (dim, size, step) = (call.dim("dimension", &shape)?, call.size("size")?, call.size("step")?);
        let count = match shape.get(dim) {
            Some(&n) if size >= 1 && size <= n && step >= 1 => (n - size) / step + 1,
            _ => {
                return Err(Problem::argument(format!(
                    "windows of {size} by {step} do not fit shape {shape}"
                )));
            }
        };
        let y = windows(call, x, dim, [count, size], [step, 1])?;
        // [.., count, size, ..] with the window's elements behind all.
        let rank = call.shape(y).rank();
        let order = (0..rank).filter(|&d| d != dim + 1).chain([dim + 1]).collect();
        let y = call.permute(y, order)?;
        call.view("self", y)
    }),
    entry("im2col(self, kernel_size, dilation, padding, stride)", |call| {
        let x = call.tensor("self")?;
        let [kernel, dilation, padding, stride] =
            ["kernel_size", "dilation", "padding", "stride"].map(|name| call.repeated::<2>(name));
        let (kernel, dilation, padding, stride) = (kernel?, dilation?, padding?, stride?);
        let shape = call.shape(x);
        let &[n, c, ..] = shape.dims() else {
            return Err(Problem::argument(format!("shape {shape} is not [N, C, H, W]")));
        };
        if shape.rank() != 4 {
            return Err(Problem::argument(format!("shape {shape} is not [N, C, H, W]")));
        }
        let mut y = x;
        let mut counts = [0; 2];
        // From the last dimension on, so that those in front keep their numbers.
        for i in [1, 0] {
            let (dim, margin) = (2 + i, padding[i]);
            let size = shape[dim];
            if margin > 0 {
                let padded = margin.checked_mul(2).and_then(|both| both.checked_add(size));
                let Some(padded) = padded else { return Err(Problem::argument("the padding overflows")) };
                y = call.apply(Op::Unslice { dim, size: padded, start: margin, step: 1 }, &[y])?;
            }
            let total = call.shape(y)[dim];
            let reach = kernel[i].checked_sub(1).and_then(|k| k.checked_mul(dilation[i]));
            counts[i] = match reach {
                Some(reach) if reach < total && stride[i] >= 1 => (total - reach - 1) / stride[i] + 1,
                _ => return Err(Problem::argument(format!("no window fits shape {shape}"))),
            };
            y = windows(call, y, dim, [kernel[i], counts[i]], [dilation[i], stride[i]])?;
        }
        // [N, C, kh, h, kw, w]
        let y = call.permute(y, vec![0, 1, 2, 4, 3, 5])?;
        let rows = super::view::volume(&[c, kernel[0], kernel[1]])?;
        let y = call.reshape(y, [n, rows, super::view::volume(&counts)?].into())?;
        call.fresh(y)
    }),
    entry("diagonal(self, offset=0, dim1=0, dim2=1)", |call| {
        let x = call.tensor("self")?;
        let y = diagonal_of(call, x)?;
        call.view("self", y)
    }),
    entry("meshgrid.indexing(tensors, *, indexing)", grid),
    entry("meshgrid(tensors)", grid),
    entry("pixel_unshuffle(self, downscale_factor)", |call| {
        let (x, factor) = (call.tensor("self")?, call.size("downscale_factor")?);
        let shape = call.shape(x);
        match *shape.dims() {
            [n, c, h, w] if factor >= 1 && h.is_multiple_of(factor) && w.is_multiple_of(factor) => {
                let (height, width) = (h / factor, w / factor);
                let split = call.reshape(x, [n, c, height, factor, width, factor].into())?;
                let moved = call.permute(split, vec![0, 1, 3, 5, 2, 4])?;
                let channels = super::view::volume(&[c, factor, factor])?;
                let y = call.reshape(moved, [n, channels, height, width].into())?;
                call.fresh(y)
            }
            _ => Err(Problem::argument(format!("{factor} does not divide height and width of {shape}"))),
        }
    }),
    entry("tile(self, dims)", |call| {
        let (x, given) = (call.tensor("self")?, call.sizes("dims")?);
        let shape = call.shape(x);
        let rank = shape.rank().max(given.len());
        let ones = |n: usize| vec![1; rank - n];
        let times: Vec<usize> = ones(given.len()).into_iter().chain(given).collect();
        let sizes: Vec<usize> = ones(shape.rank()).into_iter().chain(shape.iter().copied()).collect();
        let wide: Shape = times.iter().zip(&sizes).flat_map(|(&t, &n)| [t, n]).collect();
        wide.checked_elements()?;
        let paired: Shape = sizes.iter().flat_map(|&n| [1, n]).collect();
        let merged = times.iter().zip(&sizes).map(|(&t, &n)| t.saturating_mul(n)).collect();
        let y = call.reshape(x, paired)?;
        let y = call.expand(y, &wide)?;
        let y = call.reshape(y, merged)?;
        call.fresh(y)
    }),
    entry("outer(self, vec2)", |call| {
        let (a, b) = (call.tensor("self")?, call.tensor("vec2")?);
        let (of_a, of_b) = (call.shape(a), call.shape(b));
        let (&[n], &[m]) = (of_a.dims(), of_b.dims()) else {
            return Err(Problem::argument("it takes two vectors"));
        };
        let (column, row) = (call.reshape(a, [n, 1].into())?, call.reshape(b, [1, m].into())?);
        let y = call.apply(Op::Binary(crate::graph::Binary::Mul), &[column, row])?;
        call.fresh(y)
    }),
];

/// The most places that windows together read.
const MAX_PLACES: usize = 1 << 20;

/// A dimension as two: the element (i, j) is the one at i·`steps[0]` + j·`steps[1]`.
fn windows(
    call: &mut Call<'_, '_>,
    x: ValueId,
    dim: usize,
    counts: [usize; 2],
    steps: [usize; 2],
) -> Result<ValueId, Problem> {
    let shape = call.shape(x);
    let total = super::view::volume(&counts)?;
    if total > MAX_PLACES {
        return Err(Problem::unsupported(format!("windows that read {total} places")));
    }
    call.lowering.charge((total / 16) as u64)?;
    let places: Vec<i64> = (0..counts[0])
        .flat_map(|i| {
            (0..counts[1]).map(move |j| i.saturating_mul(steps[0]).saturating_add(j * steps[1]) as i64)
        })
        .collect();
    let tensor = HostTensor::from_values([total].into(), &places)
        .map_err(|error| Problem::argument(error.to_string()))?;
    let indices = call.lowering.builder.constant(tensor)?;
    let y = call.apply(Op::Pick { dim }, &[x, indices])?;
    let split = shape[..dim].iter().chain(&counts).chain(&shape[dim + 1..]).copied().collect();
    call.reshape(y, split)
}

/// The diagonal that the call's offset and dimensions name.
pub(super) fn diagonal_of(call: &mut Call<'_, '_>, x: ValueId) -> Result<ValueId, Problem> {
    let shape = call.shape(x);
    let (offset, a, b) = (call.int("offset")?, call.dim("dim1", &shape)?, call.dim("dim2", &shape)?);
    diagonal(call, x, offset, a, b)
}

/// Every (columns + 1)-th element of a matrix laid flat.
fn diagonal(
    call: &mut Call<'_, '_>,
    x: ValueId,
    offset: i64,
    a: usize,
    b: usize,
) -> Result<ValueId, Problem> {
    let shape = call.shape(x);
    if a == b || shape.rank() < 2 {
        return Err(Problem::argument(format!("shape {shape} has no diagonal of {a} and {b}")));
    }
    let order = (0..shape.rank()).filter(|&d| d != a && d != b).chain([a, b]).collect();
    let moved = call.permute(x, order)?;
    let (rows, columns) = (shape[a], shape[b]);
    let skip = usize::try_from(offset.unsigned_abs()).unwrap_or(usize::MAX);
    let (start, len) = if offset >= 0 {
        (skip, columns.saturating_sub(skip).min(rows))
    } else {
        (skip.saturating_mul(columns), rows.saturating_sub(skip).min(columns))
    };
    let outer = call.shape(moved)[..shape.rank() - 2].to_vec();
    let flat: Shape = outer.iter().copied().chain([super::view::volume(&[rows, columns])?]).collect();
    let flat = call.reshape(moved, flat)?;
    let dim = outer.len();
    let start = if len == 0 { 0 } else { start };
    call.apply(Op::Slice { dim, start, len, step: columns.saturating_add(1) }, &[flat])
}

fn grid(call: &mut Call<'_, '_>) -> Outcome {
    let tensors = call.tensors("tensors")?;
    let crossed = match call.get("indexing") {
        Value::Str(text) if &*text == "xy" => true,
        Value::None => false,
        Value::Str(text) if &*text == "ij" => false,
        _ => return Err(Problem::argument("a grid is indexed by 'ij' or 'xy'")),
    };
    let sizes: Shape = tensors.iter().map(|&x| call.shape(x).elements()).collect();
    sizes.checked_elements()?;
    let mut items = Vec::new();
    for (i, &x) in tensors.iter().enumerate() {
        let along = (0..sizes.rank()).map(|d| if d == i { sizes[d] } else { 1 }).collect();
        let y = call.reshape(x, along)?;
        let mut y = call.expand(y, &sizes)?;
        if crossed && sizes.rank() >= 2 {
            y = swap(call, y, 0, 1)?;
        }
        items.push(call.maybe_view_of_item("tensors", i, y));
    }
    Ok(call.lowering.list(items))
}
