//! Scalar functions in a form that vectorises, and their application to slices.
//!
//! Polynomials are of fused multiplications and additions: one instruction where there are vectors, a call without.
//!
//! In `f64`, used by tests and by kernels exported in double precision, the graph layer's own definitions
//! serve: accuracy counts there, not speed.

use std::f32::consts;

use super::simd::vectorised;
use crate::graph::{Unary, reference};

/// eˣ within 2 ulp: range reduction by ln 2 in two parts and a polynomial of degree 6.
///
/// Source: the Cephes library's `expf`.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    const HIGH: f32 = 88.722_83;
    const LOW: f32 = -104.0;
    let clamped = x.clamp(LOW, HIGH);
    let n = clamped.mul_add(consts::LOG2_E, 0.5).floor();
    let r = n.mul_add(-0.693_359_4, clamped);
    let r = n.mul_add(2.121_944_4e-4, r);
    let mut p = 1.987_569_1e-4_f32;
    p = p.mul_add(r, 1.398_2e-3);
    p = p.mul_add(r, 8.333_452e-3);
    p = p.mul_add(r, 4.166_579_6e-2);
    p = p.mul_add(r, 1.666_666_5e-1);
    p = p.mul_add(r, 0.5);
    let y = (p * r).mul_add(r, r) + 1.0;
    // In two steps, since 2ⁿ alone may leave the normal range on either side.
    let half = (n * 0.5).floor();
    let scaled = y * power_of_two(half) * power_of_two(n - half);
    if x > HIGH {
        f32::INFINITY
    } else if x.is_nan() {
        x
    } else {
        scaled
    }
}

/// 2ⁿ for a whole n within the normal range.
///
/// A cast to an integer would be done number by number, for what it makes of numbers that do not fit. Beside 1.5·2²³ the
/// exponent stands in the lowest bits of the sum.
#[inline(always)]
fn power_of_two(n: f32) -> f32 {
    const BIASED: f32 = 12_582_912.0 + 127.0;
    f32::from_bits((n + BIASED).to_bits() << 23)
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// tanh x: a rational function of degree 13 over 6 within ±7.9, ±1 beyond.
///
/// Source: the coefficients that Eigen and XLA use for single precision.
#[inline(always)]
fn tanh(x: f32) -> f32 {
    const BOUND: f32 = 7.905_311;
    let c = x.clamp(-BOUND, BOUND);
    let z = c * c;
    let mut p = -2.760_768_5e-16_f32;
    p = p.mul_add(z, 2.000_188e-13);
    p = p.mul_add(z, -8.604_672e-11);
    p = p.mul_add(z, 5.122_297_1e-8);
    p = p.mul_add(z, 1.485_722_35e-5);
    p = p.mul_add(z, 6.372_619_3e-4);
    p = p.mul_add(z, 4.893_524_6e-3);
    let mut q = 1.198_258_4e-6_f32;
    q = q.mul_add(z, 1.185_347e-4);
    q = q.mul_add(z, 2.268_434_6e-3);
    q = q.mul_add(z, 4.893_525e-3);
    if x.abs() < 4e-4 || x.is_nan() { x } else { c * p / q }
}

/// The error function: a rational function within ±4, ±1 beyond.
///
/// Source: the coefficients that Eigen and XLA use for single precision.
#[inline(always)]
fn erf(x: f32) -> f32 {
    let c = x.clamp(-4.0, 4.0);
    let z = c * c;
    let mut p = -2.726_142_3e-10_f32;
    p = p.mul_add(z, 2.770_681_4e-8);
    p = p.mul_add(z, -2.101_024e-6);
    p = p.mul_add(z, -5.692_506_4e-5);
    p = p.mul_add(z, -7.349_906_3e-4);
    p = p.mul_add(z, -2.954_6e-3);
    p = p.mul_add(z, -1.609_603_3e-2);
    let mut q = -1.456_607_2e-5_f32;
    q = q.mul_add(z, -2.133_740_6e-4);
    q = q.mul_add(z, -1.682_827e-3);
    q = q.mul_add(z, -7.373_329e-3);
    q = q.mul_add(z, -1.426_473_9e-2);
    if x.is_nan() { x } else { c * p / q }
}

#[inline(always)]
fn clamp(x: f32, min: f32, max: f32) -> f32 {
    // Where the bounds cross, the upper one wins, as in PyTorch.
    let x = if x < min { min } else { x };
    if x > max { max } else { x }
}

const GELU_SCALE: f32 = 0.797_884_6;
const GELU_CUBE: f32 = 0.044_715;

#[inline(always)]
fn map(x: &[f32], y: &mut [f32], f: impl Fn(f32) -> f32) {
    vectorised(
        #[inline(always)]
        || {
            for (y, &x) in y.iter_mut().zip(x) {
                *y = f(x);
            }
        },
    );
}

#[inline(always)]
fn map_grad(x: &[f32], gy: &[f32], gx: &mut [f32], f: impl Fn(f32, f32) -> f32) {
    vectorised(
        #[inline(always)]
        || {
            for ((gx, &x), &gy) in gx.iter_mut().zip(x).zip(gy) {
                *gx = f(x, gy);
            }
        },
    );
}

/// y = f(x).
pub(super) fn unary_f32(unary: Unary, x: &[f32], y: &mut [f32]) {
    match unary {
        Unary::Neg => map(
            x,
            y,
            #[inline(always)]
            |x| -x,
        ),
        Unary::Abs => map(
            x,
            y,
            #[inline(always)]
            |x| x.abs(),
        ),
        Unary::Sqrt => map(
            x,
            y,
            #[inline(always)]
            |x| x.sqrt(),
        ),
        Unary::Rsqrt => map(
            x,
            y,
            #[inline(always)]
            |x| 1.0 / x.sqrt(),
        ),
        Unary::Reciprocal => map(
            x,
            y,
            #[inline(always)]
            |x| 1.0 / x,
        ),
        Unary::Exp => map(x, y, exp),
        Unary::Expm1 => map(x, y, f32::exp_m1),
        Unary::Sign => by_definition(unary, x, y),
        Unary::Floor => map(x, y, f32::floor),
        Unary::Ceil => map(x, y, f32::ceil),
        Unary::Round => map(x, y, f32::round_ties_even),
        Unary::Trunc => map(x, y, f32::trunc),
        Unary::Log => map(x, y, f32::ln),
        Unary::Log1p => map(x, y, f32::ln_1p),
        Unary::Sin => map(x, y, f32::sin),
        Unary::Cos => map(x, y, f32::cos),
        Unary::Erf => map(x, y, erf),
        Unary::Relu => map(
            x,
            y,
            #[inline(always)]
            |x| if x < 0.0 { 0.0 } else { x },
        ),
        Unary::LeakyRelu { slope } => {
            let slope = slope as f32;
            map(
                x,
                y,
                #[inline(always)]
                |x| if x > 0.0 { x } else { slope * x },
            );
        }
        Unary::Elu { alpha } => {
            let alpha = alpha as f32;
            map(x, y, |x| if x > 0.0 { x } else { alpha * x.exp_m1() });
        }
        Unary::Gelu => {
            map(
                x,
                y,
                #[inline(always)]
                |x| 0.5 * x * (1.0 + erf(x * consts::FRAC_1_SQRT_2)),
            );
        }
        Unary::GeluTanh => map(
            x,
            y,
            #[inline(always)]
            |x| 0.5 * x * (1.0 + tanh(GELU_SCALE * (x + GELU_CUBE * x * x * x))),
        ),
        Unary::Silu => map(
            x,
            y,
            #[inline(always)]
            |x| x * sigmoid(x),
        ),
        Unary::Sigmoid => map(x, y, sigmoid),
        Unary::Tanh => map(x, y, tanh),
        Unary::Softplus { .. } => by_definition(unary, x, y),
        Unary::Hardswish => map(
            x,
            y,
            #[inline(always)]
            |x| x * clamp(x + 3.0, 0.0, 6.0) / 6.0,
        ),
        Unary::Hardsigmoid => map(
            x,
            y,
            #[inline(always)]
            |x| clamp(x + 3.0, 0.0, 6.0) / 6.0,
        ),
        Unary::Hardtanh { min, max } => {
            let (min, max) = (min as f32, max as f32);
            map(
                x,
                y,
                #[inline(always)]
                |x| clamp(x, min, max),
            );
        }
        Unary::AddScalar { value } => {
            let value = value as f32;
            map(
                x,
                y,
                #[inline(always)]
                |x| x + value,
            );
        }
        Unary::MulScalar { value } => {
            let value = value as f32;
            map(
                x,
                y,
                #[inline(always)]
                |x| x * value,
            );
        }
        Unary::PowScalar { exponent } => match exponent {
            2.0 => map(
                x,
                y,
                #[inline(always)]
                |x| x * x,
            ),
            3.0 => map(
                x,
                y,
                #[inline(always)]
                |x| x * x * x,
            ),
            0.5 => map(
                x,
                y,
                #[inline(always)]
                |x| x.sqrt(),
            ),
            -1.0 => map(
                x,
                y,
                #[inline(always)]
                |x| 1.0 / x,
            ),
            _ => {
                let exponent = exponent as f32;
                map(x, y, |x| x.powf(exponent));
            }
        },
    }
}

/// gx = gy·f′(x).
pub(super) fn unary_grad_f32(unary: Unary, x: &[f32], gy: &[f32], gx: &mut [f32]) {
    match unary {
        Unary::Relu => map_grad(
            x,
            gy,
            gx,
            #[inline(always)]
            |x, gy| if x <= 0.0 { 0.0 } else { gy },
        ),
        Unary::LeakyRelu { slope } => {
            let slope = slope as f32;
            map_grad(
                x,
                gy,
                gx,
                #[inline(always)]
                |x, gy| if x > 0.0 { gy } else { slope * gy },
            );
        }
        Unary::Gelu => map_grad(
            x,
            gy,
            gx,
            #[inline(always)]
            |x, gy| {
                let density = exp(-0.5 * x * x) * 0.398_942_3;
                gy * (0.5 * (1.0 + erf(x * consts::FRAC_1_SQRT_2)) + x * density)
            },
        ),
        Unary::GeluTanh => map_grad(
            x,
            gy,
            gx,
            #[inline(always)]
            |x, gy| {
                let t = tanh(GELU_SCALE * (x + GELU_CUBE * x * x * x));
                let slope = GELU_SCALE * (1.0 + 3.0 * GELU_CUBE * x * x);
                gy * (0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * slope)
            },
        ),
        Unary::Silu => map_grad(
            x,
            gy,
            gx,
            #[inline(always)]
            |x, gy| {
                let s = sigmoid(x);
                gy * s * (1.0 + x * (1.0 - s))
            },
        ),
        Unary::Sigmoid => map_grad(
            x,
            gy,
            gx,
            #[inline(always)]
            |x, gy| {
                let s = sigmoid(x);
                gy * s * (1.0 - s)
            },
        ),
        Unary::Tanh => map_grad(
            x,
            gy,
            gx,
            #[inline(always)]
            |x, gy| {
                let t = tanh(x);
                gy * (1.0 - t * t)
            },
        ),
        Unary::Hardtanh { min, max } => {
            let (min, max) = (min as f32, max as f32);
            map_grad(
                x,
                gy,
                gx,
                #[inline(always)]
                |x, gy| if x > min && x < max { gy } else { 0.0 },
            );
        }
        Unary::Sqrt => map_grad(
            x,
            gy,
            gx,
            #[inline(always)]
            |x, gy| gy / (2.0 * x.sqrt()),
        ),
        Unary::Rsqrt => map_grad(
            x,
            gy,
            gx,
            #[inline(always)]
            |x, gy| -0.5 * gy / (x * x.sqrt()),
        ),
        Unary::PowScalar { exponent: 2.0 } => map_grad(
            x,
            gy,
            gx,
            #[inline(always)]
            |x, gy| 2.0 * x * gy,
        ),
        _ => {
            for ((gx, &x), &gy) in gx.iter_mut().zip(x).zip(gy) {
                *gx = reference::unary_gradient(unary, f64::from(x), f64::from(gy)) as f32;
            }
        }
    }
}

fn by_definition(unary: Unary, x: &[f32], y: &mut [f32]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y = reference::unary_value(unary, f64::from(x)) as f32;
    }
}

/// y = f(x) in double precision.
pub(super) fn unary_f64(unary: Unary, x: &[f64], y: &mut [f64]) {
    y.iter_mut().zip(x).for_each(|(y, &x)| *y = reference::unary_value(unary, x));
}

/// gx = gy·f′(x) in double precision.
pub(super) fn unary_grad_f64(unary: Unary, x: &[f64], gy: &[f64], gx: &mut [f64]) {
    for ((gx, &x), &gy) in gx.iter_mut().zip(x).zip(gy) {
        *gx = reference::unary_gradient(unary, x, gy);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worst(f: impl Fn(f32) -> f32, truth: impl Fn(f64) -> f64, low: f32, high: f32) -> f64 {
        (0..200_000)
            .map(|i| low + (high - low) * i as f32 / 200_000.0)
            .map(|x| {
                let truth = truth(x.into());
                (f64::from(f(x)) - truth).abs() / truth.abs().max(1e-30)
            })
            .fold(0.0, f64::max)
    }

    #[test]
    fn polynomials_are_as_good_as_single_precision() {
        assert!(worst(exp, f64::exp, -87.0, 88.7) < 3e-7);
        assert!(worst(tanh, f64::tanh, -10.0, 10.0) < 5e-7);
        let erf64 = |x| reference::unary_value(Unary::Erf, x);
        assert!(worst(erf, erf64, -5.0, 5.0) < 1e-6);
    }

    #[test]
    fn extremes_are_what_the_standard_library_gives() {
        for x in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, 89.0, -200.0, 1e30, -1e30] {
            let same = |a: f32, b: f32| (a.is_nan() && b.is_nan()) || (a - b).abs() <= 1e-6 || a == b;
            assert!(same(exp(x), x.exp()), "exp {x}: {}", exp(x));
            assert!(same(tanh(x), x.tanh()), "tanh {x}: {}", tanh(x));
            assert!(erf(x).is_nan() == x.is_nan());
        }
    }
}
