//! Convolution of each channel on its own: row by row, so that loops along the width vectorise.

use std::ops::Range;

use super::{
    executable::Run,
    im2col::Geometry,
    memory::{Plain, Shared},
    real::Real,
    simd::vectorised,
};

/// For one tap along one dimension: the outputs that read within the input, and the input index of the
/// first of them.
fn tap(g: &Geometry, i: usize, k: usize) -> (Range<usize>, usize) {
    let (shift, padding, stride) = (k * g.conv.dilation[i], g.conv.padding[i], g.conv.stride[i]);
    let low = padding.saturating_sub(shift).div_ceil(stride);
    let high = (g.input[i] + padding).saturating_sub(shift).div_ceil(stride).min(g.output[i]);
    (low.min(high)..high, (low * stride + shift).saturating_sub(padding))
}

/// Calls the function with the weight's number, the output row, the input row and the two ranges, for
/// every tap of every output row.
#[inline(always)]
fn for_each_row(g: &Geometry, mut f: impl FnMut(usize, Range<usize>, usize)) {
    for kh in 0..g.kernel[0] {
        let (rows, first_row) = tap(g, 0, kh);
        for kw in 0..g.kernel[1] {
            let (columns, first_column) = tap(g, 1, kw);
            if columns.is_empty() {
                continue;
            }
            for (n, row) in rows.clone().enumerate() {
                let out = row * g.output[1] + columns.start;
                let input = (first_row + n * g.conv.stride[0]) * g.input[1] + first_column;
                f(kh * g.kernel[1] + kw, out..out + columns.len(), input);
            }
        }
    }
}

pub(super) fn forward<T: Real + Plain>(run: &Run<'_>, g: &Geometry, x: &[T], w: &[T], y: &mut [T]) {
    let (taps, stride) = (g.kernel[0] * g.kernel[1], g.conv.stride[1]);
    let (input, output) = (g.input_plane(), g.output_plane());
    let out = Shared::new(y);
    planes(run, g, |plane| {
        let (x, w) = (&x[plane * input..][..input], &w[plane % g.conv.groups * taps..][..taps]);
        // SAFETY: tasks write different planes, and `y` is borrowed until all are done.
        let y = unsafe { out.part(plane * output, output) };
        y.fill(T::ZERO);
        for_each_row(
            g,
            #[inline(always)]
            |tap, out, first| {
                let w = w[tap];
                let y = &mut y[out];
                if stride == 1 {
                    let x = &x[first..first + y.len()];
                    y.iter_mut().zip(x).for_each(|(y, &x)| *y += w * x);
                } else {
                    y.iter_mut().zip(x[first..].iter().step_by(stride)).for_each(|(y, &x)| *y += w * x);
                }
            },
        );
    });
}

pub(super) fn grad_input<T: Real + Plain>(run: &Run<'_>, g: &Geometry, w: &[T], gy: &[T], gx: &mut [T]) {
    let (taps, stride) = (g.kernel[0] * g.kernel[1], g.conv.stride[1]);
    let (input, output) = (g.input_plane(), g.output_plane());
    let to = Shared::new(gx);
    planes(run, g, |plane| {
        let (gy, w) = (&gy[plane * output..][..output], &w[plane % g.conv.groups * taps..][..taps]);
        // SAFETY: tasks write different planes, and `gx` is borrowed until all are done.
        let gx = unsafe { to.part(plane * input, input) };
        gx.fill(T::ZERO);
        for_each_row(
            g,
            #[inline(always)]
            |tap, out, first| {
                let (w, gy) = (w[tap], &gy[out]);
                if stride == 1 {
                    gx[first..first + gy.len()].iter_mut().zip(gy).for_each(|(gx, &gy)| *gx += w * gy);
                } else {
                    gx[first..].iter_mut().step_by(stride).zip(gy).for_each(|(gx, &gy)| *gx += w * gy);
                }
            },
        );
    });
}

/// Adds one plane's gradient of its weight.
pub(super) fn add_grad_weight<T: Real + Plain>(g: &Geometry, x: &[T], gy: &[T], gw: &mut [T]) {
    let stride = g.conv.stride[1];
    vectorised(
        #[inline(always)]
        || {
            for_each_row(
                g,
                #[inline(always)]
                |tap, out, first| {
                    let gy = &gy[out];
                    gw[tap] += if stride == 1 {
                        dot(gy, &x[first..first + gy.len()])
                    } else {
                        gy.iter()
                            .zip(x[first..].iter().step_by(stride))
                            .fold(T::ZERO, |sum, (&a, &b)| sum + a * b)
                    };
                },
            );
        },
    );
}

/// Σ a·b in sixteen lanes, which vectorises without reordering at the compiler's whim.
#[inline(always)]
pub(super) fn dot<T: Real>(a: &[T], b: &[T]) -> T {
    let mut lanes = [T::ZERO; 16];
    let (mut a_chunks, mut b_chunks) = (a.chunks_exact(16), b.chunks_exact(16));
    for (a, b) in (&mut a_chunks).zip(&mut b_chunks) {
        for ((lane, &a), &b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += a * b;
        }
    }
    let rest =
        a_chunks.remainder().iter().zip(b_chunks.remainder()).fold(T::ZERO, |sum, (&a, &b)| sum + a * b);
    lanes.into_iter().fold(rest, |sum, lane| sum + lane)
}

/// Runs a function over every plane of every image on the step's threads.
fn planes(run: &Run<'_>, g: &Geometry, f: impl Fn(usize) + Sync) {
    let count = g.batch * g.conv.groups;
    let work = g.output_plane() * g.kernel[0] * g.kernel[1];
    let together = (256 * 1024 / work.max(1)).max(1);
    run.tasks(count.div_ceil(together), |task| {
        vectorised(
            #[inline(always)]
            || {
                for plane in task * together..((task + 1) * together).min(count) {
                    f(plane);
                }
            },
        );
    });
}
