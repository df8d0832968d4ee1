//! Element by element: activations, arithmetic with broadcasting, comparisons, casts, dropout.

use half::{bf16, f16};

use super::{
    executable::Run,
    memory::{Plain, Strided},
    movement::{by_size, gather},
    real::Real,
    simd::vectorised,
    walk::{Span, Walk},
};
use crate::{
    backend::plan::Place,
    graph::{Binary, Compare, Unary, keep},
    tensor::DType,
};

/// Elements that are gathered at a time where an operand is not contiguous.
const CHUNK: usize = 512;

/// An operand as contiguous chunks of the output's order.
struct Chunks<'a, T> {
    from: Strided<'a, T>,
    walk: Walk<1>,
    contiguous: bool,
}

impl<'a, T: Plain> Chunks<'a, T> {
    fn new(run: &Run<'a>, place: &'a Place) -> Self {
        let walk = Walk::new(place.layout.shape(), [&place.layout]);
        Self { from: run.memory.read_strided(place), walk, contiguous: place.layout.is_contiguous() }
    }

    fn get<'b>(&'b self, start: usize, buffer: &'b mut [T]) -> &'b [T] {
        if self.contiguous {
            return &self.from.data[start..start + buffer.len()];
        }
        gather(self.from, &self.walk, start, buffer);
        buffer
    }

    /// How much to take at a time.
    fn step(&self, len: usize) -> usize {
        if self.contiguous { len.max(1) } else { CHUNK }
    }
}

pub(super) fn unary<T: Real + Plain>(run: &Run<'_>, unary: Unary) {
    let x = Chunks::<T>::new(run, &run.step.inputs[0]);
    run.pieces(run.memory.write::<T>(&run.step.outputs[0]), 1, |start, piece| {
        let step = x.step(piece.len());
        for (n, y) in piece.chunks_mut(step).enumerate() {
            if x.contiguous {
                T::unary(unary, &x.from.data[start + n * step..][..y.len()], y);
            } else {
                let mut buffer = [T::ZERO; CHUNK];
                T::unary(unary, x.get(start + n * step, &mut buffer[..y.len()]), y);
            }
        }
    });
}

pub(super) fn unary_grad<T: Real + Plain>(run: &Run<'_>, unary: Unary) {
    let x = Chunks::<T>::new(run, &run.step.inputs[0]);
    let gy = Chunks::<T>::new(run, &run.step.inputs[1]);
    run.pieces(run.memory.write::<T>(&run.step.outputs[0]), 1, |start, piece| {
        for (n, gx) in piece.chunks_mut(CHUNK).enumerate() {
            let (mut a, mut b) = ([T::ZERO; CHUNK], [T::ZERO; CHUNK]);
            let at = start + n * CHUNK;
            T::unary_grad(unary, x.get(at, &mut a[..gx.len()]), gy.get(at, &mut b[..gx.len()]), gx);
        }
    });
}

/// Fills a result from two operands broadcast to its shape.
#[inline(always)]
fn zip<A: Plain, Y: Plain>(run: &Run<'_>, f: impl Fn(A, A) -> Y + Sync) {
    let [a, b] = [&run.step.inputs[0], &run.step.inputs[1]];
    let out = &run.step.outputs[0];
    let walk = Walk::new(out.layout.shape(), [&a.layout, &b.layout]);
    let (a, b) = (run.memory.read_strided::<A>(a).data, run.memory.read_strided::<A>(b).data);
    run.pieces(run.memory.write::<Y>(out), 1, |start, piece| {
        let steps = walk.steps();
        vectorised(
            #[inline(always)]
            || {
                walk.spans(
                    start,
                    piece.len(),
                    #[inline(always)]
                    |Span { done, len, firsts: [i, j] }| {
                        let y = &mut piece[done..done + len];
                        match steps {
                            [1, 1] => {
                                for ((y, &a), &b) in y.iter_mut().zip(&a[i..i + len]).zip(&b[j..j + len]) {
                                    *y = f(a, b);
                                }
                            }
                            [1, 0] => {
                                let b = b[j];
                                y.iter_mut().zip(&a[i..i + len]).for_each(|(y, &a)| *y = f(a, b));
                            }
                            [0, 1] => {
                                let a = a[i];
                                y.iter_mut().zip(&b[j..j + len]).for_each(|(y, &b)| *y = f(a, b));
                            }
                            [s, t] => {
                                y.iter_mut()
                                    .enumerate()
                                    .for_each(|(n, y)| *y = f(a[i + n * s], b[j + n * t]));
                            }
                        }
                    },
                );
            },
        );
    });
}

pub(super) fn binary<T: Real + Plain>(run: &Run<'_>, binary: Binary) {
    if run.step.outputs[0].dtype == DType::I64 {
        return match binary {
            Binary::Add => zip(run, |a: i64, b: i64| a.wrapping_add(b)),
            Binary::Sub => zip(run, |a: i64, b: i64| a.wrapping_sub(b)),
            Binary::Mul => zip(run, |a: i64, b: i64| a.wrapping_mul(b)),
            Binary::Div => zip(run, |a: i64, b: i64| a.checked_div(b).unwrap_or(0)),
            Binary::Pow => zip(run, |a: i64, b: i64| a.wrapping_pow(u32::try_from(b).unwrap_or(0))),
            Binary::Maximum => zip(run, |a: i64, b: i64| a.max(b)),
            Binary::Minimum => zip(run, |a: i64, b: i64| a.min(b)),
        };
    }
    match binary {
        Binary::Add => zip(run, add::<T>),
        Binary::Sub => zip(run, sub::<T>),
        Binary::Mul => zip(run, mul::<T>),
        Binary::Div => zip(run, div::<T>),
        Binary::Pow => zip(run, pow::<T>),
        Binary::Maximum => zip(run, maximum::<T>),
        Binary::Minimum => zip(run, minimum::<T>),
    }
}

/// The same for two rows of elements as long as the result.
pub(super) fn binary_rows<T: Real>(binary: Binary, a: &[T], b: &[T], y: &mut [T]) {
    #[inline(always)]
    fn each<T: Real>(a: &[T], b: &[T], y: &mut [T], f: impl Fn(T, T) -> T) {
        vectorised(
            #[inline(always)]
            || y.iter_mut().zip(a).zip(b).for_each(|((y, &a), &b)| *y = f(a, b)),
        );
    }
    match binary {
        Binary::Add => each(a, b, y, add),
        Binary::Sub => each(a, b, y, sub),
        Binary::Mul => each(a, b, y, mul),
        Binary::Div => each(a, b, y, div),
        Binary::Pow => each(a, b, y, pow),
        Binary::Maximum => each(a, b, y, maximum),
        Binary::Minimum => each(a, b, y, minimum),
    }
}

// The formulas of binary operations, each in one place. They are inlined into loops that are compiled for several processors.

#[inline(always)]
fn add<T: Real>(a: T, b: T) -> T {
    a + b
}

#[inline(always)]
fn sub<T: Real>(a: T, b: T) -> T {
    a - b
}

#[inline(always)]
fn mul<T: Real>(a: T, b: T) -> T {
    a * b
}

#[inline(always)]
fn div<T: Real>(a: T, b: T) -> T {
    a / b
}

#[inline(always)]
fn pow<T: Real>(a: T, b: T) -> T {
    a.powf(b)
}

#[inline(always)]
fn maximum<T: Real>(a: T, b: T) -> T {
    if a > b || a.is_nan() { a } else { b }
}

#[inline(always)]
fn minimum<T: Real>(a: T, b: T) -> T {
    if a < b || a.is_nan() { a } else { b }
}

pub(super) fn compare(run: &Run<'_>, compare: Compare) {
    fn by<T: Plain + PartialOrd>(run: &Run<'_>, compare: Compare) {
        match compare {
            Compare::Eq => zip(
                run,
                #[inline(always)]
                |a: T, b: T| u8::from(a == b),
            ),
            Compare::Ne => zip(
                run,
                #[inline(always)]
                |a: T, b: T| u8::from(a != b),
            ),
            Compare::Lt => zip(
                run,
                #[inline(always)]
                |a: T, b: T| u8::from(a < b),
            ),
            Compare::Le => zip(
                run,
                #[inline(always)]
                |a: T, b: T| u8::from(a <= b),
            ),
            Compare::Gt => zip(
                run,
                #[inline(always)]
                |a: T, b: T| u8::from(a > b),
            ),
            Compare::Ge => zip(
                run,
                #[inline(always)]
                |a: T, b: T| u8::from(a >= b),
            ),
        }
    }
    by_size!(run.step.inputs[0].dtype, T => by::<T>(run, compare));
}

pub(super) fn choose(run: &Run<'_>) {
    let [condition, a, b] = [0, 1, 2].map(|i| &run.step.inputs[i]);
    let out = &run.step.outputs[0];
    let walk = Walk::new(out.layout.shape(), [&condition.layout, &a.layout, &b.layout]);
    let steps = walk.steps();
    let holds = run.memory.read_strided::<u8>(condition).data;
    by_size!(out.dtype, T => {
        let (a, b) = (run.memory.read_strided::<T>(a).data, run.memory.read_strided::<T>(b).data);
        run.pieces(run.memory.write::<T>(out), 1, |start, piece| {
            walk.spans(start, piece.len(), |Span { done, len, firsts: [c, i, j] }| {
                for (n, y) in piece[done..done + len].iter_mut().enumerate() {
                    let holds = holds[c + n * steps[0]] != 0;
                    *y = if holds { a[i + n * steps[1]] } else { b[j + n * steps[2]] };
                }
            });
        });
    });
}

/// A value read as `f64` or, from 64-bit integers, without loss as `i64`.
#[derive(Clone, Copy)]
enum Number {
    Real(f64),
    Whole(i64),
}

impl Number {
    fn real(self) -> f64 {
        match self {
            Self::Real(value) => value,
            Self::Whole(value) => value as f64,
        }
    }

    fn whole(self) -> i64 {
        match self {
            Self::Real(value) => value as i64,
            Self::Whole(value) => value,
        }
    }
}

pub(super) fn cast(run: &Run<'_>) {
    match run.step.inputs[0].dtype {
        DType::F32 => cast_from(run, |v: f32| Number::Real(v.into())),
        DType::F64 => cast_from(run, |v: f64| Number::Real(v)),
        DType::BF16 => cast_from(run, |v: u16| Number::Real(bf16::from_bits(v).to_f64())),
        DType::F16 => cast_from(run, |v: u16| Number::Real(f16::from_bits(v).to_f64())),
        DType::I64 => cast_from(run, |v: i64| Number::Whole(v)),
        DType::I32 => cast_from(run, |v: i32| Number::Whole(v.into())),
        DType::U8 => cast_from(run, |v: u8| Number::Whole(v.into())),
        DType::Bool => cast_from(run, |v: u8| Number::Whole((v != 0).into())),
    }
}

fn cast_from<A: Plain>(run: &Run<'_>, number: impl Fn(A) -> Number + Sync) {
    match run.step.outputs[0].dtype {
        DType::F32 => convert(run, |v| number(v).real() as f32),
        DType::F64 => convert(run, |v| number(v).real()),
        DType::BF16 => convert(run, |v| bf16::from_f64(number(v).real()).to_bits()),
        DType::F16 => convert(run, |v| f16::from_f64(number(v).real()).to_bits()),
        DType::I64 => convert(run, |v| number(v).whole()),
        DType::I32 => convert(run, |v| number(v).whole() as i32),
        DType::U8 => convert(run, |v| number(v).whole() as u8),
        DType::Bool => convert(run, |v| u8::from(number(v).real() != 0.0)),
    }
}

fn convert<A: Plain, Y: Plain>(run: &Run<'_>, f: impl Fn(A) -> Y + Sync) {
    let x = Chunks::<A>::new(run, &run.step.inputs[0]);
    run.pieces(run.memory.write::<Y>(&run.step.outputs[0]), 1, |start, piece| {
        for (n, y) in piece.chunks_mut(CHUNK).enumerate() {
            let mut buffer = [A::default(); CHUNK];
            let x = x.get(start + n * CHUNK, &mut buffer[..y.len()]);
            y.iter_mut().zip(x).for_each(|(y, &x)| *y = f(x));
        }
    });
}

pub(super) fn dropout<T: Real + Plain>(run: &Run<'_>, p: f64, site: u32) {
    let x = run.memory.read::<T>(&run.step.inputs[0]);
    run.pieces(run.memory.write::<T>(&run.step.outputs[0]), 1, |start, piece| {
        let len = piece.len();
        dropout_row((p, site), run.seed, start, &x[start..start + len], piece);
    });
}

/// Dropout of a row of elements, the first of which is the `start`-th of its tensor.
pub(super) fn dropout_row<T: Real>((p, site): (f64, u32), seed: u64, start: usize, x: &[T], y: &mut [T]) {
    let scale = if p < 1.0 { T::of(1.0 / (1.0 - p)) } else { T::ZERO };
    vectorised(
        #[inline(always)]
        || {
            for (n, (y, &x)) in y.iter_mut().zip(x).enumerate() {
                let mask = if keep(seed, site, (start + n) as u64, p) { scale } else { T::ZERO };
                *y = x * mask;
            }
        },
    );
}

pub(super) fn arange(run: &Run<'_>, start: f64, step: f64) {
    let out = &run.step.outputs[0];
    let value = |n: usize| start + step * n as f64;
    match out.dtype {
        DType::F32 => {
            run.memory.write::<f32>(out).iter_mut().enumerate().for_each(|(n, y)| *y = value(n) as f32)
        }
        DType::F64 => run.memory.write::<f64>(out).iter_mut().enumerate().for_each(|(n, y)| *y = value(n)),
        DType::I64 => {
            run.memory.write::<i64>(out).iter_mut().enumerate().for_each(|(n, y)| *y = value(n) as i64)
        }
        DType::I32 => {
            run.memory.write::<i32>(out).iter_mut().enumerate().for_each(|(n, y)| *y = value(n) as i32)
        }
        DType::BF16 => write_bits(run, |n| bf16::from_f64(value(n)).to_bits()),
        DType::F16 => write_bits(run, |n| f16::from_f64(value(n)).to_bits()),
        DType::U8 => {
            run.memory.write::<u8>(out).iter_mut().enumerate().for_each(|(n, y)| *y = value(n) as u8)
        }
        DType::Bool => {
            let holds = |n| u8::from(value(n) != 0.0);
            run.memory.write::<u8>(out).iter_mut().enumerate().for_each(|(n, y)| *y = holds(n));
        }
    }
}

fn write_bits(run: &Run<'_>, value: impl Fn(usize) -> u16) {
    run.memory.write::<u16>(&run.step.outputs[0]).iter_mut().enumerate().for_each(|(n, y)| *y = value(n));
}
