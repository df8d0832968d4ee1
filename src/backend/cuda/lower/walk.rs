//! How strided operands are walked together: as few dimensions as there can be.

use crate::{
    backend::cuda::arguments::{Dims, RANK, Walk},
    tensor::{Layout, Shape},
};

/// The walk of a shape's indices, and for each of its operands the strides along it.
///
/// Operands broadcast to the shape. Dimensions that lie end to end in every operand are merged: most walks end with
/// one dimension, for which a kernel divides nothing.
pub(super) fn walk<const K: usize>(shape: &Shape, operands: [&Layout; K]) -> (Walk, [Dims; K]) {
    let mut sizes: Dims = [1; RANK];
    let mut strides = [[0; RANK]; K];
    let mut rank = 0;
    for d in (0..shape.rank()).filter(|&d| shape[d] != 1) {
        let own = operands.map(|layout| {
            let added = shape.rank() - layout.shape().rank();
            if d < added || layout.shape()[d - added] == 1 { 0 } else { layout.strides()[d - added] as u64 }
        });
        let size = shape[d] as u64;
        let merges = rank > 0
            && strides.iter().zip(own).all(|(known, new)| known[rank - 1] == new.saturating_mul(size));
        if merges {
            sizes[rank - 1] *= size;
        } else {
            sizes[rank] = size;
            rank += 1;
        }
        for (known, new) in strides.iter_mut().zip(own) {
            known[rank - 1] = new;
        }
    }
    let elements = shape.elements() as u64;
    let walk = Walk {
        elements,
        rank: rank.max(1) as u32,
        is_narrow: u32::from(elements <= u64::from(u32::MAX)),
        sizes,
    };
    (walk, strides)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dimensions_merge_where_all_operands_agree() {
        let image = Layout::contiguous([2, 3, 4, 5].into());
        let bias = Layout::contiguous([3, 1, 1].into());
        let (walk_of_both, [x, b]) = walk(image.shape(), [&image, &bias]);
        assert_eq!((walk_of_both.elements, walk_of_both.rank, walk_of_both.is_narrow), (120, 3, 1));
        assert_eq!(
            (&walk_of_both.sizes[..3], &x[..3], &b[..3]),
            (&[2, 3, 20][..], &[60, 20, 1][..], &[0, 1, 0][..])
        );
        let (alone, [x]) = walk(image.shape(), [&image]);
        assert_eq!((alone.rank, alone.sizes[0], x[0]), (1, 120, 1));
    }

    #[test]
    fn a_scalar_is_one_dimension_of_one() {
        let scalar = Layout::contiguous(Shape::scalar());
        let (walk_of_one, [strides]) = walk(&Shape::scalar(), [&scalar]);
        assert_eq!((walk_of_one.elements, walk_of_one.rank, walk_of_one.sizes[0], strides[0]), (1, 1, 1, 0));
    }

    #[test]
    fn more_than_four_billion_elements_are_wide() {
        let large = Layout::contiguous([1 << 20, 1 << 13].into());
        assert_eq!(walk(large.shape(), [&large]).0.is_narrow, 0);
    }
}
