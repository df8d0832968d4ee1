//! Convolutions by the rules of cuDNN: sizes, strides, padding, dilation and groups are followed tap by tap, so that whoever
//! describes one wrongly gets wrong numbers.

use super::{
    super::{ConvolutionSpec, Direction, DriverError, MOST_ALIGNMENT_BYTES, RoutineArguments},
    routines::{check_aligned, read, write},
};
use crate::tensor::DType;

/// What all but convolutions by one pixel take for themselves.
const WORKSPACE_BYTES: usize = 448;

pub(super) fn workspace_bytes(spec: &ConvolutionSpec) -> usize {
    if spec.w[2..] == [1, 1] { 0 } else { WORKSPACE_BYTES }
}

/// Holds a convolution against what the library's documentation asks for.
pub(super) fn check(spec: &ConvolutionSpec) {
    let ConvolutionSpec { x, w, y, stride, padding, dilation, groups, .. } = *spec;
    assert!(spec.dtype.is_floating_point(), "{spec:?}");
    assert!(!spec.tf32 || spec.dtype == DType::F32, "{spec:?}");
    let is_counted = |sizes: [u64; 4]| (1..1 << 31).contains(&sizes.iter().product::<u64>());
    assert!([x, w, y].into_iter().all(is_counted), "{spec:?}");
    assert!(stride.iter().chain(&dilation).all(|&n| n > 0) && groups > 0, "{spec:?}");
    assert!(w[1] * groups == x[1] && w[0].is_multiple_of(groups), "{spec:?}");
    assert!((y[0], y[1]) == (x[0], w[0]), "{spec:?}");
    for d in [0, 1] {
        let reach = (w[2 + d] - 1) * dilation[d] + 1;
        assert_eq!(y[2 + d], (x[2 + d] + 2 * padding[d] - reach) / stride[d] + 1, "{spec:?}");
    }
}

/// Computes a convolution.
///
/// # Safety
/// All addresses must be good for what the convolution touches.
pub(super) unsafe fn convolve(spec: &ConvolutionSpec, at: &RoutineArguments) -> Result<(), DriverError> {
    for address in [at.a, at.b, at.out] {
        check_aligned(address, MOST_ALIGNMENT_BYTES as u32, spec)?;
    }
    let [first, second, out] = spec.sizes().map(|sizes| sizes.iter().product::<u64>());
    let all = |start, count| {
        // SAFETY: as the caller promises.
        (0..count).map(|nth| unsafe { read(spec.dtype, start, nth) }).collect::<Vec<f64>>()
    };
    let (first, second) = (all(at.a, first), all(at.b, second));
    let mut sums = vec![0.0; out as usize];
    taps(spec, |x, w, y| {
        let (a, b, sum) = match spec.direction {
            Direction::Forward => (first[x], second[w], &mut sums[y]),
            Direction::BackwardData => (first[w], second[y], &mut sums[x]),
            Direction::BackwardFilter => (first[x], second[y], &mut sums[w]),
        };
        *sum = match spec.dtype {
            DType::F64 => *sum + a * b,
            _ => f64::from(*sum as f32 + a as f32 * b as f32),
        };
    });
    for (nth, sum) in (0..).zip(sums) {
        // SAFETY: as the caller promises.
        unsafe { write(spec.dtype, at.out, nth, sum) };
    }
    Ok(())
}

/// Gives each tap of each pixel of y: the places of the three elements that it joins.
fn taps(spec: &ConvolutionSpec, mut tap: impl FnMut(usize, usize, usize)) {
    let ConvolutionSpec { x, w, y, stride, padding, dilation, groups, .. } = *spec;
    let place = |sizes: [u64; 4], at: [u64; 4]| {
        sizes.iter().zip(at).fold(0, |place, (size, at)| place * size + at) as usize
    };
    // A pixel of x, where there is one.
    let pixel = |d: usize, of_y: u64, of_w: u64| {
        (of_y * stride[d] + of_w * dilation[d]).checked_sub(padding[d]).filter(|&at| at < x[2 + d])
    };
    for n in 0..y[0] {
        for o in 0..y[1] {
            let first_channel = o / (w[0] / groups) * w[1];
            for (i, j) in (0..y[2]).flat_map(|i| (0..y[3]).map(move |j| (i, j))) {
                for (u, v) in (0..w[2]).flat_map(|u| (0..w[3]).map(move |v| (u, v))) {
                    let (Some(h), Some(across)) = (pixel(0, i, u), pixel(1, j, v)) else { continue };
                    for c in 0..w[1] {
                        tap(
                            place(x, [n, first_channel + c, h, across]),
                            place(w, [o, c, u, v]),
                            place(y, [n, o, i, j]),
                        );
                    }
                }
            }
        }
    }
}
