//! Convolutions that a library computes.

use crate::tensor::DType;

/// Which of a convolution's three tensors is computed of the other two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// y of x and w.
    Forward,
    /// The gradient of x, of w and the gradient of y.
    BackwardData,
    /// The gradient of w, of x and the gradient of y.
    BackwardFilter,
}

/// What is to be convolved.
///
/// y(n, o, i, j) = Σ x(n, c, i·s − p + u·d, j·s − p + v·d) · w(o, c, u, v), where s is the stride, p the padding and d the
/// dilation, each of its own dimension: the kernel is not turned round. Each group of the outputs sees its own group of the
/// channels. All tensors are contiguous and in the order of their sizes below, their addresses multiples of
/// [`MOST_ALIGNMENT_BYTES`](super::MOST_ALIGNMENT_BYTES), which the library cannot be told otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConvolutionSpec {
    /// What is computed of what.
    pub direction: Direction,
    /// The type of all elements: a floating one. Sums are kept in `float64` for `float64`, else in `float32`.
    pub dtype: DType,
    /// Whether factors of `float32` may be rounded to TF32's ten bits.
    pub tf32: bool,
    /// x: images, channels, height, width.
    pub x: [u64; 4],
    /// w: outputs, channels of a group, height, width.
    pub w: [u64; 4],
    /// y: images, outputs, height, width.
    pub y: [u64; 4],
    /// Pixels of x from one of y to the next, down and across.
    pub stride: [u64; 2],
    /// Zeros before the first and behind the last pixel.
    pub padding: [u64; 2],
    /// Pixels of x from one tap of the kernel to the next.
    pub dilation: [u64; 2],
    /// How many convolutions lie side by side.
    pub groups: u64,
}

impl ConvolutionSpec {
    /// The sizes of the operands, in their order, and of the result.
    pub fn sizes(&self) -> [[u64; 4]; 3] {
        match self.direction {
            Direction::Forward => [self.x, self.w, self.y],
            Direction::BackwardData => [self.w, self.y, self.x],
            Direction::BackwardFilter => [self.x, self.y, self.w],
        }
    }

    /// Bytes of all three tensors.
    pub fn tensor_bytes(&self) -> u64 {
        [self.x, self.w, self.y].iter().map(|sizes| self.bytes(sizes)).fold(0, u64::saturating_add)
    }

    /// Bytes of a tensor of such sizes.
    pub(super) fn bytes(&self, sizes: &[u64; 4]) -> u64 {
        sizes.iter().fold(self.dtype.size_bytes() as u64, |all, &size| all.saturating_mul(size))
    }
}
