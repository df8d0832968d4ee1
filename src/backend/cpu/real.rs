//! The two types that kernels compute in.

use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};

use super::{
    math,
    product::{block, interleave, interleave_f32},
};
use crate::graph::Unary;

/// `f32` or `f64`.
pub(super) trait Real:
    Copy
    + Send
    + Sync
    + PartialOrd
    + Default
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + 'static
{
    const ZERO: Self;
    const ONE: Self;
    const NEG_INFINITY: Self;

    fn of(value: f64) -> Self;
    fn to_f64(self) -> f64;
    fn is_nan(self) -> bool;
    fn sqrt(self) -> Self;
    fn exp(self) -> Self;
    fn powf(self, exponent: Self) -> Self;

    /// A block of a product: [`block`](block::block).
    ///
    /// # Safety
    /// As there.
    unsafe fn block(a: &[Self], b: &[Self], to: *mut Self, stride: usize, add: bool);

    /// Interleaves rows: [`interleave`].
    fn interleave<const W: usize>(from: &[Self], stride: usize, to: &mut [[Self; W]]);

    /// Whether products by blocks are faster here than others.
    fn has_blocks() -> bool;

    /// y = f(x), element by element.
    fn unary(unary: Unary, x: &[Self], y: &mut [Self]);

    /// gx = gy·f′(x), element by element.
    fn unary_grad(unary: Unary, x: &[Self], gy: &[Self], gx: &mut [Self]);
}

macro_rules! real {
    ($t:ident, $exp:path, $unary:path, $unary_grad:path, $block:path, $interleave:path, $has_blocks:expr) => {
        impl Real for $t {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const NEG_INFINITY: Self = $t::NEG_INFINITY;

            #[inline(always)]
            fn of(value: f64) -> Self {
                value as $t
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                f64::from(self)
            }
            #[inline(always)]
            fn is_nan(self) -> bool {
                $t::is_nan(self)
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                $t::sqrt(self)
            }
            #[inline(always)]
            fn exp(self) -> Self {
                $exp(self)
            }
            #[inline(always)]
            fn powf(self, exponent: Self) -> Self {
                $t::powf(self, exponent)
            }
            #[inline(always)]
            unsafe fn block(a: &[Self], b: &[Self], to: *mut Self, stride: usize, add: bool) {
                // SAFETY: as the caller promises.
                unsafe { $block(a, b, to, stride, add) }
            }
            #[inline(always)]
            fn interleave<const W: usize>(from: &[Self], stride: usize, to: &mut [[Self; W]]) {
                $interleave(from, stride, to);
            }
            fn has_blocks() -> bool {
                $has_blocks
            }
            fn unary(unary: Unary, x: &[Self], y: &mut [Self]) {
                $unary(unary, x, y);
            }
            fn unary_grad(unary: Unary, x: &[Self], gy: &[Self], gx: &mut [Self]) {
                $unary_grad(unary, x, gy, gx);
            }
        }
    };
}

real!(
    f32,
    math::exp,
    math::unary_f32,
    math::unary_grad_f32,
    block::block_f32,
    interleave_f32,
    block::has_registers()
);
real!(f64, f64::exp, math::unary_f64, math::unary_grad_f64, block::block, interleave, false);
