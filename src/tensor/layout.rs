//! Layouts: how a tensor's elements lie in a block of memory. Strides and offset count elements.

use smallvec::SmallVec;

use super::Shape;

/// Where each element of a tensor lies, apart from the memory itself.
///
/// Strides are not negative; a stride of 0 repeats one element, which is how an expanded tensor reads.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Layout {
    shape: Shape,
    strides: SmallVec<[usize; 6]>,
    offset: usize,
}

impl Layout {
    /// The layout of a contiguous tensor that starts at element 0.
    pub fn contiguous(shape: Shape) -> Self {
        let strides = shape.contiguous_strides();
        Self { shape, strides, offset: 0 }
    }

    /// A layout of explicit strides and offset, in elements; `None` where the ranks differ.
    pub fn strided(shape: Shape, strides: &[usize], offset: usize) -> Option<Self> {
        (shape.rank() == strides.len()).then(|| Self {
            shape,
            strides: SmallVec::from_slice(strides),
            offset,
        })
    }

    /// The sizes.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Elements from one index to the next, by dimension.
    pub fn strides(&self) -> &[usize] {
        &self.strides
    }

    /// The first element's place.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Whether the elements lie one after the other in the order of their indices.
    pub fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        for (&size, &stride) in self.shape.iter().zip(&self.strides).rev() {
            if size != 1 && stride != expected {
                return self.shape.contains(&0);
            }
            expected *= size.max(1);
        }
        true
    }

    /// One more than the largest element index that this layout touches; `None` on overflow.
    pub fn end(&self) -> Option<usize> {
        if self.shape.contains(&0) {
            return Some(self.offset);
        }
        let mut last = self.offset;
        for (&size, &stride) in self.shape.iter().zip(&self.strides) {
            last = last.checked_add((size - 1).checked_mul(stride)?)?;
        }
        last.checked_add(1)
    }

    /// The same elements under dimensions in another order.
    pub fn permute(&self, order: &[usize]) -> Self {
        let shape = order.iter().map(|&d| self.shape[d]).collect();
        let strides = order.iter().map(|&d| self.strides[d]).collect();
        Self { shape, strides, offset: self.offset }
    }

    /// The layout broadcast to `shape`, which must be one that this one broadcasts to.
    pub fn expand(&self, shape: &Shape) -> Self {
        let new = shape.rank() - self.shape.rank();
        let strides = (0..shape.rank())
            .map(|d| {
                if d < new || (self.shape[d - new] == 1 && shape[d] != 1) { 0 } else { self.strides[d - new] }
            })
            .collect();
        Self { shape: shape.clone(), strides, offset: self.offset }
    }

    /// Every `step`-th index of dimension `dim` from `start`, `len` of them.
    pub fn slice(&self, dim: usize, start: usize, len: usize, step: usize) -> Self {
        let mut strides = self.strides.clone();
        let shape = self.shape.iter().enumerate().map(|(d, &n)| if d == dim { len } else { n }).collect();
        let offset = if len == 0 { self.offset } else { self.offset + start * strides[dim] };
        strides[dim] *= step;
        Self { shape, strides, offset }
    }

    /// The same elements under another shape, where strides can express it without a copy.
    pub fn reshape(&self, shape: &Shape) -> Option<Self> {
        if self.is_contiguous() {
            let strides = shape.contiguous_strides();
            return Some(Self { shape: shape.clone(), strides, offset: self.offset });
        }
        // Merge runs of dimensions that lie end to end, then cut each run as the new shape asks.
        let old: Vec<(usize, usize)> =
            self.shape.iter().copied().zip(self.strides.iter().copied()).filter(|&(n, _)| n != 1).collect();
        let mut strides: SmallVec<[usize; 6]> = SmallVec::from_elem(1, shape.rank());
        let (mut o, mut n) = (0, 0);
        while o < old.len() {
            let (mut have, mut want, first_new) = (old[o].0, 1, n);
            let mut end = o + 1;
            while n < shape.rank() && (want < have || shape[n] == 1) {
                want *= shape[n];
                n += 1;
                while want > have {
                    let &(size, stride) = old.get(end)?;
                    if old[end - 1].1 != stride * size {
                        return None;
                    }
                    have *= size;
                    end += 1;
                }
            }
            if want != have {
                return None;
            }
            let mut stride = old[end - 1].1;
            for d in (first_new..n).rev() {
                strides[d] = stride;
                stride *= shape[d];
            }
            o = end;
        }
        Some(Self { shape: shape.clone(), strides, offset: self.offset })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_of_a_matrix() {
        let l = Layout::contiguous([2, 3].into());
        assert!(l.is_contiguous());
        assert_eq!(l.end(), Some(6));
        let t = l.permute(&[1, 0]);
        assert_eq!((t.shape().dims(), t.strides()), (&[3, 2][..], &[1, 3][..]));
        assert!(!t.is_contiguous());
        assert_eq!(t.reshape(&[6].into()), None);
        let s = l.slice(1, 1, 2, 1);
        assert_eq!((s.offset(), s.end()), (1, Some(6)));
        let e = Layout::contiguous([3, 1].into()).expand(&[2, 3, 4].into());
        assert_eq!(e.strides(), &[0, 1, 0]);
    }

    #[test]
    fn reshape_of_a_view_keeps_elements_in_order() {
        // Heads split out of the innermost dimension of a permuted tensor: no copy is needed.
        let l = Layout::contiguous([4, 5, 6].into()).permute(&[1, 0, 2]);
        let r = l.reshape(&[5, 4, 2, 3].into()).unwrap();
        assert_eq!(r.strides(), &[6, 30, 3, 1]);
        assert_eq!(l.reshape(&[20, 6].into()), None);
        let one = l.reshape(&[5, 1, 4, 6, 1].into()).unwrap();
        assert_eq!((one.strides()[0], one.strides()[2], one.strides()[3]), (6, 30, 1));
    }
}
