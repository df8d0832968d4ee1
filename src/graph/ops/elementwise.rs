//! Element by element: activations, arithmetic, comparisons, selection, casts.

use half::{bf16, f16};
use smallvec::smallvec;

use super::{Checked as _, OperandGradients, Operands, Results, Rule, one};
use crate::{
    graph::{Binary, Compare, GraphError, Op, Unary, ValueId},
    tensor::DType,
};

pub(super) fn infer(op: &Op, operands: Operands<'_>) -> Result<Results, GraphError> {
    let name = op.name();
    match op {
        Op::Unary(_) => {
            let [x] = operands.exactly()?;
            Ok(one(x.shape.clone(), operands.floating()?))
        }
        Op::UnaryGrad(_) => {
            let [x, _] = operands.exactly()?;
            operands.shape(1, &x.shape)?;
            Ok(one(x.shape.clone(), operands.floating()?))
        }
        Op::Binary(_) => {
            let [a, b] = operands.exactly()?;
            let dtype = operands.same_dtype()?;
            operands.ensure(dtype != DType::Bool, || "it takes numbers: cast first".into())?;
            Ok(one(a.shape.broadcast(&b.shape).named(name)?, dtype))
        }
        Op::Compare(_) => {
            let [a, b] = operands.exactly()?;
            operands.same_dtype()?;
            Ok(one(a.shape.broadcast(&b.shape).named(name)?, DType::Bool))
        }
        Op::Where => {
            let [condition, a, b] = operands.exactly()?;
            operands.ensure(condition.dtype == DType::Bool, || "the condition must be bool".into())?;
            operands.ensure(a.dtype == b.dtype, || "both choices must be of one type".into())?;
            let shape =
                a.shape.broadcast(&b.shape).and_then(|s| s.broadcast(&condition.shape)).named(name)?;
            Ok(one(shape, a.dtype))
        }
        Op::Cast(dtype) => {
            let [x] = operands.exactly()?;
            Ok(one(x.shape.clone(), *dtype))
        }
        _ => operands.fail("it is no elementwise operation"),
    }
}

pub(super) fn vjp(rule: &mut Rule<'_>) -> Result<OperandGradients, GraphError> {
    let gy = rule.gradient()?;
    match rule.node.op {
        Op::Unary(unary) => Ok(smallvec![Some(unary_vjp(rule, unary, gy)?)]),
        Op::Binary(binary) => binary_vjp(rule, binary, gy),
        // gx = gy in the operand's type.
        Op::Cast(_) => {
            let dtype = rule.builder.dtype(rule.input(0));
            Ok(smallvec![Some(rule.op(Op::Cast(dtype), &[gy])?)])
        }
        // ga = gy where the condition holds, gb = gy where it does not.
        Op::Where => {
            let (condition, zero) = (rule.input(0), rule.scalar_like(gy, 0.0)?);
            let mut gradients: OperandGradients = smallvec![None, None, None];
            for (index, choices) in [(1, [condition, gy, zero]), (2, [condition, zero, gy])] {
                if rule.wanted[index] {
                    let gradient = rule.op(Op::Where, &choices)?;
                    gradients[index] = Some(rule.unbroadcast(gradient, &rule.input_shape(index))?);
                }
            }
            Ok(gradients)
        }
        _ => Err(rule.none()),
    }
}

fn unary_vjp(rule: &mut Rule<'_>, unary: Unary, gy: ValueId) -> Result<ValueId, GraphError> {
    let (x, y) = (rule.input(0), rule.output(0));
    match unary {
        // gx = −gy
        Unary::Neg => rule.unary(Unary::Neg, gy),
        // gx = gy
        Unary::AddScalar { .. } => Ok(gy),
        // gx = c·gy
        Unary::MulScalar { value } => rule.unary(Unary::MulScalar { value }, gy),
        // gx = 0: the steps between have a slope, and PyTorch calls it 0.
        Unary::Sign | Unary::Floor | Unary::Ceil | Unary::Round | Unary::Trunc => {
            let (shape, dtype) = (rule.builder.shape(gy).clone(), rule.builder.dtype(gy));
            rule.op(Op::Full { shape, dtype, value: 0.0 }, &[])
        }
        // gx = gy·(y + 1)
        Unary::Expm1 => {
            let power = rule.unary(Unary::AddScalar { value: 1.0 }, y)?;
            rule.binary(Binary::Mul, gy, power)
        }
        // gx = gy·y
        Unary::Exp => rule.binary(Binary::Mul, gy, y),
        // y is positive exactly where x is, and usually has to be kept anyway for what comes next.
        Unary::Relu => rule.op(Op::UnaryGrad(unary), &[y, gy]),
        // As of ReLU: where y's type has the bound itself, y equals it exactly where x is at the bound or past it.
        Unary::Hardtanh { min, max }
            if [min, max].iter().all(|&bound| holds(rule.builder.dtype(y), bound)) =>
        {
            rule.op(Op::UnaryGrad(unary), &[y, gy])
        }
        // gx = gy·f′(x)
        _ => rule.op(Op::UnaryGrad(unary), &[x, gy]),
    }
}

/// Whether a floating-point type has a number without rounding.
fn holds(dtype: DType, number: f64) -> bool {
    let rounded = match dtype {
        DType::BF16 => bf16::from_f64(number).to_f64(),
        DType::F16 => f16::from_f64(number).to_f64(),
        DType::F32 => f64::from(number as f32),
        _ => number,
    };
    rounded == number
}

fn binary_vjp(rule: &mut Rule<'_>, binary: Binary, gy: ValueId) -> Result<OperandGradients, GraphError> {
    let mut gradients: OperandGradients = smallvec![None, None];
    for index in 0..2 {
        if rule.wanted[index] {
            let gradient = if index == 0 { first(rule, binary, gy)? } else { second(rule, binary, gy)? };
            gradients[index] = Some(rule.unbroadcast(gradient, &rule.input_shape(index))?);
        }
    }
    Ok(gradients)
}

fn first(rule: &mut Rule<'_>, binary: Binary, gy: ValueId) -> Result<ValueId, GraphError> {
    let (a, b) = (rule.input(0), rule.input(1));
    match binary {
        // ∂(a ± b)/∂a = 1
        Binary::Add | Binary::Sub => Ok(gy),
        // ∂(a·b)/∂a = b
        Binary::Mul => rule.binary(Binary::Mul, gy, b),
        // ∂(a/b)/∂a = 1/b
        Binary::Div => rule.binary(Binary::Div, gy, b),
        // ∂(a^b)/∂a = b·a^(b−1), and 0 where b = 0
        Binary::Pow => {
            let less_one = rule.unary(Unary::AddScalar { value: -1.0 }, b)?;
            let power = rule.binary(Binary::Pow, a, less_one)?;
            let slope = rule.binary(Binary::Mul, b, power)?;
            let gradient = rule.binary(Binary::Mul, gy, slope)?;
            let zero = rule.scalar_like(gy, 0.0)?;
            let constant = rule.op(Op::Compare(Compare::Eq), &[b, zero])?;
            rule.op(Op::Where, &[constant, zero, gradient])
        }
        Binary::Maximum => chosen(rule, gy, [a, b], Compare::Gt),
        Binary::Minimum => chosen(rule, gy, [a, b], Compare::Lt),
    }
}

fn second(rule: &mut Rule<'_>, binary: Binary, gy: ValueId) -> Result<ValueId, GraphError> {
    let (a, b, y) = (rule.input(0), rule.input(1), rule.output(0));
    match binary {
        Binary::Add => Ok(gy),
        // ∂(a − b)/∂b = −1
        Binary::Sub => rule.unary(Unary::Neg, gy),
        // ∂(a·b)/∂b = a
        Binary::Mul => rule.binary(Binary::Mul, gy, a),
        // ∂(a/b)/∂b = −(a/b)/b
        Binary::Div => {
            let ratio = rule.binary(Binary::Div, a, b)?;
            let slope = rule.binary(Binary::Div, ratio, b)?;
            let gradient = rule.binary(Binary::Mul, gy, slope)?;
            rule.unary(Unary::Neg, gradient)
        }
        // ∂(a^b)/∂b = a^b·ln a, and 0 where a = 0 and b ≥ 0
        Binary::Pow => {
            let log = rule.unary(Unary::Log, a)?;
            let slope = rule.binary(Binary::Mul, y, log)?;
            let gradient = rule.binary(Binary::Mul, gy, slope)?;
            let zero = rule.scalar_like(gy, 0.0)?;
            let base_is_zero = rule.op(Op::Compare(Compare::Eq), &[a, zero])?;
            let exponent_is_not_negative = rule.op(Op::Compare(Compare::Ge), &[b, zero])?;
            let kept = rule.op(Op::Where, &[exponent_is_not_negative, zero, gradient])?;
            rule.op(Op::Where, &[base_is_zero, kept, gradient])
        }
        Binary::Maximum => chosen(rule, gy, [b, a], Compare::Gt),
        Binary::Minimum => chosen(rule, gy, [b, a], Compare::Lt),
    }
}

/// gy where the first operand wins, half of it where both are equal, else 0.
fn chosen(
    rule: &mut Rule<'_>,
    gy: ValueId,
    [this, other]: [ValueId; 2],
    wins: Compare,
) -> Result<ValueId, GraphError> {
    let zero = rule.scalar_like(gy, 0.0)?;
    let half = rule.unary(Unary::MulScalar { value: 0.5 }, gy)?;
    let won = rule.op(Op::Compare(wins), &[this, other])?;
    let tied = rule.op(Op::Compare(Compare::Eq), &[this, other])?;
    let rest = rule.op(Op::Where, &[tied, half, zero])?;
    rule.op(Op::Where, &[won, gy, rest])
}
