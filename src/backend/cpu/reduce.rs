//! Sums, means and maxima over dimensions.

use super::{
    executable::Run,
    memory::{Plain, Shared, Strided},
    real::Real,
    simd::vectorised,
    walk::{Span, Walk},
};
use crate::{
    graph::Reduction,
    tensor::{DType, Layout, Shape},
};

/// How values are gathered into one.
trait Gather<T>: Copy + Sync {
    const START: T;
    /// What two gatherings give together.
    fn join(a: T, b: T) -> T;
    /// A gathering and one value more.
    #[inline(always)]
    fn take(sum: T, value: T) -> T {
        Self::join(sum, value)
    }
}

#[derive(Clone, Copy)]
struct Total;

#[derive(Clone, Copy)]
struct Squares;

#[derive(Clone, Copy)]
struct Largest;

impl Gather<i64> for Total {
    const START: i64 = 0;
    fn join(a: i64, b: i64) -> i64 {
        a.wrapping_add(b)
    }
}

impl<T: Real> Gather<T> for Total {
    const START: T = T::ZERO;
    #[inline(always)]
    fn join(a: T, b: T) -> T {
        a + b
    }
}

impl<T: Real> Gather<T> for Squares {
    const START: T = T::ZERO;
    #[inline(always)]
    fn join(a: T, b: T) -> T {
        a + b
    }
    #[inline(always)]
    fn take(sum: T, value: T) -> T {
        sum + value * value
    }
}

impl<T: Real> Gather<T> for Largest {
    const START: T = T::NEG_INFINITY;
    #[inline(always)]
    fn join(a: T, b: T) -> T {
        if a > b || a.is_nan() { a } else { b }
    }
}

pub(super) fn run<T: Real + Plain>(run: &Run<'_>, reduction: Reduction, dims: &[usize]) {
    let out = &run.step.outputs[0];
    match reduction {
        Reduction::Sum if out.dtype == DType::I64 => gather::<i64, Total>(run, dims),
        Reduction::Sum => gather::<T, Total>(run, dims),
        Reduction::SumOfSquares => gather::<T, Squares>(run, dims),
        Reduction::Amax => gather::<T, Largest>(run, dims),
        Reduction::Mean => {
            gather::<T, Total>(run, dims);
            let shape = run.step.inputs[0].layout.shape();
            let count: usize = dims.iter().map(|&d| shape[d]).product();
            let count = T::of(count as f64);
            run.memory.write::<T>(out).iter_mut().for_each(|y| *y = *y / count);
        }
    }
}

/// Tasks go along the first kept dimension, so each writes results of its own.
fn gather<T: Plain, G: Gather<T>>(run: &Run<'_>, dims: &[usize]) {
    let (x, out) = (&run.step.inputs[0], &run.step.outputs[0]);
    let shape = x.layout.shape();
    let y = run.memory.write::<T>(out);
    y.fill(G::START);
    let from = run.memory.read_strided::<T>(x);
    let kept = (0..shape.rank()).find(|d| !dims.contains(d) && shape[*d] > 1);
    let Some(kept) = kept else {
        return add::<T, G>(from, shape, &out.layout, y);
    };
    let size = shape[kept];
    let together = (32 * 1024 / (shape.elements() / size).max(1)).clamp(1, size);
    // The results of one index of the kept dimension follow each other only if it is the first that counts.
    let (block, whole) = (y.len() / size, Shared::new(y));
    run.tasks(size.div_ceil(together), |task| {
        for index in task * together..((task + 1) * together).min(size) {
            let layout = x.layout.slice(kept, index, 1, 1);
            let part = Strided {
                data: from.data.get(layout.offset() - x.layout.offset()..).unwrap_or_default(),
                layout: &layout,
            };
            let small = out.layout.slice(kept, index, 1, 1);
            let to = Layout::strided(small.shape().clone(), small.strides(), 0).unwrap_or(small);
            // SAFETY: dimensions before the kept one are reduced or of size 1, so the results of one index
            // are one block, and `y` is borrowed until all are done.
            add::<T, G>(part, layout.shape(), &to, unsafe { whole.part(index * block, block) });
        }
    });
}

fn add<T: Plain, G: Gather<T>>(from: Strided<'_, T>, shape: &Shape, to: &Layout, y: &mut [T]) {
    let walk = Walk::new(shape, [from.layout, &to.expand(shape)]);
    let steps = walk.steps();
    vectorised(
        #[inline(always)]
        || {
            walk.spans(
                0,
                shape.elements(),
                #[inline(always)]
                |Span { len, firsts: [i, o], .. }| match steps {
                    [1, 0] => y[o] = G::join(y[o], along::<T, G>(&from.data[i..i + len])),
                    // One element that is read again and again, as an expanded operand has it.
                    [0, 0] => (0..len).for_each(|_| y[o] = G::take(y[o], from.data[i])),
                    [step, 0] => {
                        y[o] = from.data[i..]
                            .iter()
                            .step_by(step)
                            .take(len)
                            .fold(y[o], |sum, &v| G::take(sum, v));
                    }
                    [1, 1] => {
                        for (y, &x) in y[o..o + len].iter_mut().zip(&from.data[i..i + len]) {
                            *y = G::take(*y, x);
                        }
                    }
                    [s, t] => {
                        (0..len).for_each(|n| y[o + n * t] = G::take(y[o + n * t], from.data[i + n * s]))
                    }
                },
            );
        },
    );
}

/// Gathers a run in sixteen lanes.
#[inline(always)]
fn along<T: Plain, G: Gather<T>>(x: &[T]) -> T {
    let mut lanes = [G::START; 16];
    let mut chunks = x.chunks_exact(16);
    for chunk in &mut chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane = G::take(*lane, v);
        }
    }
    let rest = chunks.remainder().iter().fold(G::START, |sum, &v| G::take(sum, v));
    lanes.into_iter().fold(rest, G::join)
}
