//! Which convolutions go to a library, and as what.

use super::{contraction::Sizes, product::alignment_bytes};
use crate::{
    backend::cuda::driver::{ConvolutionSpec, Direction, MOST_ALIGNMENT_BYTES},
    graph::Op,
    tensor::{DType, Layout, Shape},
};

/// The most elements of a tensor that the library counts.
const MOST_ELEMENTS: u64 = 1 << 31;

/// The convolution that an operation is; `None` for one that is something else, that the library does not take, or that a
/// kernel of ours does as well.
pub(super) fn spec(
    op: &Op,
    inputs: &[&Layout],
    y: &Shape,
    dtype: DType,
    tf32: bool,
) -> Option<ConvolutionSpec> {
    let [first, second] = *inputs else { return None };
    let (direction, conv, x, w, out) = match op {
        Op::Conv2d(conv) => (Direction::Forward, conv, first.shape(), second.shape(), y),
        Op::Conv2dGradInput { conv, .. } => (Direction::BackwardData, conv, y, first.shape(), second.shape()),
        Op::Conv2dGradWeight { conv, .. } => {
            (Direction::BackwardFilter, conv, first.shape(), y, second.shape())
        }
        _ => return None,
    };
    let lies_right = |layout: &Layout| {
        layout.is_contiguous()
            && alignment_bytes(layout.offset() as u64, dtype) as usize == MOST_ALIGNMENT_BYTES
    };
    let counts = |shape: &Shape| {
        let elements = shape.iter().fold(1, |all: u64, &size| all.saturating_mul(size as u64));
        (1..MOST_ELEMENTS).contains(&elements)
    };
    let is_taken = dtype.is_floating_point()
        && [first, second].into_iter().all(lies_right)
        && [x, w, out].into_iter().all(counts)
        && !is_depthwise(op, first.shape(), second.shape(), w, y);
    let pair = |sizes: [usize; 2]| sizes.map(|size| size as u64);
    is_taken.then(|| ConvolutionSpec {
        direction,
        dtype,
        tf32: tf32 && dtype == DType::F32,
        x: sizes(x),
        w: sizes(w),
        y: sizes(out),
        stride: pair(conv.stride),
        padding: pair(conv.padding),
        dilation: pair(conv.dilation),
        groups: conv.groups as u64,
    })
}

/// Whether each channel has filters of its own, and few.
///
/// Nothing is summed then but taps, for which tensor cores have no use: our kernels have a thread or a block for each
/// result, as have PyTorch's, which it prefers to cuDNN's in this layout but for some sizes in float16.
fn is_depthwise(op: &Op, first: &Shape, second: &Shape, w: &Shape, y: &Shape) -> bool {
    w[1] == 1 && Sizes::of_conv(op, first, second, y).is_some_and(Sizes::is_direct)
}

fn sizes(shape: &Shape) -> [u64; 4] {
    [0, 1, 2, 3].map(|d| shape[d] as u64)
}
