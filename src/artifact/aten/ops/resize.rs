//! Interpolation of [N, C, H, W].

use super::{Call, Entry, Outcome, Value, activation::floating, contraction::matmul, entry, view::swap};
use crate::{
    artifact::Problem,
    graph::ValueId,
    tensor::{HostTensor, Shape},
};

pub(super) const ENTRIES: &[Entry] = &[
    entry("upsample_nearest2d.vec(input, output_size, scale_factors)", nearest),
    entry("upsample_nearest2d(self, output_size, scales_h=None, scales_w=None)", nearest),
    entry("upsample_bilinear2d.vec(input, output_size, align_corners, scale_factors)", bilinear),
    entry("upsample_bilinear2d(self, output_size, align_corners, scales_h=None, scales_w=None)", bilinear),
];

/// The most weights of one dimension's interpolation.
const MAX_WEIGHTS: usize = 1 << 22;

struct Resize {
    x: ValueId,
    shape: Shape,
    output: [usize; 2],
    /// Input elements for each output element, where the call gives factors.
    steps: [Option<f64>; 2],
}

fn resize(call: &mut Call<'_, '_>) -> Result<Resize, Problem> {
    let name = if call.get("input") == Value::None { "self" } else { "input" };
    let x = floating(call, name)?;
    let shape = call.shape(x);
    if shape.rank() != 4 || shape[2] == 0 || shape[3] == 0 {
        return Err(Problem::argument(format!("shape {shape} is not [N, C, H, W] with elements")));
    }
    let factors = match call.get("scale_factors") {
        Value::List(items) | Value::Tuple(items) => {
            let items = call.lowering.items(items);
            let factor = |i: usize| items.get(i).and_then(Value::scalar).map(|scalar| scalar.to_f64());
            [factor(0), factor(1)]
        }
        _ => {
            let factor = |name| call.get(name).scalar().map(|scalar| scalar.to_f64());
            [factor("scales_h"), factor("scales_w")]
        }
    };
    let output = if call.get("output_size") == Value::None {
        let size = |i: usize| {
            let size = (shape[2 + i] as f64 * factors[i]?).floor();
            (1.0..1e9).contains(&size).then_some(size as usize)
        };
        match (size(0), size(1)) {
            (Some(height), Some(width)) => [height, width],
            _ => return Err(Problem::argument("it needs an output size or usable factors")),
        }
    } else {
        call.repeated::<2>("output_size")?
    };
    let steps = factors.map(|factor| factor.filter(|f| *f > 0.0).map(|f| 1.0 / f));
    Ok(Resize { x, shape, output, steps })
}

fn nearest(call: &mut Call<'_, '_>) -> Outcome {
    let Resize { x, shape, output: [height, width], .. } = resize(call)?;
    let (h, w) = (shape[2], shape[3]);
    if !height.is_multiple_of(h) || !width.is_multiple_of(w) {
        return Err(Problem::unsupported(format!("nearest interpolation from {h}×{w} to {height}×{width}")));
    }
    let (n, c) = (shape[0], shape[1]);
    let split = call.reshape(x, [n, c, h, 1, w, 1].into())?;
    let wide = call.expand(split, &[n, c, h, height / h, w, width / w].into())?;
    let y = call.reshape(wide, [n, c, height, width].into())?;
    call.fresh(y)
}

/// Bilinear interpolation is a matrix product along each of both dimensions.
fn bilinear(call: &mut Call<'_, '_>) -> Outcome {
    let Resize { x, shape, output, steps } = resize(call)?;
    let corners = call.flag("align_corners")?;
    let along_width = weights(call, x, shape[3], output[1], corners, steps[1])?;
    let y = matmul(call, x, along_width)?;
    let y = swap(call, y, 2, 3)?;
    let along_height = weights(call, x, shape[2], output[0], corners, steps[0])?;
    let y = matmul(call, y, along_height)?;
    let y = swap(call, y, 2, 3)?;
    call.fresh(y)
}

/// The matrix [input, output] of one dimension.
fn weights(
    call: &mut Call<'_, '_>,
    x: ValueId,
    input: usize,
    output: usize,
    corners: bool,
    step: Option<f64>,
) -> Result<ValueId, Problem> {
    if input.checked_mul(output).is_none_or(|count| count > MAX_WEIGHTS) || output == 0 {
        return Err(Problem::argument(format!("it cannot interpolate {input} elements to {output}")));
    }
    // The matrix is made here and now, so a program may not ask for many.
    call.lowering.charge((input * output / 16) as u64)?;
    let step = match (corners, step) {
        (true, _) if output == 1 => 0.0,
        (true, _) => (input - 1) as f64 / (output - 1) as f64,
        (false, Some(step)) => step,
        (false, None) => input as f64 / output as f64,
    };
    let mut matrix = vec![0.0f32; input * output];
    for column in 0..output {
        let place =
            if corners { column as f64 * step } else { ((column as f64 + 0.5) * step - 0.5).max(0.0) };
        let low = (place as usize).min(input - 1);
        let high = (low + 1).min(input - 1);
        let share = (place - low as f64).clamp(0.0, 1.0) as f32;
        matrix[low * output + column] += 1.0 - share;
        matrix[high * output + column] += share;
    }
    let tensor = HostTensor::from_values([input, output].into(), &matrix)
        .map_err(|error| Problem::argument(error.to_string()))?;
    let constant = call.lowering.builder.constant(tensor)?;
    let dtype = call.dtype_of(x);
    call.cast(constant, dtype)
}
