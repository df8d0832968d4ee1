//! Shapes: the sizes of a tensor's dimensions, with arithmetic that cannot overflow.

use std::{fmt, ops::Deref};

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

/// The sizes of a tensor's dimensions, outermost first. A scalar has none.
#[derive(Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Shape(SmallVec<[usize; 6]>);

/// Why shapes do not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    /// More elements than memory can address.
    #[error("shape {shape} has more elements than {max} bytes can hold", max = isize::MAX)]
    TooLarge {
        /// The shape at fault.
        shape: Shape,
    },
    /// Two shapes that broadcasting cannot bring together.
    #[error("shapes {left} and {right} do not broadcast: dimension {dim} from the end differs")]
    Broadcast {
        /// The first operand's shape.
        left: Shape,
        /// The second operand's shape.
        right: Shape,
        /// Which dimension, counted from the innermost, from 1.
        dim: usize,
    },
    /// A dimension that the shape does not have.
    #[error("dimension {dim} is out of range for shape {shape}: use {low} to {high}", low = -(shape.rank() as i64), high = shape.rank() as i64 - 1)]
    Dimension {
        /// The dimension asked for; negative counts from the end.
        dim: i64,
        /// The shape asked.
        shape: Shape,
    },
}

impl Shape {
    /// The shape of a scalar.
    pub fn scalar() -> Self {
        Self::default()
    }

    /// How many dimensions.
    pub fn rank(&self) -> usize {
        self.0.len()
    }

    /// The sizes, outermost first.
    pub fn dims(&self) -> &[usize] {
        &self.0
    }

    /// How many elements.
    ///
    /// # Errors
    /// As [`checked_extent`](Self::checked_extent).
    pub fn checked_elements(&self) -> Result<usize, ShapeError> {
        let extent = self.checked_extent()?;
        Ok(if self.0.contains(&0) { 0 } else { extent })
    }

    /// How many elements, were every size of 0 a 1: what loops over single dimensions may come to, even
    /// where the tensor is empty.
    ///
    /// # Errors
    /// [`ShapeError::TooLarge`] when the count, at eight bytes an element, passes `isize::MAX` bytes.
    pub fn checked_extent(&self) -> Result<usize, ShapeError> {
        let limit = isize::MAX as usize / 8;
        let extent = self.0.iter().try_fold(1usize, |n, &d| n.checked_mul(d.max(1)).filter(|&n| n <= limit));
        extent.ok_or_else(|| ShapeError::TooLarge { shape: self.clone() })
    }

    /// How many elements, for a shape that [`checked_elements`](Self::checked_elements) has accepted;
    /// saturates otherwise.
    pub fn elements(&self) -> usize {
        self.checked_elements().unwrap_or(usize::MAX)
    }

    /// Resolves a dimension counted as PyTorch counts, where −1 is the innermost.
    ///
    /// # Errors
    /// [`ShapeError::Dimension`] when the shape has no such dimension.
    pub fn resolve_dim(&self, dim: i64) -> Result<usize, ShapeError> {
        let rank = self.rank().max(1) as i64;
        let resolved = if dim < 0 { dim.checked_add(rank) } else { Some(dim) };
        match resolved {
            Some(d) if (0..rank).contains(&d) => Ok(d as usize),
            _ => Err(ShapeError::Dimension { dim, shape: self.clone() }),
        }
    }

    /// The shape both operands broadcast to, by NumPy's and PyTorch's rule.
    ///
    /// # Errors
    /// [`ShapeError::Broadcast`] when two sizes differ and neither is 1.
    pub fn broadcast(&self, other: &Self) -> Result<Self, ShapeError> {
        let rank = self.rank().max(other.rank());
        let mut dims: SmallVec<[usize; 6]> = SmallVec::from_elem(1, rank);
        for back in 1..=rank {
            let size = |s: &Self| if back <= s.rank() { s.0[s.rank() - back] } else { 1 };
            dims[rank - back] = match (size(self), size(other)) {
                (a, b) if a == b => a,
                (1, b) => b,
                (a, 1) => a,
                _ => {
                    return Err(ShapeError::Broadcast {
                        left: self.clone(),
                        right: other.clone(),
                        dim: back,
                    });
                }
            };
        }
        Ok(Self(dims))
    }

    /// Strides, in elements, of a contiguous tensor of this shape.
    pub fn contiguous_strides(&self) -> SmallVec<[usize; 6]> {
        let mut strides: SmallVec<[usize; 6]> = SmallVec::from_elem(1, self.rank());
        for i in (1..self.rank()).rev() {
            strides[i - 1] = strides[i].saturating_mul(self.0[i].max(1));
        }
        strides
    }
}

impl Deref for Shape {
    type Target = [usize];

    fn deref(&self) -> &[usize] {
        &self.0
    }
}

impl From<&[usize]> for Shape {
    fn from(dims: &[usize]) -> Self {
        Self(SmallVec::from_slice(dims))
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(dims: [usize; N]) -> Self {
        Self(SmallVec::from_slice(&dims))
    }
}

impl From<Vec<usize>> for Shape {
    fn from(dims: Vec<usize>) -> Self {
        Self(SmallVec::from_vec(dims))
    }
}

impl FromIterator<usize> for Shape {
    fn from_iter<I: IntoIterator<Item = usize>>(dims: I) -> Self {
        Self(dims.into_iter().collect())
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (i, d) in self.0.iter().enumerate() {
            write!(f, "{}{d}", if i == 0 { "" } else { ", " })?;
        }
        f.write_str("]")
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broadcasting_follows_pytorch() {
        let b = |a: &[usize], b: &[usize]| Shape::from(a).broadcast(&Shape::from(b));
        assert_eq!(b(&[8, 1, 6, 1], &[7, 1, 5]).unwrap(), Shape::from([8, 7, 6, 5]));
        assert_eq!(b(&[], &[3]).unwrap(), Shape::from([3]));
        assert_eq!(b(&[0], &[1]).unwrap(), Shape::from([0]));
        assert!(b(&[2], &[3]).is_err());
        assert!(b(&[0], &[2]).is_err());
    }

    #[test]
    fn element_counts_never_overflow() {
        assert_eq!(Shape::scalar().checked_elements(), Ok(1));
        assert_eq!(Shape::from([5, 0, 7]).checked_elements(), Ok(0));
        assert_eq!(Shape::from([5, 0, 7]).checked_extent(), Ok(35));
        assert!(Shape::from([usize::MAX, 0]).checked_elements().is_err());
        assert!(Shape::from([usize::MAX, 2]).checked_elements().is_err());
        assert!(Shape::from([usize::MAX]).checked_elements().is_err());
    }

    #[test]
    fn negative_dimensions_count_from_the_end() {
        let shape = Shape::from([2, 3, 4]);
        assert_eq!(shape.resolve_dim(-1), Ok(2));
        assert_eq!(shape.resolve_dim(-3), Ok(0));
        for dim in [3, -4, i64::MIN, i64::MAX] {
            assert!(shape.resolve_dim(dim).is_err(), "{dim}");
        }
        assert_eq!(Shape::scalar().resolve_dim(-1), Ok(0));
    }
}
