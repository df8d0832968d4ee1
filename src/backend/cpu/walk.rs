//! Walking several strided tensors together, in runs along the innermost dimension.

use crate::tensor::{Layout, Shape};

/// The most dimensions a graph's values may have; `Builder` refuses more.
const MAX_RANK: usize = crate::graph::MAX_RANK;

/// How `K` operands, broadcast to one shape, are walked in the order of that shape's indices.
///
/// Dimensions that lie end to end in every operand are merged, so that runs are as long as they can be.
pub(super) struct Walk<const K: usize> {
    rank: usize,
    sizes: [usize; MAX_RANK],
    strides: [[usize; MAX_RANK]; K],
}

/// A run: where each operand's first element lies, counted from the operand's own first element.
pub(super) struct Span<const K: usize> {
    /// Elements of the output before this run, counted from where the walk began.
    pub(super) done: usize,
    /// How many elements.
    pub(super) len: usize,
    /// By operand.
    pub(super) firsts: [usize; K],
}

impl<const K: usize> Walk<K> {
    pub(super) fn new(shape: &Shape, operands: [&Layout; K]) -> Self {
        let mut walk = Self { rank: 0, sizes: [1; MAX_RANK], strides: [[0; MAX_RANK]; K] };
        for d in 0..shape.rank() {
            if shape[d] == 1 {
                continue;
            }
            let stride = |layout: &Layout| {
                let added = shape.rank() - layout.shape().rank();
                if d < added || layout.shape()[d - added] == 1 { 0 } else { layout.strides()[d - added] }
            };
            let strides = operands.map(stride);
            let last = walk.rank.wrapping_sub(1);
            let merges = walk.rank > 0 && (0..K).all(|k| walk.strides[k][last] == strides[k] * shape[d]);
            let at = if merges { last } else { walk.rank };
            walk.sizes[at] = if merges { walk.sizes[at] * shape[d] } else { shape[d] };
            for (known, new) in walk.strides.iter_mut().zip(strides) {
                known[at] = new;
            }
            walk.rank = at + 1;
        }
        walk.rank = walk.rank.max(1);
        walk
    }

    /// Whether each operand is one element, read everywhere.
    pub(super) fn is_repeated(&self) -> bool {
        self.strides.iter().all(|strides| strides[..self.rank].iter().all(|&stride| stride == 0))
    }

    /// By operand: elements from one to the next within a run; 0 repeats one element.
    pub(super) fn steps(&self) -> [usize; K] {
        std::array::from_fn(|k| self.strides[k][self.rank - 1])
    }

    /// The runs that make up `len` elements from the `start`-th on.
    #[inline(always)]
    pub(super) fn spans(&self, start: usize, len: usize, mut f: impl FnMut(Span<K>)) {
        let (inner, end) = (self.sizes[self.rank - 1], start + len);
        let mut at = start;
        while at < end {
            let (mut row, column) = (at / inner, at % inner);
            let mut firsts = self.steps().map(|step| step * column);
            for d in (0..self.rank - 1).rev() {
                let index = row % self.sizes[d];
                row /= self.sizes[d];
                for (first, strides) in firsts.iter_mut().zip(&self.strides) {
                    *first += index * strides[d];
                }
            }
            let len = (inner - column).min(end - at);
            f(Span { done: at - start, len, firsts });
            at += len;
        }
    }
}

impl Walk<1> {
    /// Where `len` elements from the `start`-th on lie, counted from the operand's first, if one after the other.
    #[inline(always)]
    pub(super) fn together(&self, start: usize, len: usize) -> Option<usize> {
        if self.steps() != [1] {
            return None;
        }
        let mut place = None;
        self.spans(start, len, |span| place = (span.len == len).then_some(span.firsts[0]));
        place
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dimensions_merge_where_all_operands_agree() {
        let image = Layout::contiguous([2, 3, 4, 5].into());
        let bias = Layout::contiguous([3, 1, 1].into());
        let walk = Walk::new(image.shape(), [&image, &bias]);
        let mut seen = Vec::new();
        walk.spans(0, 120, |span| seen.push((span.done, span.len, span.firsts)));
        assert_eq!(seen[1], (20, 20, [20, 1]));
        assert_eq!(seen[3], (60, 20, [60, 0]));
        assert_eq!(walk.steps(), [1, 0]);
        seen.clear();
        walk.spans(30, 25, |span| seen.push((span.done, span.len, span.firsts)));
        assert_eq!(seen, [(0, 10, [30, 1]), (10, 15, [40, 2])]);
    }

    #[test]
    fn a_scalar_is_one_run_of_one() {
        let scalar = Layout::contiguous(Shape::scalar());
        let mut count = 0;
        Walk::new(&Shape::scalar(), [&scalar]).spans(0, 1, |span| count += span.len);
        assert_eq!(count, 1);
    }
}
