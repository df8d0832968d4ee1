//! Convolutions of one and two dimensions, plain and transposed.

use super::{Call, Entry, Outcome, Value, entry};
use crate::{
    artifact::Problem,
    graph::{Binary, Conv2d, Op, ValueId},
    tensor::Shape,
};

pub(super) const ENTRIES: &[Entry] = &[
    entry("conv1d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1)", |call| {
        plain(call, 1)
    }),
    entry("conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1)", |call| {
        plain(call, 2)
    }),
    entry(
        "conv_transpose1d(input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1)",
        |call| transposed(call, 1),
    ),
    entry(
        "conv_transpose2d(input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1)",
        |call| transposed(call, 2),
    ),
    entry("_convolution_mode(input, weight, bias, stride, padding, dilation, groups)", |call| {
        let weight = call.tensor("weight")?;
        match call.shape(weight).rank() {
            3 => plain(call, 1),
            4 => plain(call, 2),
            rank => Err(Problem::unsupported(format!("convolution by a weight of {rank} dimensions"))),
        }
    }),
    entry(
        "convolution(input, weight, bias, stride, padding, dilation, transposed, output_padding, groups)",
        general,
    ),
    entry(
        "_convolution(input, weight, bias, stride, padding, dilation, transposed, output_padding, groups, benchmark=None, deterministic=None, cudnn_enabled=None, allow_tf32=None)",
        general,
    ),
];

fn general(call: &mut Call<'_, '_>) -> Outcome {
    let weight = call.tensor("weight")?;
    let dims = call.shape(weight).rank().saturating_sub(2);
    if !(1..=2).contains(&dims) {
        return Err(Problem::unsupported(format!("convolution of {dims} dimensions")));
    }
    if call.flag("transposed")? { transposed(call, dims) } else { plain(call, dims) }
}

/// A list of one or two sizes as (height, width), where one dimension lies along the width.
fn pair(call: &Call<'_, '_>, name: &str, dims: usize, fill: usize) -> Result<[usize; 2], Problem> {
    if dims == 1 { Ok([fill, call.repeated::<1>(name)?[0]]) } else { call.repeated::<2>(name) }
}

/// Adds the batch dimension where the input has none, and a height of 1 where it has one dimension.
struct Frame {
    dims: usize,
    batched: bool,
}

impl Frame {
    fn enter(call: &mut Call<'_, '_>, dims: usize) -> Result<(Self, ValueId, ValueId), Problem> {
        let (x, weight) = (call.tensor("input")?, call.tensor("weight")?);
        let (shape, weight_shape) = (call.shape(x), call.shape(weight));
        let batched = shape.rank() == dims + 2;
        if !(batched || shape.rank() == dims + 1) || weight_shape.rank() != dims + 2 {
            let reason = format!("input {shape} and weight {weight_shape} do not fit {dims} dimensions");
            return Err(Problem::argument(reason));
        }
        let mut sizes = shape.to_vec();
        if !batched {
            sizes.insert(0, 1);
        }
        let mut kernel = weight_shape.to_vec();
        if dims == 1 {
            sizes.insert(2, 1);
            kernel.insert(2, 1);
        }
        let (x, weight) = (call.reshape(x, sizes.into())?, call.reshape(weight, kernel.into())?);
        Ok((Self { dims, batched }, x, weight))
    }

    fn leave(&self, call: &mut Call<'_, '_>, mut y: ValueId) -> Outcome {
        if let Some(bias) = call.optional_tensor("bias")? {
            let channels = call.shape(bias).elements();
            let bias = call.reshape(bias, [1, channels, 1, 1].into())?;
            y = call.apply(Op::Binary(Binary::Add), &[y, bias])?;
        }
        let mut sizes = call.shape(y).to_vec();
        if self.dims == 1 {
            sizes.remove(2);
        }
        if !self.batched {
            sizes.remove(0);
        }
        let y = call.reshape(y, sizes.into())?;
        call.fresh(y)
    }
}

fn plain(call: &mut Call<'_, '_>, dims: usize) -> Outcome {
    let (frame, mut x, weight) = Frame::enter(call, dims)?;
    let (stride, dilation) = (pair(call, "stride", dims, 1)?, pair(call, "dilation", dims, 1)?);
    let groups = call.size("groups")?;
    let mut padding = [0; 2];
    if let Value::Str(mode) = call.get("padding") {
        if &*mode == "same" {
            let kernel = call.shape(weight);
            let total = |i: usize| kernel[2 + i].saturating_sub(1).saturating_mul(dilation[i]);
            padding = [total(0) / 2, total(1) / 2];
            for i in 0..2 {
                if total(i) % 2 == 1 {
                    // An odd remainder goes behind, as PyTorch does.
                    let size = call.shape(x)[2 + i].saturating_add(1);
                    x = call.apply(Op::Unslice { dim: 2 + i, size, start: 0, step: 1 }, &[x])?;
                }
            }
        } else if &*mode != "valid" {
            return Err(Problem::unsupported(format!("padding {mode:?}")));
        }
    } else {
        padding = pair(call, "padding", dims, 0)?;
    }
    let conv = Conv2d { stride, padding, dilation, groups };
    let y = call.apply(Op::Conv2d(conv), &[x, weight])?;
    frame.leave(call, y)
}

/// A transposed convolution is the gradient of a plain one for its input.
fn transposed(call: &mut Call<'_, '_>, dims: usize) -> Outcome {
    let (frame, x, weight) = Frame::enter(call, dims)?;
    let (stride, dilation) = (pair(call, "stride", dims, 1)?, pair(call, "dilation", dims, 1)?);
    let padding = pair(call, "padding", dims, 0)?;
    let extra = pair(call, "output_padding", dims, 0)?;
    let groups = call.size("groups")?;
    let (shape, kernel): (Shape, Shape) = (call.shape(x), call.shape(weight));
    let size = |i: usize| {
        let steps = shape[2 + i].checked_sub(1)?.checked_mul(stride[i])?;
        let reach = kernel[2 + i].checked_sub(1)?.checked_mul(dilation[i])?;
        let padded = steps.checked_add(reach)?.checked_add(extra[i])?.checked_add(1)?;
        padded.checked_sub(padding[i].checked_mul(2)?)
    };
    let (Some(height), Some(width)) = (size(0), size(1)) else {
        return Err(Problem::argument(format!("input {shape} is too small for its padding")));
    };
    let conv = Conv2d { stride, padding, dilation, groups };
    let y = call.apply(Op::Conv2dGradInput { conv, input_size: [height, width] }, &[weight, x])?;
    frame.leave(call, y)
}
