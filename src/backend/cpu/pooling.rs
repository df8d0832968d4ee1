//! Max, average and adaptive average pooling over planes.

use std::ops::Range;

use super::{
    executable::Run,
    memory::{Plain, Shared},
    real::Real,
};
use crate::graph::Pool2d;

/// Height and width of a place's planes.
fn size(place: &crate::backend::plan::Place) -> [usize; 2] {
    let shape = place.layout.shape();
    [shape[2], shape[3]]
}

/// Runs a function for every plane of the result, given the plane's number and its elements.
fn planes<T: Send>(run: &Run<'_>, out: &mut [T], plane: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    run.pieces(out, plane, |start, piece| {
        for (n, y) in piece.chunks_exact_mut(plane.max(1)).enumerate() {
            f(start / plane.max(1) + n, y);
        }
    });
}

pub(super) fn max<T: Real + Plain>(run: &Run<'_>, pool: &Pool2d) {
    let (input, output) = (size(&run.step.inputs[0]), size(&run.step.outputs[0]));
    let x = run.memory.read::<T>(&run.step.inputs[0]);
    let indices = Shared::new(run.memory.write::<i64>(&run.step.outputs[1]));
    let (from, to) = (input[0] * input[1], output[0] * output[1]);
    planes(run, run.memory.write::<T>(&run.step.outputs[0]), to, |plane, y| {
        let x = &x[plane * from..][..from];
        // SAFETY: planes of different numbers do not overlap, and the indices are borrowed by this step.
        let indices = unsafe { indices.part(plane * to, to) };
        for h in 0..output[0] {
            for w in 0..output[1] {
                let (mut best, mut at) = (T::NEG_INFINITY, None);
                for row in taps(pool, 0, h, input[0]) {
                    for column in taps(pool, 1, w, input[1]) {
                        let value = x[row * input[1] + column];
                        if at.is_none() || value > best || value.is_nan() {
                            (best, at) = (value, Some(row * input[1] + column));
                        }
                    }
                }
                y[h * output[1] + w] = best;
                indices[h * output[1] + w] = at.unwrap_or(0) as i64;
            }
        }
    });
}

/// The input indices that a window reads along one dimension, those in the padding left out. As many steps as
/// there are indices, however large the window is.
#[inline(always)]
fn taps(pool: &Pool2d, i: usize, to: usize, size: usize) -> impl Iterator<Item = usize> {
    let (start, dilation, padding) = (to * pool.stride[i], pool.dilation[i], pool.padding[i]);
    let first = padding.saturating_sub(start).div_ceil(dilation);
    let end = (size + padding).saturating_sub(start).div_ceil(dilation).min(pool.kernel[i]);
    (first..end).map(move |k| start + k * dilation - padding)
}

pub(super) fn max_grad<T: Real + Plain>(run: &Run<'_>) {
    let (input, output) = (size(&run.step.outputs[0]), size(&run.step.inputs[1]));
    let indices = run.memory.read::<i64>(&run.step.inputs[0]);
    let gy = run.memory.read::<T>(&run.step.inputs[1]);
    let (plane_in, plane_out) = (input[0] * input[1], output[0] * output[1]);
    planes(run, run.memory.write::<T>(&run.step.outputs[0]), plane_in, |plane, gx| {
        gx.fill(T::ZERO);
        let range = plane * plane_out..(plane + 1) * plane_out;
        for (&index, &gy) in indices[range.clone()].iter().zip(&gy[range]) {
            // Indices come from our own forward pass; one that does not fit would be a defect, not a crash.
            if let Some(gx) = usize::try_from(index).ok().and_then(|index| gx.get_mut(index)) {
                *gx += gy;
            }
        }
    });
}

/// A window along one dimension: the part within the input, and its length with padding counted.
struct Window {
    inside: Range<usize>,
    padded_len: usize,
}

fn average_window(pool: &Pool2d, i: usize, to: usize, size: usize) -> Window {
    let start = to * pool.stride[i];
    let end = (start + pool.kernel[i]).min(size + 2 * pool.padding[i]);
    let inside = start.saturating_sub(pool.padding[i])..end.saturating_sub(pool.padding[i]).min(size);
    Window { inside, padded_len: end - start }
}

fn adaptive_window(to: usize, output: usize, input: usize) -> Window {
    let inside = to * input / output..((to + 1) * input).div_ceil(output);
    Window { padded_len: inside.len(), inside }
}

/// y = Σ window / count.
fn windows<T: Real + Plain>(
    run: &Run<'_>,
    window: impl Fn(usize, usize, usize) -> Window + Sync,
    divisor: impl Fn(&Window, &Window) -> usize + Sync,
) {
    let (input, output) = (size(&run.step.inputs[0]), size(&run.step.outputs[0]));
    let x = run.memory.read::<T>(&run.step.inputs[0]);
    let (from, to) = (input[0] * input[1], output[0] * output[1]);
    planes(run, run.memory.write::<T>(&run.step.outputs[0]), to, |plane, y| {
        let x = &x[plane * from..][..from];
        for h in 0..output[0] {
            let rows = window(0, h, input[0]);
            for w in 0..output[1] {
                let columns = window(1, w, input[1]);
                let mut total = T::ZERO;
                for row in rows.inside.clone() {
                    total = x[row * input[1]..][columns.inside.clone()].iter().fold(total, |sum, &v| sum + v);
                }
                y[h * output[1] + w] = total / T::of(divisor(&rows, &columns) as f64);
            }
        }
    });
}

/// gx += gy / count over each window.
fn windows_grad<T: Real + Plain>(
    run: &Run<'_>,
    window: impl Fn(usize, usize, usize) -> Window + Sync,
    divisor: impl Fn(&Window, &Window) -> usize + Sync,
) {
    let (input, output) = (size(&run.step.outputs[0]), size(&run.step.inputs[0]));
    let gy = run.memory.read::<T>(&run.step.inputs[0]);
    let (plane_in, plane_out) = (input[0] * input[1], output[0] * output[1]);
    planes(run, run.memory.write::<T>(&run.step.outputs[0]), plane_in, |plane, gx| {
        gx.fill(T::ZERO);
        let gy = &gy[plane * plane_out..][..plane_out];
        for h in 0..output[0] {
            let rows = window(0, h, input[0]);
            for w in 0..output[1] {
                let columns = window(1, w, input[1]);
                let share = gy[h * output[1] + w] / T::of(divisor(&rows, &columns) as f64);
                for row in rows.inside.clone() {
                    gx[row * input[1]..][columns.inside.clone()].iter_mut().for_each(|gx| *gx += share);
                }
            }
        }
    });
}

fn count(include_pad: bool, divisor: Option<usize>) -> impl Fn(&Window, &Window) -> usize {
    let len = move |w: &Window| if include_pad { w.padded_len } else { w.inside.len() };
    move |rows, columns| divisor.unwrap_or_else(|| len(rows) * len(columns))
}

pub(super) fn average<T: Real + Plain>(
    run: &Run<'_>,
    pool: &Pool2d,
    include_pad: bool,
    divisor: Option<usize>,
) {
    windows::<T>(run, |i, to, size| average_window(pool, i, to, size), count(include_pad, divisor));
}

pub(super) fn average_grad<T: Real + Plain>(
    run: &Run<'_>,
    pool: &Pool2d,
    include_pad: bool,
    divisor: Option<usize>,
) {
    windows_grad::<T>(run, |i, to, size| average_window(pool, i, to, size), count(include_pad, divisor));
}

pub(super) fn adaptive<T: Real + Plain>(run: &Run<'_>) {
    let output = size(&run.step.outputs[0]);
    windows::<T>(run, |i, to, size| adaptive_window(to, output[i], size), count(false, None));
}

pub(super) fn adaptive_grad<T: Real + Plain>(run: &Run<'_>) {
    let output = size(&run.step.inputs[0]);
    windows_grad::<T>(run, |i, to, size| adaptive_window(to, output[i], size), count(false, None));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_takes_as_many_steps_as_it_reads() {
        let pool = |kernel, padding, dilation| Pool2d {
            kernel: [kernel; 2],
            stride: [2; 2],
            padding: [padding; 2],
            dilation: [dilation; 2],
            ceil: false,
        };
        for (kernel, padding, dilation) in [(3, 1, 1), (4, 2, 3), (2, 0, 2), (1, 0, 1)] {
            let pool = pool(kernel, padding, dilation);
            for to in 0..6 {
                let naive = (0..kernel).filter_map(|k| (to * 2 + k * dilation).checked_sub(padding));
                let naive: Vec<usize> = naive.filter(|&at| at < 7).collect();
                assert_eq!(taps(&pool, 0, to, 7).collect::<Vec<_>>(), naive, "{pool:?} {to}");
            }
        }
        // A kernel far larger than its input reads the input and is done.
        assert_eq!(taps(&pool(1 << 40, 1 << 39, 1), 0, 1, 4).collect::<Vec<_>>(), [0, 1, 2, 3]);
    }
}
