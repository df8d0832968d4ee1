//! Pooling over the last two dimensions of [N, C, H, W].

use smallvec::smallvec;

use super::{OperandGradients, Operands, Results, Rule, one};
use crate::{
    graph::{GraphError, Op, Pool2d, ValueInfo},
    tensor::{DType, Shape},
};

impl Pool2d {
    /// (H′, W′) for (H, W), by PyTorch's rule: with `ceil`, a last window may start in the input or its
    /// left padding only. `None` where the window does not fit, the input is empty, the stride is 0 or a
    /// number overflows.
    pub fn output_size(&self, input: [usize; 2]) -> Option<[usize; 2]> {
        if input.contains(&0) || self.stride.contains(&0) {
            return None;
        }
        let size = |i: usize| {
            let reach = self.kernel[i].checked_sub(1)?.checked_mul(self.dilation[i])?.checked_add(1)?;
            let padded = self.padding[i].checked_mul(2)?.checked_add(input[i])?;
            let room = padded.checked_sub(reach)?;
            let steps = if self.ceil { room.div_ceil(self.stride[i]) } else { room / self.stride[i] };
            let late = self.ceil && steps.checked_mul(self.stride[i])? >= input[i] + self.padding[i];
            Some(if late { steps } else { steps + 1 })
        };
        Some([size(0)?, size(1)?])
    }

    fn check(&self, operands: Operands<'_>) -> Result<(), GraphError> {
        let positive = self.kernel.iter().chain(&self.stride).chain(&self.dilation).all(|&n| n >= 1);
        operands.ensure(positive, || "kernel, stride and dilation must be at least 1".into())?;
        let padded = (0..2).all(|i| self.padding[i] <= self.kernel[i] / 2);
        operands.ensure(padded, || "the padding must be at most half the kernel".into())
    }
}

fn plane(shape: &Shape, size: [usize; 2]) -> Shape {
    [shape[0], shape[1], size[0], size[1]].into()
}

pub(super) fn infer(op: &Op, operands: Operands<'_>) -> Result<Results, GraphError> {
    match op {
        Op::MaxPool2d(pool) => {
            let [x] = operands.exactly()?;
            let shape = pooled(pool, x, operands)?;
            let indices = ValueInfo { shape: shape.clone(), dtype: DType::I64 };
            Ok(smallvec![ValueInfo { shape, dtype: x.dtype }, indices])
        }
        Op::AvgPool2d { pool, divisor, .. } => {
            let [x] = operands.exactly()?;
            average(pool, *divisor, operands)?;
            Ok(one(pooled(pool, x, operands)?, x.dtype))
        }
        Op::AdaptiveAvgPool2d { output_size } => {
            let [x] = operands.exactly()?;
            operands.rank(0, 4)?;
            let dtype = operands.floating()?;
            operands
                .ensure(x.shape[2] > 0 && x.shape[3] > 0, || "the input has no elements to average".into())?;
            Ok(one(plane(&x.shape, *output_size), dtype))
        }
        Op::MaxPool2dGrad { input_size } => {
            let [indices, gy] = operands.exactly()?;
            operands.rank(0, 4)?;
            operands.shape(1, &indices.shape)?;
            let types = indices.dtype == DType::I64 && gy.dtype.is_floating_point();
            operands.ensure(types, || "it takes int64 indices and a floating-point gradient".into())?;
            operands.ensure(input_size.iter().all(|&n| n > 0), || "the input has no elements".into())?;
            Ok(one(plane(&gy.shape, *input_size), gy.dtype))
        }
        Op::AvgPool2dGrad { pool, divisor, input_size, .. } => {
            let [gy] = operands.exactly()?;
            average(pool, *divisor, operands)?;
            operands.rank(0, 4)?;
            let dtype = operands.floating()?;
            let fits = pool.output_size(*input_size) == Some([gy.shape[2], gy.shape[3]]);
            operands.ensure(fits, || format!("the gradient does not fit an input of size {input_size:?}"))?;
            Ok(one(plane(&gy.shape, *input_size), dtype))
        }
        Op::AdaptiveAvgPool2dGrad { input_size } => {
            let [gy] = operands.exactly()?;
            operands.rank(0, 4)?;
            let dtype = operands.floating()?;
            operands.ensure(input_size.iter().all(|&n| n > 0), || "the input has no elements".into())?;
            Ok(one(plane(&gy.shape, *input_size), dtype))
        }
        _ => operands.fail("it is no pooling"),
    }
}

fn pooled(pool: &Pool2d, x: &ValueInfo, operands: Operands<'_>) -> Result<Shape, GraphError> {
    operands.floating()?;
    operands.rank(0, 4)?;
    pool.check(operands)?;
    match pool.output_size([x.shape[2], x.shape[3]]) {
        Some(size) => Ok(plane(&x.shape, size)),
        None => operands.fail("the input is empty or the window is larger than the padded input"),
    }
}

fn average(pool: &Pool2d, divisor: Option<usize>, operands: Operands<'_>) -> Result<(), GraphError> {
    pool.check(operands)?;
    operands.ensure(pool.dilation == [1, 1], || "average pooling has no dilation".into())?;
    operands.ensure(divisor != Some(0), || "the divisor must not be 0".into())
}

pub(super) fn vjp(rule: &mut Rule<'_>) -> Result<OperandGradients, GraphError> {
    let gy = rule.gradient()?;
    let shape = rule.input_shape(0);
    let input_size = || [shape[2], shape[3]];
    let gradient = match rule.node.op {
        // Each gradient goes to the element that was the largest.
        Op::MaxPool2d(_) => {
            let indices = rule.output(1);
            rule.op(Op::MaxPool2dGrad { input_size: input_size() }, &[indices, gy])?
        }
        // Each gradient is shared by its window.
        Op::AvgPool2d { pool, count_include_pad, divisor } => {
            let op = Op::AvgPool2dGrad { pool, count_include_pad, divisor, input_size: input_size() };
            rule.op(op, &[gy])?
        }
        Op::AdaptiveAvgPool2d { .. } => {
            rule.op(Op::AdaptiveAvgPool2dGrad { input_size: input_size() }, &[gy])?
        }
        _ => return Err(rule.none()),
    };
    Ok(smallvec![Some(gradient)])
}
