//! Scalar functions and their derivatives, by the formulas in PyTorch's documentation.

use half::{bf16, f16};

use crate::{
    graph::{Binary, Compare, Unary},
    tensor::DType,
};

/// f(x), by definition.
pub fn unary(unary: Unary, x: f64) -> f64 {
    match unary {
        Unary::Neg => -x,
        Unary::Abs => x.abs(),
        Unary::Sqrt => x.sqrt(),
        Unary::Rsqrt => 1.0 / x.sqrt(),
        Unary::Reciprocal => 1.0 / x,
        Unary::Exp => x.exp(),
        Unary::Expm1 => x.exp_m1(),
        Unary::Log => x.ln(),
        Unary::Log1p => x.ln_1p(),
        Unary::Sin => x.sin(),
        Unary::Cos => x.cos(),
        Unary::Erf => erf(x),
        Unary::Sign => {
            // Neither above nor below zero: PyTorch calls the sign of NaN 0.
            if x == 0.0 || x.is_nan() { 0.0 } else { x.signum() }
        }
        Unary::Floor => x.floor(),
        Unary::Ceil => x.ceil(),
        Unary::Round => x.round_ties_even(),
        Unary::Trunc => x.trunc(),
        Unary::Relu => clamp(x, 0.0, f64::INFINITY),
        Unary::LeakyRelu { slope } => {
            if x > 0.0 {
                x
            } else {
                slope * x
            }
        }
        Unary::Elu { alpha } => {
            if x > 0.0 {
                x
            } else {
                alpha * x.exp_m1()
            }
        }
        Unary::Gelu => 0.5 * x * erfc(-x * std::f64::consts::FRAC_1_SQRT_2),
        Unary::GeluTanh => 0.5 * x * (1.0 + gelu_inner(x).tanh()),
        Unary::Silu => x * sigmoid(x),
        Unary::Sigmoid => sigmoid(x),
        Unary::Tanh => x.tanh(),
        Unary::Softplus { beta, threshold } => {
            if beta * x > threshold {
                x
            } else {
                (beta * x).exp().ln_1p() / beta
            }
        }
        Unary::Hardswish => x * clamp(x + 3.0, 0.0, 6.0) / 6.0,
        Unary::Hardsigmoid => clamp(x + 3.0, 0.0, 6.0) / 6.0,
        Unary::Hardtanh { min, max } => clamp(x, min, max),
        Unary::AddScalar { value } => x + value,
        Unary::MulScalar { value } => x * value,
        Unary::PowScalar { exponent } => x.powf(exponent),
    }
}

/// gy·f′(x).
pub fn gradient(unary: Unary, x: f64, gy: f64) -> f64 {
    let inside = |min: f64, max: f64| if x > min && x < max { gy } else { 0.0 };
    match unary {
        Unary::Neg => -gy,
        Unary::Abs => {
            if x > 0.0 {
                gy
            } else if x < 0.0 {
                -gy
            } else {
                0.0 * gy
            }
        }
        Unary::Sqrt => gy / (2.0 * x.sqrt()),
        Unary::Rsqrt => -0.5 * gy / (x * x.sqrt()),
        Unary::Reciprocal => -gy / (x * x),
        Unary::Exp | Unary::Expm1 => gy * x.exp(),
        Unary::Sign | Unary::Floor | Unary::Ceil | Unary::Round | Unary::Trunc => 0.0,
        Unary::Log => gy / x,
        Unary::Log1p => gy / (1.0 + x),
        Unary::Sin => gy * x.cos(),
        Unary::Cos => -gy * x.sin(),
        Unary::Erf => gy * std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp(),
        Unary::Relu => {
            if x <= 0.0 {
                0.0
            } else {
                gy
            }
        }
        Unary::LeakyRelu { slope } => {
            if x > 0.0 {
                gy
            } else {
                slope * gy
            }
        }
        Unary::Elu { alpha } => {
            if x > 0.0 {
                gy
            } else {
                gy * alpha * x.exp()
            }
        }
        Unary::Gelu => {
            let density = (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
            gy * (0.5 * erfc(-x * std::f64::consts::FRAC_1_SQRT_2) + x * density)
        }
        Unary::GeluTanh => {
            let t = gelu_inner(x).tanh();
            let slope = GELU_SCALE * (1.0 + 3.0 * 0.044715 * x * x);
            gy * (0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * slope)
        }
        Unary::Silu => gy * sigmoid(x) * (1.0 + x * (1.0 - sigmoid(x))),
        Unary::Sigmoid => gy * sigmoid(x) * (1.0 - sigmoid(x)),
        Unary::Tanh => gy * (1.0 - x.tanh().powi(2)),
        Unary::Softplus { beta, threshold } => {
            if beta * x > threshold {
                gy
            } else {
                gy * sigmoid(beta * x)
            }
        }
        Unary::Hardswish => {
            if x <= -3.0 {
                0.0
            } else if x < 3.0 {
                gy * (x / 3.0 + 0.5)
            } else {
                gy
            }
        }
        Unary::Hardsigmoid => inside(-3.0, 3.0) / 6.0,
        Unary::Hardtanh { min, max } => inside(min, max),
        Unary::AddScalar { .. } => gy,
        Unary::MulScalar { value } => gy * value,
        Unary::PowScalar { exponent } => {
            if exponent == 0.0 {
                0.0
            } else {
                gy * exponent * x.powf(exponent - 1.0)
            }
        }
    }
}

pub(super) fn binary(binary: Binary, a: f64, b: f64) -> f64 {
    let nan = a.is_nan() || b.is_nan();
    match binary {
        Binary::Add => a + b,
        Binary::Sub => a - b,
        Binary::Mul => a * b,
        Binary::Div => a / b,
        Binary::Pow => a.powf(b),
        Binary::Maximum => {
            if nan {
                f64::NAN
            } else {
                a.max(b)
            }
        }
        Binary::Minimum => {
            if nan {
                f64::NAN
            } else {
                a.min(b)
            }
        }
    }
}

/// Integers divide towards zero, and by zero to zero, as on a device.
pub(super) fn whole_quotient(quotient: f64) -> f64 {
    if quotient.is_finite() { quotient.trunc() } else { 0.0 }
}

pub(super) fn compare(compare: Compare, a: f64, b: f64) -> bool {
    match compare {
        Compare::Eq => a == b,
        Compare::Ne => a != b,
        Compare::Lt => a < b,
        Compare::Le => a <= b,
        Compare::Gt => a > b,
        Compare::Ge => a >= b,
    }
}

/// The value rounded to what a type can hold.
pub(super) fn cast(dtype: DType, x: f64) -> f64 {
    match dtype {
        DType::F64 => x,
        DType::F32 => f64::from(x as f32),
        DType::BF16 => bf16::from_f64(x).to_f64(),
        DType::F16 => f16::from_f64(x).to_f64(),
        DType::I64 => x as i64 as f64,
        DType::I32 => f64::from(x as i32),
        DType::U8 => f64::from(x as u8),
        DType::Bool => f64::from(u8::from(x != 0.0)),
    }
}

const GELU_SCALE: f64 = 0.797_884_560_802_865_4; // √(2/π)

fn gelu_inner(x: f64) -> f64 {
    GELU_SCALE * (x + 0.044715 * x * x * x)
}

fn sigmoid(x: f64) -> f64 {
    if x >= 0.0 { 1.0 / (1.0 + (-x).exp()) } else { x.exp() / (1.0 + x.exp()) }
}

/// Clamps and lets NaN through, which `f64::max` would swallow.
fn clamp(x: f64, min: f64, max: f64) -> f64 {
    // Where the bounds cross, the upper one wins, as in PyTorch.
    let x = if x < min { min } else { x };
    if x > max { max } else { x }
}

/// The error function, by its Maclaurin series near 0 and 1 − erfc elsewhere.
pub(super) fn erf(x: f64) -> f64 {
    if x.abs() < 2.0 {
        let (mut term, mut sum, mut n) = (x, x, 0.0);
        while term.abs() > 1e-18 * sum.abs() {
            n += 1.0;
            term *= -x * x / n;
            sum += term / (2.0 * n + 1.0);
        }
        return std::f64::consts::FRAC_2_SQRT_PI * sum;
    }
    1.0 - erfc(x)
}

/// The complementary error function, by its continued fraction for large arguments.
fn erfc(x: f64) -> f64 {
    if x.is_nan() {
        return x;
    }
    if x < 0.0 {
        return 2.0 - erfc(-x);
    }
    if x < 2.0 {
        return 1.0 - erf(x);
    }
    let fraction = (1..=120).rev().fold(x, |tail, k| x + 0.5 * f64::from(k) / tail);
    (-x * x).exp() / (fraction * std::f64::consts::PI.sqrt())
}
