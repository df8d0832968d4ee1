//! Batch normalisation over [N, C, …]: by batch statistics and by running ones, alone and with a chain of operations on elements
//! that comes after it, or before its gradient.
//!
//! A task has some channels, as few as may be: their elements stay in the cache from one look at them to the next, and to what is
//! done with them afterwards, where they fit there.

use std::ops::Range;

use super::{
    chain::{Links, TILE},
    executable::{GRAIN, Run},
    memory::{Plain, Shared},
    real::Real,
    simd::vectorised,
    sum::Sum,
};
use crate::{
    backend::plan::{Joined, Order, Place},
    graph::Op,
    tensor::Shape,
};

/// The most channels that are looked at together.
const TOGETHER: usize = 64;

/// Whether a chain over x's elements is done within a normalisation, on a device of so many threads: where planes are as large
/// as a tile, for shorter ones are jumped over more than read, and where as many threads have something to do as by itself.
pub(super) fn joins(x: &Shape, threads: usize) -> bool {
    let sizes = Sizes::of(x);
    let useful = threads.min(x.elements().div_ceil(GRAIN));
    sizes.plane >= TILE && sizes.channels.div_ceil(sizes.together()) >= useful
}

/// The sizes: images, channels, elements of a plane.
#[derive(Clone, Copy)]
struct Sizes {
    images: usize,
    channels: usize,
    plane: usize,
}

impl Sizes {
    fn of(shape: &Shape) -> Self {
        Self { images: shape[0], channels: shape[1], plane: shape[2..].iter().product() }
    }

    /// Where the planes of one channel lie.
    fn planes(self, channel: usize) -> impl Iterator<Item = Range<usize>> {
        (0..self.images).map(move |n| {
            let start = (n * self.channels + channel) * self.plane;
            start..start + self.plane
        })
    }

    /// Where the planes of some channels lie, cut into pieces of at most a tile: their first elements and how many.
    fn tiles(self, channels: Range<usize>) -> impl Iterator<Item = (usize, usize)> {
        (0..self.images).flat_map(move |n| {
            let first = n * self.channels;
            let end = (first + channels.end) * self.plane;
            let starts = ((first + channels.start) * self.plane..end).step_by(TILE);
            starts.map(move |start| (start, TILE.min(end - start)))
        })
    }

    /// Channels of a task.
    fn together(self) -> usize {
        (GRAIN / (self.images * self.plane).max(1)).max(1)
    }

    /// Elements that share a mean, which is 0 where there are none.
    fn count(self) -> f64 {
        (self.images * self.plane).max(1) as f64
    }
}

/// Runs a function for every group of channels on the step's threads.
fn groups(run: &Run<'_>, sizes: Sizes, f: impl Fn(Range<usize>) + Sync) {
    let together = sizes.together();
    run.tasks(sizes.channels.div_ceil(together), |task| {
        vectorised(
            #[inline(always)]
            || {
                let end = ((task + 1) * together).min(sizes.channels);
                for first in (task * together..end).step_by(TOGETHER) {
                    f(first..(first + TOGETHER).min(end));
                }
            },
        );
    });
}

/// A channel's way from x to y: (x − center)·scale + bias.
#[derive(Clone, Copy)]
struct Affine<T> {
    center: T,
    scale: T,
    bias: T,
}

impl<T: Real> Affine<T> {
    #[inline(always)]
    fn apply(self, x: &[T], y: &mut [T]) {
        y.iter_mut().zip(x).for_each(|(y, &x)| *y = (x - self.center) * self.scale + self.bias);
    }
}

/// Where y goes.
enum To<'l, 'a, T> {
    Memory(Shared<T>),
    /// What comes after it, as that operand.
    Links(&'l Links<'a, T>, usize),
}

/// Computes y by the way that each channel has.
fn forward<T: Real + Plain>(
    run: &Run<'_>,
    x: &Place,
    to: &To<'_, '_, T>,
    way: impl Fn(Sizes, &[T], usize) -> Affine<T> + Sync,
) {
    let (sizes, x) = (Sizes::of(x.layout.shape()), run.memory.read::<T>(x));
    groups(
        run,
        sizes,
        #[inline(always)]
        |channels| {
            let mut ways = [Affine { center: T::ZERO, scale: T::ZERO, bias: T::ZERO }; TOGETHER];
            for (known, channel) in ways.iter_mut().zip(channels.clone()) {
                *known = way(sizes, x, channel);
                if let To::Memory(y) = to {
                    for plane in sizes.planes(channel) {
                        // SAFETY: tasks have different channels, and y is borrowed until all are done.
                        let y = unsafe { y.part(plane.start, sizes.plane) };
                        known.apply(&x[plane], y);
                    }
                }
            }
            if let To::Links(links, operand) = to {
                links.with_tiles(|tiles| {
                    for (start, count) in sizes.tiles(channels.clone()) {
                        let (x, y) = (&x[start..start + count], &mut tiles[*operand][..count]);
                        normalise(sizes, start, &ways[..channels.len()], channels.start, x, y);
                        // SAFETY: as above, of all results.
                        unsafe { links.run(tiles, start, count) };
                    }
                });
            }
        },
    );
}

/// Computes a tile of y, from its `start`-th element on. The ways are those of the channels from `first` on.
fn normalise<T: Real>(sizes: Sizes, start: usize, ways: &[Affine<T>], first: usize, x: &[T], y: &mut [T]) {
    let mut way = start / sizes.plane % sizes.channels - first;
    let mut len = sizes.plane - start % sizes.plane;
    vectorised(
        #[inline(always)]
        || {
            let mut at = 0;
            while at < x.len() {
                let end = (at + len).min(x.len());
                ways[way].apply(&x[at..end], &mut y[at..end]);
                (way, at, len) = (way + 1, end, sizes.plane);
            }
        },
    );
}

fn train<T: Real + Plain>(
    run: &Run<'_>,
    inputs: &[Place],
    statistics: &[Place],
    eps: f64,
    to: &To<'_, '_, T>,
) {
    let [weight, bias] = [1, 2].map(|i| run.memory.read::<T>(&inputs[i]));
    let [mean, rstd, var] = [0, 1, 2].map(|i| Shared::new(run.memory.write::<T>(&statistics[i])));
    forward(
        run,
        &inputs[0],
        to,
        #[inline(always)]
        |sizes, x, c| {
            let (mut sum, mut squares) = (Sum::new(), Sum::new());
            for plane in sizes.planes(c) {
                sum.add(
                    &x[plane],
                    #[inline(always)]
                    |v| v,
                );
            }
            let center = T::of(sum.total() / sizes.count());
            for plane in sizes.planes(c) {
                squares.add(
                    &x[plane],
                    #[inline(always)]
                    |v| (v - center) * (v - center),
                );
            }
            let variance = squares.total() / sizes.count();
            let inverse = 1.0 / (variance + eps).sqrt();
            // SAFETY: tasks have different channels, and statistics are borrowed until all are done.
            unsafe {
                mean.part(c, 1)[0] = center;
                rstd.part(c, 1)[0] = T::of(inverse);
                var.part(c, 1)[0] = T::of(variance);
            }
            Affine { center, scale: weight[c] * T::of(inverse), bias: bias[c] }
        },
    );
}

fn eval<T: Real + Plain>(run: &Run<'_>, inputs: &[Place], eps: f64, to: &To<'_, '_, T>) {
    let [weight, bias, mean, var] = [1, 2, 3, 4].map(|i| run.memory.read::<T>(&inputs[i]));
    forward(
        run,
        &inputs[0],
        to,
        #[inline(always)]
        |_, _, c| Affine { center: mean[c], scale: weight[c] / (var[c] + T::of(eps)).sqrt(), bias: bias[c] },
    );
}

/// A normalisation by itself.
pub(super) fn alone<T: Real + Plain>(run: &Run<'_>, op: &Op) {
    let (inputs, outputs) = (&run.step.inputs, &run.step.outputs);
    let memory = || To::Memory(Shared::new(run.memory.write::<T>(&outputs[0])));
    match op {
        Op::BatchNorm { eps } => train(run, inputs, &outputs[1..], *eps, &memory()),
        Op::BatchNormEval { eps } => eval(run, inputs, *eps, &memory()),
        _ => backward(run, op, inputs, &Gradient::Memory(run.memory.read::<T>(&inputs[4]))),
    }
}

/// A normalisation with a chain.
pub(super) fn joined<T: Real + Plain>(run: &Run<'_>, joined: &Joined) {
    let (own, others) = run.step.inputs.split_at(joined.own);
    let outputs = &run.step.outputs;
    let shape = own[0].layout.shape();
    let shared = |place: &Place| Shared::new(run.memory.write::<T>(place));
    let mut others = others.iter();
    match joined.order {
        Order::OpFirst { operand } => {
            let operand = usize::from(operand);
            let (statistics, given) = outputs.split_at(outputs.len() - joined.chain.outputs.len());
            let operands = (0..=others.len()).map(|n| if n == operand { None } else { others.next() });
            let links = Links::new(run, &joined.chain, shape, operands, given.iter().map(shared));
            let to = To::Links(&links, operand);
            match joined.op {
                Op::BatchNorm { eps } => train(run, own, statistics, eps, &to),
                Op::BatchNormEval { eps } => eval(run, own, eps, &to),
                _ => unreachable!("only what normalises hands y on"),
            }
        }
        Order::ChainFirst => {
            // Where the gradient of x will be: each element of what the chain gives is read there and replaced.
            let gx = shared(&outputs[0]);
            let given = [gx].into_iter().chain(outputs[3..].iter().map(shared));
            let links = Links::new(run, &joined.chain, shape, others.map(Some), given);
            backward(run, &joined.op, own, &Gradient::Links(&links, gx));
        }
    }
}

/// Where the gradient of y comes from.
enum Gradient<'l, 'a, T> {
    Memory(&'a [T]),
    /// From what comes before it, which is to put it there.
    Links(&'l Links<'a, T>, Shared<T>),
}

/// What the gradients of a channel are made of.
#[derive(Clone, Copy)]
struct Channel<T> {
    center: T,
    /// 1/√(variance + eps).
    inverse: T,
    /// weight·inverse.
    scale: T,
    /// Σ gy.
    sum: f64,
    /// Σ gy·(x − center).
    dot: f64,
}

impl<T: Real> Channel<T> {
    /// The gradient of x from that of y, by the statistics of a batch.
    #[inline(always)]
    fn by_batch(self, count: f64) -> impl Fn(T, T) -> T {
        let shift = T::of(self.sum / count);
        let slope = self.inverse * self.inverse * T::of(self.dot / count);
        move |x, gy| self.scale * (gy - shift - (x - self.center) * slope)
    }
}

/// The gradients of x, weight and bias.
fn backward<T: Real + Plain>(run: &Run<'_>, op: &Op, inputs: &[Place], from: &Gradient<'_, '_, T>) {
    let sizes = Sizes::of(inputs[0].layout.shape());
    let [x, weight, mean, spread] = [0, 1, 2, 3].map(|i| run.memory.read::<T>(&inputs[i]));
    let [gw, gb] = [1, 2].map(|i| Shared::new(run.memory.write::<T>(&run.step.outputs[i])));
    let gx = match from {
        Gradient::Memory(_) => Shared::new(run.memory.write::<T>(&run.step.outputs[0])),
        Gradient::Links(_, gx) => *gx,
    };
    groups(
        run,
        sizes,
        #[inline(always)]
        |channels| {
            if let Gradient::Links(links, _) = from {
                links.with_tiles(|tiles| {
                    for (start, count) in sizes.tiles(channels.clone()) {
                        // SAFETY: tasks have different channels, and results are borrowed until all are done.
                        unsafe { links.run(tiles, start, count) };
                    }
                });
            }
            for c in channels {
                let gy = |plane: &Range<usize>| match from {
                    Gradient::Memory(gy) => &gy[plane.clone()],
                    // SAFETY: as above; what the chain has put there is read before it is replaced.
                    Gradient::Links(_, gx) => unsafe { gx.seen(plane.start, sizes.plane) },
                };
                let inverse = match op {
                    Op::BatchNormEvalGrad { eps } => T::ONE / (spread[c] + T::of(*eps)).sqrt(),
                    _ => spread[c],
                };
                let [sum, dot] = sums(sizes, c, x, gy, mean[c]);
                let channel = Channel { center: mean[c], inverse, scale: weight[c] * inverse, sum, dot };
                for plane in sizes.planes(c) {
                    // SAFETY: as above.
                    let gx = unsafe { gx.part(plane.start, sizes.plane) };
                    let gy = if let Gradient::Memory(gy) = from { Some(&gy[plane.clone()]) } else { None };
                    match op {
                        Op::BatchNormEvalGrad { .. } => {
                            replace(gx, &x[plane], gy, |_, gy| gy * channel.scale)
                        }
                        _ => replace(gx, &x[plane], gy, channel.by_batch(sizes.count())),
                    }
                }
                // SAFETY: as above.
                unsafe {
                    gw.part(c, 1)[0] = inverse * T::of(dot);
                    gb.part(c, 1)[0] = T::of(sum);
                }
            }
        },
    );
}

/// Σ gy and Σ gy·(x − center) of one channel.
#[inline(always)]
fn sums<'a, T: Real>(
    sizes: Sizes,
    channel: usize,
    x: &[T],
    gy: impl Fn(&Range<usize>) -> &'a [T],
    center: T,
) -> [f64; 2] {
    let (mut sum, mut dot) = (Sum::new(), Sum::new());
    for plane in sizes.planes(channel) {
        sum.add(
            gy(&plane),
            #[inline(always)]
            |v| v,
        );
        dot.add_both(
            &x[plane.clone()],
            gy(&plane),
            #[inline(always)]
            |x, gy| (x - center) * gy,
        );
    }
    [sum.total(), dot.total()]
}

/// Writes the gradient of x, from that of y; where none is given it stands there already.
#[inline(always)]
fn replace<T: Real>(gx: &mut [T], x: &[T], gy: Option<&[T]>, f: impl Fn(T, T) -> T) {
    match gy {
        Some(gy) => gx.iter_mut().zip(x).zip(gy).for_each(|((gx, &x), &gy)| *gx = f(x, gy)),
        None => gx.iter_mut().zip(x).for_each(|(gx, &x)| *gx = f(x, *gx)),
    }
}
