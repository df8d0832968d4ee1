//! Softmax and its logarithm along one dimension, forward and backward.

use super::{
    executable::Run,
    memory::Plain,
    real::Real,
    simd::vectorised,
    sum::{sum_of, sum_of_both},
};

/// Rows along `dim`: how many elements, and how far apart.
fn rows(run: &Run<'_>, dim: usize) -> (usize, usize) {
    let shape = run.step.outputs[0].layout.shape();
    (shape[dim], shape[dim + 1..].iter().product())
}

pub(super) fn forward<T: Real + Plain>(run: &Run<'_>, dim: usize, log: bool) {
    let x = run.memory.read::<T>(&run.step.inputs[0]);
    let (len, inner) = rows(run, dim);
    run.pieces(run.memory.write::<T>(&run.step.outputs[0]), len * inner, |start, piece| {
        let x = &x[start..start + piece.len()];
        vectorised(
            #[inline(always)]
            || {
                let block = (len * inner).max(1);
                for (x, y) in x.chunks_exact(block).zip(piece.chunks_exact_mut(block)) {
                    if inner == 1 {
                        row(x, y, log);
                    } else {
                        (0..inner)
                            .for_each(|column| strided_row(&x[column..], &mut y[column..], len, inner, log));
                    }
                }
            },
        );
    });
}

/// The largest number of a row. One that is none is passed over: the sum of exponentials has it.
#[inline(always)]
fn largest_of<T: Real>(x: &[T]) -> T {
    const LANES: usize = 32;
    #[inline(always)]
    fn larger<T: Real>(lane: &mut T, x: T) {
        *lane = if x > *lane { x } else { *lane };
    }
    let (wide, rest) = x.as_chunks::<LANES>();
    let mut lanes = [T::NEG_INFINITY; LANES];
    for x in wide {
        lanes.iter_mut().zip(x).for_each(|(lane, &x)| larger(lane, x));
    }
    let mut largest = T::NEG_INFINITY;
    lanes.iter().chain(rest).for_each(|&x| larger(&mut largest, x));
    largest
}

#[inline(always)]
fn row<T: Real>(x: &[T], y: &mut [T], log: bool) {
    let largest = largest_of(x);
    y.iter_mut().zip(x).for_each(|(y, &x)| *y = (x - largest).exp());
    let total = sum_of(
        y,
        #[inline(always)]
        |v| v,
    );
    if log {
        let shift = largest + T::of(total.ln());
        y.iter_mut().zip(x).for_each(|(y, &x)| *y = x - shift);
    } else {
        let scale = T::of(1.0 / total);
        y.iter_mut().for_each(|y| *y = *y * scale);
    }
}

fn strided_row<T: Real>(x: &[T], y: &mut [T], len: usize, step: usize, log: bool) {
    let at = |n: usize| x[n * step];
    let largest = (0..len).map(at).fold(T::NEG_INFINITY, |m, v| if v > m { v } else { m });
    let total = (0..len).map(|n| (at(n) - largest).exp().to_f64()).sum::<f64>();
    for n in 0..len {
        let shifted = at(n) - largest;
        y[n * step] = if log { shifted - T::of(total.ln()) } else { shifted.exp() * T::of(1.0 / total) };
    }
}

pub(super) fn backward<T: Real + Plain>(run: &Run<'_>, dim: usize, log: bool) {
    let [y, gy] = [0, 1].map(|i| run.memory.read::<T>(&run.step.inputs[i]));
    let (len, inner) = rows(run, dim);
    run.pieces(run.memory.write::<T>(&run.step.outputs[0]), len * inner, |start, piece| {
        let (y, gy) = (&y[start..start + piece.len()], &gy[start..start + piece.len()]);
        vectorised(
            #[inline(always)]
            || {
                let block = (len * inner).max(1);
                let blocks = y.chunks_exact(block).zip(gy.chunks_exact(block));
                for ((y, gy), gx) in blocks.zip(piece.chunks_exact_mut(block)) {
                    if inner == 1 {
                        row_grad(y, gy, gx, log);
                    } else {
                        for column in 0..inner {
                            strided_row_grad(&y[column..], &gy[column..], &mut gx[column..], len, inner, log);
                        }
                    }
                }
            },
        );
    });
}

#[inline(always)]
fn row_grad<T: Real>(y: &[T], gy: &[T], gx: &mut [T], log: bool) {
    if log {
        let total = T::of(sum_of(
            gy,
            #[inline(always)]
            |v| v,
        ));
        gx.iter_mut().zip(y).zip(gy).for_each(|((gx, &y), &gy)| *gx = gy - y.exp() * total);
    } else {
        let dot = T::of(sum_of_both(
            y,
            gy,
            #[inline(always)]
            |y, gy| y * gy,
        ));
        gx.iter_mut().zip(y).zip(gy).for_each(|((gx, &y), &gy)| *gx = y * (gy - dot));
    }
}

fn strided_row_grad<T: Real>(y: &[T], gy: &[T], gx: &mut [T], len: usize, step: usize, log: bool) {
    let total = (0..len).map(|n| if log { gy[n * step] } else { gy[n * step] * y[n * step] });
    let total = T::of(total.map(T::to_f64).sum());
    for n in 0..len {
        let (y, gy) = (y[n * step], gy[n * step]);
        gx[n * step] = if log { gy - y.exp() * total } else { y * (gy - total) };
    }
}
