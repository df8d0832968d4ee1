//! Matrix products and convolutions.

use smallvec::smallvec;

use super::{OperandGradients, Operands, Results, Rule, one};
use crate::{
    graph::{Conv2d, GraphError, Op},
    tensor::Shape,
};

pub(super) fn infer(op: &Op, operands: Operands<'_>) -> Result<Results, GraphError> {
    match op {
        Op::MatMul { transpose_a, transpose_b } => matmul(*transpose_a, *transpose_b, operands),
        Op::Conv2d(conv) => conv2d(conv, operands),
        Op::Conv2dGradInput { conv, input_size } => grad_input(conv, *input_size, operands),
        Op::Conv2dGradWeight { conv, kernel_size } => grad_weight(conv, *kernel_size, operands),
        _ => operands.fail("it is no contraction"),
    }
}

fn matmul(transpose_a: bool, transpose_b: bool, operands: Operands<'_>) -> Result<Results, GraphError> {
    let [a, b] = operands.exactly()?;
    let dtype = operands.floating()?;
    let rank = a.shape.rank();
    operands.ensure(rank >= 2, || "it takes matrices, at least 2 dimensions".into())?;
    operands.rank(1, rank)?;
    let batch = rank - 2;
    operands.ensure(a.shape[..batch] == b.shape[..batch], || {
        "the batch dimensions must be equal: expand first".into()
    })?;
    let (mut m, mut k) = (a.shape[batch], a.shape[batch + 1]);
    let (mut l, mut n) = (b.shape[batch], b.shape[batch + 1]);
    if transpose_a {
        (m, k) = (k, m);
    }
    if transpose_b {
        (l, n) = (n, l);
    }
    operands.ensure(k == l, || format!("the inner sizes differ: {k} and {l}"))?;
    let shape: Shape = a.shape[..batch].iter().copied().chain([m, n]).collect();
    Ok(one(shape, dtype))
}

impl Conv2d {
    /// (H′, W′) for (H, W) and (kh, kw); `None` where the kernel does not fit, the stride is 0 or a number
    /// overflows.
    pub fn output_size(&self, input: [usize; 2], kernel: [usize; 2]) -> Option<[usize; 2]> {
        let size = |i: usize| {
            let reach = kernel[i].checked_sub(1)?.checked_mul(self.dilation[i])?.checked_add(1)?;
            let padded = self.padding[i].checked_mul(2)?.checked_add(input[i])?;
            Some(padded.checked_sub(reach)?.checked_div(self.stride[i])? + 1)
        };
        Some([size(0)?, size(1)?])
    }

    fn check(&self, operands: Operands<'_>) -> Result<(), GraphError> {
        let positive = self.stride.iter().chain(&self.dilation).all(|&n| n >= 1) && self.groups >= 1;
        operands.ensure(positive, || "stride, dilation and groups must be at least 1".into())
    }
}

fn sizes(shape: &Shape) -> [usize; 2] {
    [shape[2], shape[3]]
}

fn conv2d(conv: &Conv2d, operands: Operands<'_>) -> Result<Results, GraphError> {
    let [x, w] = operands.exactly()?;
    let dtype = operands.floating()?;
    operands.rank(0, 4)?;
    operands.rank(1, 4)?;
    conv.check(operands)?;
    check_groups(conv, x.shape[1], &w.shape, operands)?;
    let Some([h, w_out]) = conv.output_size(sizes(&x.shape), sizes(&w.shape)) else {
        return operands.fail("the kernel is larger than the padded input");
    };
    Ok(one([x.shape[0], w.shape[0], h, w_out].into(), dtype))
}

fn check_groups(
    conv: &Conv2d,
    channels: usize,
    weight: &Shape,
    operands: Operands<'_>,
) -> Result<(), GraphError> {
    let groups = conv.groups;
    operands.ensure(channels.is_multiple_of(groups) && weight[0].is_multiple_of(groups), || {
        format!("{groups} groups must divide {channels} input and {} output channels", weight[0])
    })?;
    operands.ensure(channels / groups == weight[1], || {
        format!("the weight takes {} channels a group, the input has {}", weight[1], channels / groups)
    })
}

fn grad_input(conv: &Conv2d, input: [usize; 2], operands: Operands<'_>) -> Result<Results, GraphError> {
    let [w, gy] = operands.exactly()?;
    let dtype = operands.floating()?;
    operands.rank(0, 4)?;
    operands.rank(1, 4)?;
    conv.check(operands)?;
    let Some(channels) = w.shape[1].checked_mul(conv.groups) else {
        return operands.fail("the channels overflow");
    };
    check_groups(conv, channels, &w.shape, operands)?;
    let output = conv.output_size(input, sizes(&w.shape));
    operands.ensure(output == Some(sizes(&gy.shape)) && gy.shape[1] == w.shape[0], || {
        format!("the gradient does not fit an input of size {input:?}")
    })?;
    Ok(one([gy.shape[0], channels, input[0], input[1]].into(), dtype))
}

fn grad_weight(conv: &Conv2d, kernel: [usize; 2], operands: Operands<'_>) -> Result<Results, GraphError> {
    let [x, gy] = operands.exactly()?;
    let dtype = operands.floating()?;
    operands.rank(0, 4)?;
    operands.rank(1, 4)?;
    conv.check(operands)?;
    let groups_fit = x.shape[1].is_multiple_of(conv.groups) && gy.shape[1].is_multiple_of(conv.groups);
    operands.ensure(groups_fit, || format!("{} groups must divide both channel counts", conv.groups))?;
    let output = conv.output_size(sizes(&x.shape), kernel);
    operands.ensure(output == Some(sizes(&gy.shape)) && gy.shape[0] == x.shape[0], || {
        format!("the gradient does not fit a kernel of size {kernel:?}")
    })?;
    Ok(one([gy.shape[1], x.shape[1] / conv.groups, kernel[0], kernel[1]].into(), dtype))
}

pub(super) fn vjp(rule: &mut Rule<'_>) -> Result<OperandGradients, GraphError> {
    let gy = rule.gradient()?;
    let (a, b) = (rule.input(0), rule.input(1));
    let (of_a, of_b) = match rule.node.op.clone() {
        Op::MatMul { transpose_a, transpose_b } => {
            let product = |transpose_a, transpose_b| Op::MatMul { transpose_a, transpose_b };
            match (transpose_a, transpose_b) {
                // y = ab: ga = gy·bᵀ, gb = aᵀ·gy
                (false, false) => ((product(false, true), [gy, b]), (product(true, false), [a, gy])),
                // y = aᵀb: ga = b·gyᵀ, gb = a·gy
                (true, false) => ((product(false, true), [b, gy]), (product(false, false), [a, gy])),
                // y = abᵀ: ga = gy·b, gb = gyᵀ·a
                (false, true) => ((product(false, false), [gy, b]), (product(true, false), [gy, a])),
                // y = aᵀbᵀ: ga = bᵀ·gyᵀ, gb = gyᵀ·aᵀ
                (true, true) => ((product(true, true), [b, gy]), (product(true, true), [gy, a])),
            }
        }
        Op::Conv2d(conv) => {
            let (x, w) = (rule.input_shape(0), rule.input_shape(1));
            let to_input = Op::Conv2dGradInput { conv, input_size: sizes(&x) };
            let to_weight = Op::Conv2dGradWeight { conv, kernel_size: sizes(&w) };
            ((to_input, [b, gy]), (to_weight, [a, gy]))
        }
        // z = conv2d_grad_input(w, g) is linear in both: its adjoint in g is the convolution itself.
        Op::Conv2dGradInput { conv, .. } => {
            let w = rule.input_shape(0);
            ((Op::Conv2dGradWeight { conv, kernel_size: sizes(&w) }, [gy, b]), (Op::Conv2d(conv), [gy, a]))
        }
        _ => return Err(rule.none()),
    };
    let mut gradients: OperandGradients = smallvec![None, None];
    for (index, (op, operands)) in [of_a, of_b].into_iter().enumerate() {
        if rule.wanted[index] {
            gradients[index] = Some(rule.op(op, &operands)?);
        }
    }
    Ok(gradients)
}
