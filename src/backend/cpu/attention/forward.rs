//! Forward: each block of queries goes through the keys with the largest score and the sum so far.

use std::ops::Range;

use super::{Heads, Sizes, gathered, together};
use crate::{
    backend::cpu::{
        executable::Run,
        memory::{Plain, Shared},
        parts::Parts,
        product::{Matrix, product, scaled_product},
        real::Real,
        simd::vectorised,
    },
    graph::{Unary, ValueInfo},
};

/// Elements of a task: a block's scores, and for each of its queries the largest and the sum.
fn part(sizes: &Sizes) -> usize {
    sizes.queries.size * (sizes.keys.size + 2)
}

/// Scratch elements for so many threads.
pub(in crate::backend::cpu) fn forward_scratch(inputs: &[&ValueInfo], threads: usize) -> usize {
    part(&Sizes::of_infos(inputs)).saturating_mul(threads)
}

pub(in crate::backend::cpu) fn forward<T: Real + Plain>(run: &Run<'_>, causal: bool, scale: f64) {
    let [q, k, v] = [0, 1, 2].map(|n| &run.step.inputs[n]);
    let sizes = Sizes::of(q.layout.shape(), k.layout.shape(), v.layout.shape(), causal);
    let [q, k, v] = [q, k, v].map(|place| Heads(run.memory.read_strided::<T>(place)));
    let [y, lse] = [0, 1].map(|n| Shared::new(run.memory.write::<T>(&run.step.outputs[n])));
    let parts = Parts::new(run.memory.scratch::<T>(run.step.scratch), part(&sizes));
    let (blocks, len, width) = (sizes.queries.count(), sizes.queries.len, sizes.value_width);
    let count = sizes.heads * blocks;
    let together = together(sizes.queries.size * sizes.keys.len * (sizes.width + width));
    run.tasks(count.div_ceil(together), |task| {
        parts.with(|scratch| {
            for n in task * together..((task + 1) * together).min(count) {
                let (head, queries) = (n / blocks, sizes.queries.range(n % blocks));
                let block = Block {
                    sizes,
                    scale: T::of(scale),
                    q: q.head(head).rows_from(queries.start),
                    k: k.head(head),
                    v: v.head(head),
                    queries: queries.clone(),
                };
                let first = head * len + queries.start;
                // SAFETY: blocks write to rows of their own, and both results are borrowed until all are done.
                unsafe {
                    block.run(
                        scratch,
                        y.part(first * width, queries.len() * width),
                        lse.part(first, queries.len()),
                    );
                }
            }
        });
    });
}

/// Queries that go through all keys of their head.
struct Block<'a, T> {
    sizes: Sizes,
    scale: T,
    /// From the block's first query on.
    q: Matrix<'a, T>,
    k: Matrix<'a, T>,
    v: Matrix<'a, T>,
    queries: Range<usize>,
}

impl<T: Real> Block<'_, T> {
    fn run(&self, scratch: &mut [T], y: &mut [T], lse: &mut [T]) {
        let (rows, width) = (self.queries.len(), self.sizes.value_width);
        let (scores, rest) = scratch.split_at_mut(self.sizes.queries.size * self.sizes.keys.size);
        let (largest, sums) = rest.split_at_mut(self.sizes.queries.size);
        let (largest, sums) = (&mut largest[..rows], &mut sums[..rows]);
        largest.fill(T::NEG_INFINITY);
        sums.fill(T::ZERO);
        for number in 0..self.sizes.keys.count() {
            let keys = self.sizes.seen_by_any(&self.queries, number);
            if keys.is_empty() {
                break;
            }
            let (count, add) = (keys.len(), number > 0);
            let (k, v) = (self.k.rows_from(keys.start), self.v.rows_from(keys.start));
            scaled_product([rows, self.sizes.width, count], self.q, k.turned(), self.scale, scores);
            vectorised(
                #[inline(always)]
                || {
                    for row in 0..rows {
                        let scores = &mut scores[row * count..][..count];
                        let seen = self.sizes.seen(self.queries.start + row, keys.start, count);
                        let (seen, unseen) = scores.split_at_mut(seen);
                        let kept = weigh(seen, &mut largest[row], &mut sums[row]);
                        unseen.fill(T::ZERO);
                        if add {
                            y[row * width..][..width].iter_mut().for_each(|y| *y = *y * kept);
                        }
                    }
                },
            );
            product([rows, count, width], Matrix::rows(scores, count), v, y, width, add);
        }
        vectorised(
            #[inline(always)]
            || {
                for (y, &sum) in y.chunks_exact_mut(width).zip(&*sums) {
                    let share = T::ONE / sum;
                    y.iter_mut().for_each(|y| *y = *y * share);
                }
            },
        );
        T::unary(Unary::Log, sums, lse);
        for (lse, &largest) in lse.iter_mut().zip(&*largest) {
            // Of a row with no score but −∞ softmax is NaN, and so is what its gradient is made of.
            let is_none = largest == T::NEG_INFINITY;
            *lse = if is_none { largest * T::ZERO } else { largest + *lse };
        }
    }
}

/// Turns a row's scores into e^(score − largest so far), adds them to the sum so far, and gives the factor of what was
/// summed before.
#[inline(always)]
fn weigh<T: Real>(scores: &mut [T], largest: &mut T, sum: &mut T) -> T {
    let before = *largest;
    let now = gathered(
        [&*scores],
        before,
        #[inline(always)]
        |[score]| score,
        // NaN wins.
        larger,
    );
    // Nothing but −∞ yet: powers of 0, of which later rows take the place.
    let shift = if now == T::NEG_INFINITY { T::ZERO } else { now };
    scores.iter_mut().for_each(|score| *score = (*score - shift).exp());
    let total = gathered(
        [&*scores],
        T::ZERO,
        #[inline(always)]
        |[power]| power,
        #[inline(always)]
        |a, b| a + b,
    );
    *largest = now;
    if before == T::NEG_INFINITY {
        *sum = total;
        return T::ZERO;
    }
    let kept = (before - shift).exp();
    *sum = *sum * kept + total;
    kept
}

#[inline(always)]
fn larger<T: Real>(value: T, other: T) -> T {
    if value > other || value.is_nan() { value } else { other }
}
