//! Backward: a block's weights are computed anew from its scores and the sums' logarithms.
//!
//! With p the weights: gv = pᵀ·gy, and of the scores gs = scale·p∘(gy·vᵀ − Σ gy∘y), so gq = gs·k and gk = gsᵀ·q. A task
//! is a head, or where heads are few some of its keys. What such a task has of the gradient of queries is added to that
//! of the others at the end, so each block of scores is computed once, and nothing is added by two at a time.

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
    graph::ValueInfo,
};

/// As many tasks are enough.
const TASKS: usize = 8;

/// Elements of a task: a block's weights and the gradients of its scores.
fn part(sizes: &Sizes) -> usize {
    2 * sizes.queries.size * sizes.keys.size
}

/// How many tasks share a head, and how many blocks of keys each has.
fn shares(sizes: &Sizes) -> (usize, usize) {
    let blocks = sizes.keys.count();
    let each = blocks.div_ceil(TASKS.div_ceil(sizes.heads.max(1)));
    (blocks.div_ceil(each), each)
}

/// Elements of what all tasks but a head's first have of the gradient of queries.
fn partial(sizes: &Sizes) -> usize {
    (shares(sizes).0 - 1) * sizes.heads * sizes.queries.len * sizes.width
}

/// Scratch elements for so many threads.
pub(in crate::backend::cpu) fn backward_scratch(inputs: &[&ValueInfo], threads: usize) -> usize {
    let sizes = Sizes::of_infos(inputs);
    part(&sizes).saturating_mul(threads).saturating_add(partial(&sizes))
}

pub(in crate::backend::cpu) fn backward<T: Real + Plain>(run: &Run<'_>, causal: bool, scale: f64) {
    let shape = |n: usize| run.step.inputs[n].layout.shape();
    let sizes = Sizes::of(shape(0), shape(1), shape(2), causal);
    let [q, k, v, y, gy] = [0, 1, 2, 3, 5].map(|n| Heads(run.memory.read_strided::<T>(&run.step.inputs[n])));
    let lse = run.memory.read::<T>(&run.step.inputs[4]);
    let [gq, gk, gv] = [0, 1, 2].map(|n| run.memory.write::<T>(&run.step.outputs[n]));
    let (queries, keys) = (sizes.queries.len, sizes.keys.len);
    let (partial, scratch) = run.memory.scratch::<T>(run.step.scratch).split_at_mut(partial(&sizes));
    let parts = Parts::new(scratch, part(&sizes));
    let (count, each) = shares(&sizes);
    let all = gq.len();
    let to = [Shared::new(gq), Shared::new(partial), Shared::new(gk), Shared::new(gv)];
    let together = together(queries * keys * (3 * sizes.width + 2 * sizes.value_width) / count);
    let tasks = sizes.heads * count;
    run.tasks(tasks.div_ceil(together), |task| {
        parts.with(|scratch| {
            for n in task * together..((task + 1) * together).min(tasks) {
                let (n, share) = (n / count, n % count);
                let head = Head {
                    sizes,
                    scale: T::of(scale),
                    q: q.head(n),
                    k: k.head(n),
                    v: v.head(n),
                    y: y.head(n),
                    gy: gy.head(n),
                    lse: &lse[n * queries..][..queries],
                };
                let blocks = share * each..((share + 1) * each).min(sizes.keys.count());
                let first = sizes.keys.range(blocks.start).start;
                let rows = sizes.keys.range(blocks.end - 1).end - first;
                let own = queries * sizes.width;
                // SAFETY: tasks ask for rows of their own, and all four are borrowed until all are done.
                unsafe {
                    let gq = match share {
                        0 => to[0].part(n * own, own),
                        _ => to[1].part((share - 1) * all + n * own, own),
                    };
                    let gk = to[2].part((n * keys + first) * sizes.width, rows * sizes.width);
                    let gv = to[3].part((n * keys + first) * sizes.value_width, rows * sizes.value_width);
                    head.run(scratch, blocks, gq, gk, gv);
                }
            }
        });
    });
    if count > 1 {
        run.pieces(gq, 1, |start, piece| {
            for partial in partial.chunks_exact(all) {
                piece.iter_mut().zip(&partial[start..]).for_each(|(to, &v)| *to += v);
            }
        });
    }
}

/// One head.
struct Head<'a, T> {
    sizes: Sizes,
    scale: T,
    q: Matrix<'a, T>,
    k: Matrix<'a, T>,
    v: Matrix<'a, T>,
    y: Matrix<'a, T>,
    gy: Matrix<'a, T>,
    lse: &'a [T],
}

impl<T: Real> Head<'_, T> {
    /// The gradients of some blocks of keys and their values, and what comes of them for all queries.
    fn run(&self, scratch: &mut [T], blocks: Range<usize>, gq: &mut [T], gk: &mut [T], gv: &mut [T]) {
        let (width, value_width) = (self.sizes.width, self.sizes.value_width);
        let first = self.sizes.keys.range(blocks.start).start;
        [&mut *gq, &mut *gk, &mut *gv].into_iter().for_each(|gradients| gradients.fill(T::ZERO));
        for number in blocks {
            let keys = self.sizes.keys.range(number);
            let gk = &mut gk[(keys.start - first) * width..];
            let gv = &mut gv[(keys.start - first) * value_width..];
            for queries in (0..self.sizes.queries.count()).map(|n| self.sizes.queries.range(n)) {
                let keys = self.sizes.seen_by_any(&queries, number);
                if keys.is_empty() {
                    continue;
                }
                let (weights, gradients) = self.block(scratch, &queries, &keys);
                let (rows, count) = (queries.len(), keys.len());
                let [weights, gradients] = [weights, gradients].map(|x| Matrix::rows(x, count));
                let (q, gy) = (self.q.rows_from(queries.start), self.gy.rows_from(queries.start));
                let gq = &mut gq[queries.start * width..];
                product([rows, count, width], gradients, self.k.rows_from(keys.start), gq, width, true);
                product([count, rows, width], gradients.turned(), q, gk, width, true);
                product([count, rows, value_width], weights.turned(), gy, gv, value_width, true);
            }
        }
    }

    /// The weights of a block, and the gradients of its scores.
    fn block<'s>(
        &self,
        scratch: &'s mut [T],
        queries: &Range<usize>,
        keys: &Range<usize>,
    ) -> (&'s [T], &'s [T]) {
        let (rows, count) = (queries.len(), keys.len());
        let (weights, gradients) = scratch.split_at_mut(scratch.len() / 2);
        let (weights, gradients) = (&mut weights[..rows * count], &mut gradients[..rows * count]);
        let (q, k) = (self.q.rows_from(queries.start), self.k.rows_from(keys.start));
        let (y, gy, v) =
            (self.y.rows_from(queries.start), self.gy.rows_from(queries.start), self.v.rows_from(keys.start));
        scaled_product([rows, self.sizes.width, count], q, k.turned(), self.scale, weights);
        scaled_product([rows, self.sizes.value_width, count], gy, v.turned(), T::ONE, gradients);
        vectorised(
            #[inline(always)]
            || {
                for row in 0..rows {
                    let lse = self.lse[queries.start + row];
                    let shared = dot(y.rows_from(row), gy.rows_from(row), self.sizes.value_width);
                    let seen = self.sizes.seen(queries.start + row, keys.start, count);
                    let (weights, no_weights) = weights[row * count..][..count].split_at_mut(seen);
                    let (gradients, no_gradients) = gradients[row * count..][..count].split_at_mut(seen);
                    for (weight, gradient) in weights.iter_mut().zip(gradients) {
                        *weight = (*weight - lse).exp();
                        *gradient = *weight * (*gradient - shared) * self.scale;
                    }
                    no_weights.fill(T::ZERO);
                    no_gradients.fill(T::ZERO);
                }
            },
        );
        (weights, gradients)
    }
}

/// Σ a∘b over the first rows of two matrices.
#[inline(always)]
fn dot<T: Real>(a: Matrix<'_, T>, b: Matrix<'_, T>, len: usize) -> T {
    if (a.column_stride, b.column_stride) == (1, 1) {
        return gathered(
            [&a.data[..len], &b.data[..len]],
            T::ZERO,
            #[inline(always)]
            |[a, b]| a * b,
            #[inline(always)]
            |a, b| a + b,
        );
    }
    let products = (0..len).map(|n| a.data[n * a.column_stride] * b.data[n * b.column_stride]);
    products.fold(T::ZERO, |sum, product| sum + product)
}
