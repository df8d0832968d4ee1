//! Scaled dot product attention without its matrix of scores: blocks of queries meet blocks of keys.
//!
//! What is cut where depends on the shapes alone, and no two tasks write to one place: equal inputs give equal bits on
//! any number of threads.

mod backward;
mod forward;

use std::ops::Range;

pub(super) use backward::{backward, backward_scratch};
pub(super) use forward::{forward, forward_scratch};

use super::{
    contraction::matrix,
    memory::Strided,
    product::{Matrix, TASK_WORK},
    real::Real,
};
use crate::{graph::ValueInfo, tensor::Shape};

/// The most queries of a block.
const QUERIES: usize = 128;
/// The most keys of a block. With as many queries its scores fit beside the operands into a core's own cache.
const KEYS: usize = 256;

/// Equal parts of a dimension, the last one shorter.
#[derive(Clone, Copy)]
struct Blocks {
    len: usize,
    size: usize,
}

impl Blocks {
    fn of(len: usize, most: usize) -> Self {
        let count = len.div_ceil(most).max(1);
        // In whole vectors, where there are several.
        let size = if count == 1 { len } else { len.div_ceil(count).next_multiple_of(8) };
        Self { len, size: size.max(1) }
    }

    fn count(self) -> usize {
        self.len.div_ceil(self.size)
    }

    fn range(self, n: usize) -> Range<usize> {
        n * self.size..((n + 1) * self.size).min(self.len)
    }
}

/// What the shapes of queries, keys and values say.
#[derive(Clone, Copy)]
struct Sizes {
    heads: usize,
    queries: Blocks,
    keys: Blocks,
    /// Of a query and a key.
    width: usize,
    /// Of a value and a result.
    value_width: usize,
    causal: bool,
}

impl Sizes {
    fn of(q: &Shape, k: &Shape, v: &Shape, causal: bool) -> Self {
        let batch = q.rank() - 2;
        Self {
            heads: q[..batch].iter().product(),
            queries: Blocks::of(q[batch], QUERIES),
            keys: Blocks::of(k[batch], KEYS),
            width: q[batch + 1],
            value_width: v[batch + 1],
            causal,
        }
    }

    fn of_infos(inputs: &[&ValueInfo]) -> Self {
        Self::of(&inputs[0].shape, &inputs[1].shape, &inputs[2].shape, false)
    }

    /// How many of the keys from `first` on, `count` of them, a query sees.
    #[inline(always)]
    fn seen(self, query: usize, first: usize, count: usize) -> usize {
        if self.causal { (query + 1).saturating_sub(first).min(count) } else { count }
    }

    /// The part of a block of keys that any of the queries sees.
    fn seen_by_any(self, queries: &Range<usize>, keys: usize) -> Range<usize> {
        let keys = self.keys.range(keys);
        let seen = self.seen(queries.end - 1, keys.start, keys.len());
        keys.start..keys.start + seen
    }
}

/// How many pieces of work, of so many multiply-adds each, make a task.
fn together(work: usize) -> usize {
    (TASK_WORK / work.max(1)).max(1)
}

/// An operand's matrices, head by head.
#[derive(Clone, Copy)]
struct Heads<'a, T>(Strided<'a, T>);

impl<'a, T> Heads<'a, T> {
    fn head(self, n: usize) -> Matrix<'a, T> {
        matrix(self.0, n, false)
    }
}

/// Gathers a row in sixteen lanes, and these by halves: short rows would wait for each step otherwise.
#[inline(always)]
fn gathered<T: Real, const N: usize>(
    rows: [&[T]; N],
    start: T,
    value: impl Fn([T; N]) -> T,
    join: impl Fn(T, T) -> T,
) -> T {
    let len = rows[0].len();
    let mut lanes = [start; 16];
    let whole = len / 16 * 16;
    for first in (0..whole).step_by(16) {
        let parts = rows.map(|row| &row[first..first + 16]);
        for (n, lane) in lanes.iter_mut().enumerate() {
            *lane = join(value(parts.map(|part| part[n])), *lane);
        }
    }
    for n in whole..len {
        lanes[n - whole] = join(value(rows.map(|row| row[n])), lanes[n - whole]);
    }
    for half in [8, 4, 2, 1] {
        for n in 0..half {
            lanes[n] = join(lanes[n], lanes[n + half]);
        }
    }
    lanes[0]
}
