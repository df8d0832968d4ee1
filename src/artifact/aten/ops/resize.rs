//! Interpolation of [N, C, L] and [N, C, H, W].

use super::{Call, Entry, Outcome, Value, activation::floating, contraction::matmul, entry, view::swap};
use crate::{
    artifact::Problem,
    graph::{Binary, Op, ValueId},
    tensor::{HostTensor, Shape},
};

pub(super) const ENTRIES: &[Entry] = &[
    entry("upsample_nearest1d.vec(input, output_size, scale_factors)", |call| nearest(call, 1, 0.0)),
    entry("upsample_nearest1d(self, output_size, scales=None)", |call| nearest(call, 1, 0.0)),
    entry("upsample_nearest2d.vec(input, output_size, scale_factors)", |call| nearest(call, 2, 0.0)),
    entry("upsample_nearest2d(self, output_size, scales_h=None, scales_w=None)", |call| {
        nearest(call, 2, 0.0)
    }),
    entry("_upsample_nearest_exact1d.vec(input, output_size, scale_factors)", |call| nearest(call, 1, 0.5)),
    entry("_upsample_nearest_exact1d(self, output_size, scales=None)", |call| nearest(call, 1, 0.5)),
    entry("_upsample_nearest_exact2d.vec(input, output_size, scale_factors)", |call| nearest(call, 2, 0.5)),
    entry("_upsample_nearest_exact2d(self, output_size, scales_h=None, scales_w=None)", |call| {
        nearest(call, 2, 0.5)
    }),
    entry("upsample_linear1d.vec(input, output_size, align_corners, scale_factors)", |call| {
        blended(call, 1, Kernel::Linear)
    }),
    entry("upsample_linear1d(self, output_size, align_corners, scales=None)", |call| {
        blended(call, 1, Kernel::Linear)
    }),
    entry("upsample_bilinear2d.vec(input, output_size, align_corners, scale_factors)", |call| {
        blended(call, 2, Kernel::Linear)
    }),
    entry("upsample_bilinear2d(self, output_size, align_corners, scales_h=None, scales_w=None)", |call| {
        blended(call, 2, Kernel::Linear)
    }),
    entry("upsample_bicubic2d.vec(input, output_size, align_corners, scale_factors)", |call| {
        blended(call, 2, Kernel::Cubic)
    }),
    entry("upsample_bicubic2d(self, output_size, align_corners, scales_h=None, scales_w=None)", |call| {
        blended(call, 2, Kernel::Cubic)
    }),
];

/// The most weights of one dimension's interpolation.
const MAX_WEIGHTS: usize = 1 << 22;

struct Resize {
    x: ValueId,
    shape: Shape,
    output: Vec<usize>,
    /// Input elements for each output element, where the call gives factors.
    steps: Vec<Option<f64>>,
}

fn resize(call: &mut Call<'_, '_>, dims: usize) -> Result<Resize, Problem> {
    let name = if call.get("input") == Value::None { "self" } else { "input" };
    let x = floating(call, name)?;
    let shape = call.shape(x);
    if shape.rank() != 2 + dims || shape[2..].contains(&0) {
        return Err(Problem::argument(format!(
            "shape {shape} is not [N, C] with {dims} dimensions of elements"
        )));
    }
    let factors: Vec<Option<f64>> = match call.get("scale_factors") {
        Value::List(items) | Value::Tuple(items) => {
            let items = call.lowering.items(items);
            (0..dims).map(|i| items.get(i).and_then(Value::scalar).map(|scalar| scalar.to_f64())).collect()
        }
        _ => {
            let names = if dims == 1 { &["scales"][..] } else { &["scales_h", "scales_w"] };
            names.iter().map(|name| call.get(name).scalar().map(|scalar| scalar.to_f64())).collect()
        }
    };
    let output = if call.get("output_size") == Value::None {
        let size = |i: usize| {
            let size = (shape[2 + i] as f64 * factors[i]?).floor();
            (1.0..1e9).contains(&size).then_some(size as usize)
        };
        let Some(output) = (0..dims).map(size).collect::<Option<Vec<_>>>() else {
            return Err(Problem::argument("it needs an output size or usable factors"));
        };
        output
    } else if dims == 1 {
        call.repeated::<1>("output_size")?.to_vec()
    } else {
        call.repeated::<2>("output_size")?.to_vec()
    };
    let steps = factors.into_iter().map(|factor| factor.filter(|f| *f > 0.0).map(|f| 1.0 / f)).collect();
    Ok(Resize { x, shape, output, steps })
}

/// The most places of one dimension that are listed.
const MAX_PLACES: usize = 1 << 20;

/// Each output element is one input element; `shift` is 0, or ½ for the variant that looks from the centres.
fn nearest(call: &mut Call<'_, '_>, dims: usize, shift: f32) -> Outcome {
    let Resize { x, shape, output, steps } = resize(call, dims)?;
    let mut y = x;
    for (i, (&size, step)) in output.iter().zip(steps).enumerate() {
        let (dim, input) = (2 + i, shape[2 + i]);
        if size == 0 || size > MAX_PLACES {
            return Err(Problem::argument(format!("it cannot interpolate {input} elements to {size}")));
        }
        if size == input {
            continue;
        }
        call.lowering.charge((size / 16) as u64)?;
        // In single precision, as PyTorch reckons places.
        let step = step.map_or(input as f32 / size as f32, |step| step as f32);
        let places: Vec<i64> =
            (0..size).map(|n| (((n as f32 + shift) * step) as usize).min(input - 1) as i64).collect();
        let even = size.is_multiple_of(input)
            && places.iter().enumerate().all(|(n, &place)| place as usize == n / (size / input));
        y = if even {
            let (old, times) = (call.shape(y), size / input);
            let with = |middle: &[usize]| -> Shape {
                old[..dim].iter().chain(middle).chain(&old[dim + 1..]).copied().collect()
            };
            let split = call.reshape(y, with(&[input, 1]))?;
            let wide = call.expand(split, &with(&[input, times]))?;
            call.reshape(wide, with(&[size]))?
        } else {
            let tensor = HostTensor::from_values([size].into(), &places)
                .map_err(|error| Problem::argument(error.to_string()))?;
            let indices = call.lowering.builder.constant(tensor)?;
            call.apply(Op::Pick { dim }, &[y, indices])?
        };
    }
    call.fresh(y)
}

/// How far the neighbours of a place count.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kernel {
    Linear,
    Cubic,
}

/// The shares that input elements have in the output element at a place; equal ones add up.
type Shares = fn(place: f64, share: &mut dyn FnMut(i64, f64));

fn linear(place: f64, share: &mut dyn FnMut(i64, f64)) {
    let place = place.max(0.0);
    let above = place - place.floor();
    share(place as i64, 1.0 - above);
    share(place as i64 + 1, above);
}

/// Cubic convolution with a = −¾.
///
/// Source: Keys, "Cubic convolution interpolation for digital image processing", 1981.
fn cubic(place: f64, share: &mut dyn FnMut(i64, f64)) {
    const A: f64 = -0.75;
    let near = |d: f64| ((A + 2.0) * d - (A + 3.0)) * d * d + 1.0;
    let far = |d: f64| ((A * d - 5.0 * A) * d + 8.0 * A) * d - 4.0 * A;
    let (low, t) = (place.floor(), place - place.floor());
    for (n, weight) in [far(1.0 + t), near(t), near(1.0 - t), far(2.0 - t)].into_iter().enumerate() {
        share(low as i64 + n as i64 - 1, weight);
    }
}

/// Interpolation by shares is a matrix product along each dimension.
///
/// PyTorch has two ways about a size that stays, whatever the factor: the linear kernels copy such a dimension,
/// and the bicubic one computes it forward but passes the gradient on as it is where both sizes stay.
fn blended(call: &mut Call<'_, '_>, dims: usize, kernel: Kernel) -> Outcome {
    let Resize { x, shape, output, steps } = resize(call, dims)?;
    let shares: Shares = match kernel {
        Kernel::Linear => linear,
        Kernel::Cubic => cubic,
    };
    let (corners, last) = (call.flag("align_corners")?, shape.rank() - 1);
    let mut y = x;
    for i in (0..dims).rev() {
        if kernel == Kernel::Linear && shape[2 + i] == output[i] {
            continue;
        }
        let along = weights(call, x, [shape[2 + i], output[i]], corners, steps[i], shares)?;
        y = swap(call, y, 2 + i, last)?;
        y = matmul(call, y, along)?;
        y = swap(call, y, 2 + i, last)?;
    }
    if kernel == Kernel::Cubic && shape[2..] == output[..] {
        let change = call.apply(Op::Binary(Binary::Sub), &[y, x])?;
        let change = call.apply(Op::Detach, &[change])?;
        y = call.apply(Op::Binary(Binary::Add), &[x, change])?;
    }
    call.fresh(y)
}

/// The matrix [input, output] of one dimension.
fn weights(
    call: &mut Call<'_, '_>,
    x: ValueId,
    [input, output]: [usize; 2],
    corners: bool,
    step: Option<f64>,
    shares: Shares,
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
        let place = if corners { column as f64 * step } else { (column as f64 + 0.5) * step - 0.5 };
        shares(place, &mut |row, share| {
            let row = row.clamp(0, input as i64 - 1) as usize;
            matrix[row * output + column] += share as f32;
        });
    }
    let tensor = HostTensor::from_values([input, output].into(), &matrix)
        .map_err(|error| Problem::argument(error.to_string()))?;
    let constant = call.lowering.builder.constant(tensor)?;
    let dtype = call.dtype_of(x);
    call.cast(constant, dtype)
}
