//! Pooling of one and two dimensions.

use super::{Call, Entry, Outcome, Value, combine::join, entry, view::cut};
use crate::{
    artifact::Problem,
    graph::{Op, Pool2d, ValueId},
};

pub(super) const ENTRIES: &[Entry] = &[
    entry("max_pool1d(self, kernel_size, stride=[], padding=0, dilation=1, ceil_mode=False)", |call| {
        let y = max(call, 1)?[0];
        call.fresh(y)
    }),
    entry("max_pool2d(self, kernel_size, stride=[], padding=0, dilation=1, ceil_mode=False)", |call| {
        let y = max(call, 2)?[0];
        call.fresh(y)
    }),
    entry(
        "max_pool2d_with_indices(self, kernel_size, stride=[], padding=0, dilation=1, ceil_mode=False)",
        |call| {
            let both = max(call, 2)?;
            call.fresh_tuple(&both)
        },
    ),
    entry(
        "avg_pool1d(self, kernel_size, stride=[], padding=0, ceil_mode=False, count_include_pad=True)",
        |call| average(call, 1),
    ),
    entry(
        "avg_pool2d(self, kernel_size, stride=[], padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None)",
        |call| average(call, 2),
    ),
    entry("adaptive_avg_pool1d(self, output_size)", |call| adaptive_average(call, 1)),
    entry("adaptive_avg_pool2d(self, output_size)", |call| adaptive_average(call, 2)),
    entry("_adaptive_avg_pool2d(self, output_size)", |call| adaptive_average(call, 2)),
    entry("adaptive_max_pool1d(self, output_size)", |call| adaptive_max(call, 1)),
    entry("adaptive_max_pool2d(self, output_size)", |call| adaptive_max(call, 2)),
];

/// The input as [N, C, H, W]; a missing batch and a missing height are dimensions of 1.
struct Frame {
    dims: usize,
    batched: bool,
}

impl Frame {
    fn enter(call: &mut Call<'_, '_>, dims: usize) -> Result<(Self, ValueId), Problem> {
        let x = call.tensor("self")?;
        let shape = call.shape(x);
        let batched = shape.rank() == dims + 2;
        if !batched && shape.rank() != dims + 1 {
            return Err(Problem::argument(format!(
                "shape {shape} does not fit pooling of {dims} dimensions"
            )));
        }
        let mut sizes = shape.to_vec();
        if !batched {
            sizes.insert(0, 1);
        }
        if dims == 1 {
            sizes.insert(2, 1);
        }
        Ok((Self { dims, batched }, call.reshape(x, sizes.into())?))
    }

    fn leave(&self, call: &mut Call<'_, '_>, y: ValueId) -> Result<ValueId, Problem> {
        let mut sizes = call.shape(y).to_vec();
        if self.dims == 1 {
            sizes.remove(2);
        }
        if !self.batched {
            sizes.remove(0);
        }
        call.reshape(y, sizes.into())
    }

    fn pair(&self, call: &Call<'_, '_>, name: &str, fill: usize) -> Result<[usize; 2], Problem> {
        if self.dims == 1 { Ok([fill, call.repeated::<1>(name)?[0]]) } else { call.repeated::<2>(name) }
    }

    fn window(&self, call: &Call<'_, '_>, dilated: bool) -> Result<Pool2d, Problem> {
        let kernel = self.pair(call, "kernel_size", 1)?;
        let stride =
            if call.optional_ints("stride")?.is_some() { self.pair(call, "stride", 1)? } else { kernel };
        Ok(Pool2d {
            kernel,
            stride,
            padding: self.pair(call, "padding", 0)?,
            dilation: if dilated { self.pair(call, "dilation", 1)? } else { [1, 1] },
            ceil: call.flag("ceil_mode")?,
        })
    }
}

fn max(call: &mut Call<'_, '_>, dims: usize) -> Result<Vec<ValueId>, Problem> {
    let (frame, x) = Frame::enter(call, dims)?;
    let window = frame.window(call, true)?;
    let both = call.push(Op::MaxPool2d(window), &[x])?;
    both.into_iter().map(|value| frame.leave(call, value)).collect()
}

fn average(call: &mut Call<'_, '_>, dims: usize) -> Outcome {
    let (frame, x) = Frame::enter(call, dims)?;
    let pool = frame.window(call, false)?;
    let count_include_pad = call.flag("count_include_pad")?;
    let divisor =
        if call.get("divisor_override") == Value::None { None } else { Some(call.size("divisor_override")?) };
    let y = call.apply(Op::AvgPool2d { pool, count_include_pad, divisor }, &[x])?;
    let y = frame.leave(call, y)?;
    call.fresh(y)
}

/// The output size, where None keeps the input's.
fn output_size(call: &Call<'_, '_>, frame: &Frame, x: ValueId) -> Result<[usize; 2], Problem> {
    let shape = call.shape(x);
    if let Value::List(items) | Value::Tuple(items) = call.get("output_size") {
        let items = call.lowering.items(items);
        if let (2, [height, width]) = (frame.dims, items) {
            let size = |value: &Value, own: usize| match value {
                Value::None => Some(own),
                other => usize::try_from(other.scalar()?.to_i64()?).ok(),
            };
            let both = size(height, shape[2]).zip(size(width, shape[3]));
            return both
                .map(|(h, w)| [h, w])
                .ok_or_else(|| Problem::argument("argument \"output_size\" is no pair of sizes"));
        }
    }
    frame.pair(call, "output_size", 1)
}

fn adaptive_average(call: &mut Call<'_, '_>, dims: usize) -> Outcome {
    let (frame, x) = Frame::enter(call, dims)?;
    let output_size = output_size(call, &frame, x)?;
    let y = call.apply(Op::AdaptiveAvgPool2d { output_size }, &[x])?;
    let y = frame.leave(call, y)?;
    call.fresh(y)
}

/// The most windows that are pooled one by one.
const MAX_WINDOWS: usize = 1024;

/// A plain max pool where all windows are equal, else one for each window. The second result would be the
/// indices, which are not kept.
fn adaptive_max(call: &mut Call<'_, '_>, dims: usize) -> Outcome {
    let (frame, x) = Frame::enter(call, dims)?;
    let (output, shape) = (output_size(call, &frame, x)?, call.shape(x));
    let input = [shape[2], shape[3]];
    let windows = output[0].saturating_mul(output[1]);
    if windows == 0 || input.contains(&0) {
        return Err(Problem::argument(format!("it cannot pool {input:?} to {output:?}")));
    }
    let even = (0..2).all(|i| input[i].is_multiple_of(output[i]));
    if !even && windows > MAX_WINDOWS {
        return Err(Problem::unsupported(format!("adaptive max pooling of {input:?} to {output:?}")));
    }
    let whole = |kernel| Pool2d { kernel, stride: kernel, padding: [0, 0], dilation: [1, 1], ceil: false };
    let y = if even {
        call.apply(Op::MaxPool2d(whole([input[0] / output[0], input[1] / output[1]])), &[x])?
    } else {
        let range = |i: usize, at: usize| {
            let start = at * input[i] / output[i];
            (start, ((at + 1) * input[i]).div_ceil(output[i]) - start)
        };
        let mut rows = Vec::with_capacity(output[0]);
        for row in 0..output[0] {
            let (top, height) = range(0, row);
            let band = cut(call, x, 2, top, height)?;
            let mut cells = Vec::with_capacity(output[1]);
            for column in 0..output[1] {
                let (left, width) = range(1, column);
                let cell = cut(call, band, 3, left, width)?;
                cells.push(call.apply(Op::MaxPool2d(whole([height, width])), &[cell])?);
            }
            rows.push(join(call, &cells, 3)?);
        }
        join(call, &rows, 2)?
    };
    let y = frame.leave(call, y)?;
    let y = call.lowering.fresh(y);
    Ok(call.lowering.tuple(vec![y, Value::None]))
}
