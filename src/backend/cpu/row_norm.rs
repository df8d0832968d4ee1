//! Layer and group normalisation: means over contiguous rows.

use super::{
    executable::Run,
    memory::{Plain, Shared},
    real::Real,
    simd::vectorised,
    sum::{MOST_TERMS, NARROW, of_lanes, sum_of, sum_of_both},
};
use crate::graph::ValueInfo;

/// Mean, variance and 1/√(variance + eps) of a row.
#[inline(always)]
fn statistics<T: Real>(x: &[T], eps: f64) -> (T, T) {
    let mean = T::of(
        sum_of(
            x,
            #[inline(always)]
            |v| v,
        ) / x.len() as f64,
    );
    let variance = sum_of(
        x,
        #[inline(always)]
        |v| (v - mean) * (v - mean),
    ) / x.len() as f64;
    (mean, T::of(1.0 / (variance + eps).sqrt()))
}

/// Runs a function for every row of `len` elements on the step's threads.
fn rows(run: &Run<'_>, count: usize, len: usize, f: impl Fn(usize) + Sync) {
    let together = (32 * 1024 / len.max(1)).max(1);
    run.tasks(count.div_ceil(together), |task| {
        vectorised(
            #[inline(always)]
            || {
                // A loop of our own: `for_each(&f)` calls `f` out of line, compiled for the baseline.
                for row in task * together..((task + 1) * together).min(count) {
                    f(row);
                }
            },
        );
    });
}

pub(super) fn layer<T: Real + Plain>(run: &Run<'_>, eps: f64) {
    let [x, weight, bias] = [0, 1, 2].map(|i| run.memory.read::<T>(&run.step.inputs[i]));
    let [y, mean, rstd] = [0, 1, 2].map(|i| Shared::new(run.memory.write::<T>(&run.step.outputs[i])));
    let len = weight.len();
    rows(
        run,
        run.step.outputs[1].layout.shape().elements(),
        len,
        #[inline(always)]
        |row| {
            let x = &x[row * len..][..len];
            let (center, inverse) = statistics(x, eps);
            // SAFETY: rows write different elements of results that this step has borrowed.
            unsafe {
                let y = y.part(row * len, len);
                for (((y, &x), &w), &b) in y.iter_mut().zip(x).zip(weight).zip(bias) {
                    *y = (x - center) * inverse * w + b;
                }
                mean.part(row, 1)[0] = center;
                rstd.part(row, 1)[0] = inverse;
            }
        },
    );
}

/// Partial sums that the gradients of weight and bias are gathered in. Fixed, so that equal inputs give
/// equal bits on any number of threads.
const SUMS: usize = 8;

/// Scratch elements of [`layer_grad`].
pub(super) fn layer_grad_scratch(inputs: &[&ValueInfo]) -> usize {
    inputs[1].shape.elements().saturating_mul(2 * SUMS)
}

pub(super) fn layer_grad<T: Real + Plain>(run: &Run<'_>) {
    let [x, weight, mean, rstd, gy] = [0, 1, 2, 3, 4].map(|i| run.memory.read::<T>(&run.step.inputs[i]));
    let gx = Shared::new(run.memory.write::<T>(&run.step.outputs[0]));
    let (len, count) = (weight.len(), mean.len());
    let partial = run.memory.scratch::<T>(run.step.scratch);
    partial.fill(T::ZERO);
    let sums = Shared::new(partial);
    let share = count.div_ceil(SUMS).max(1);
    run.tasks(SUMS, |sum| {
        // SAFETY: each sum has its own part, and rows of different sums differ.
        let (gw, gb) = unsafe { sums.part(sum * 2 * len, 2 * len) }.split_at_mut(len);
        vectorised(
            #[inline(always)]
            || {
                for row in (sum * share).min(count)..((sum + 1) * share).min(count) {
                    let (x, gy) = (&x[row * len..][..len], &gy[row * len..][..len]);
                    let (center, inverse) = (mean[row], rstd[row]);
                    let [sum, dot] = gather_row([x, gy, weight], [center, inverse], gw, gb);
                    let (shift, slope) = of_row(sum, dot, len, inverse);
                    // SAFETY: rows write different elements.
                    let gx = unsafe { gx.part(row * len, len) };
                    for (((g, &gy), &w), &x) in gx.iter_mut().zip(gy).zip(weight).zip(x) {
                        *g = inverse * (gy * w - shift - (x - center) * slope);
                    }
                }
            },
        );
    });
    let [gw, gb] = [1, 2].map(|i| run.memory.write::<T>(&run.step.outputs[i]));
    gw.fill(T::ZERO);
    gb.fill(T::ZERO);
    for sum in partial.chunks_exact(2 * len.max(1)) {
        gw.iter_mut().zip(&sum[..len]).for_each(|(to, &v)| *to += v);
        gb.iter_mut().zip(&sum[len..]).for_each(|(to, &v)| *to += v);
    }
}

/// Adds a row's part of the gradients of weight and bias. Gives the sums of g = gy·w and of g·(x − center).
#[inline(always)]
fn gather_row<T: Real>(
    [x, gy, weight]: [&[T]; 3],
    [center, inverse]: [T; 2],
    gw: &mut [T],
    gb: &mut [T],
) -> [f64; 2] {
    let mut totals = [0.0; 2];
    let parts = x.chunks(MOST_TERMS).zip(gy.chunks(MOST_TERMS)).zip(weight.chunks(MOST_TERMS));
    for (((x, gy), w), (gw, gb)) in parts.zip(gw.chunks_mut(MOST_TERMS).zip(gb.chunks_mut(MOST_TERMS))) {
        let (mut sums, mut dots) = ([T::ZERO; NARROW], [T::ZERO; NARROW]);
        let (wide, rest) = x.as_chunks::<NARROW>();
        let ((wide_gy, rest_gy), (wide_w, rest_w)) = (gy.as_chunks::<NARROW>(), w.as_chunks::<NARROW>());
        let ((wide_gw, rest_gw), (wide_gb, rest_gb)) =
            (gw.as_chunks_mut::<NARROW>(), gb.as_chunks_mut::<NARROW>());
        let wide = wide.iter().zip(wide_gy).zip(wide_w).zip(wide_gw.iter_mut().zip(wide_gb));
        for (((x, gy), w), (gw, gb)) in wide {
            for n in 0..NARROW {
                let (gy, x) = (gy[n], x[n] - center);
                gw[n] += gy * x * inverse;
                gb[n] += gy;
                sums[n] += gy * w[n];
                dots[n] += x * (gy * w[n]);
            }
        }
        let rest = rest.iter().zip(rest_gy).zip(rest_w).zip(rest_gw.iter_mut().zip(rest_gb));
        for (n, (((&x, &gy), &w), (gw, gb))) in rest.enumerate() {
            let x = x - center;
            *gw += gy * x * inverse;
            *gb += gy;
            sums[n] += gy * w;
            dots[n] += x * (gy * w);
        }
        totals[0] += of_lanes(sums).to_f64();
        totals[1] += of_lanes(dots).to_f64();
    }
    totals
}

/// What is taken from each g of a row of `len`, and from it for each x − center.
#[inline(always)]
fn of_row<T: Real>(sum: f64, dot: f64, len: usize, inverse: T) -> (T, T) {
    let n = len as f64;
    (T::of(sum / n), inverse * inverse * T::of(dot / n))
}

/// Turns g = gy·w in place into rstd·(g − Σg/n − x̂·Σ(g·x̂)/n).
#[inline(always)]
fn spread<T: Real>(g: &mut [T], x: &[T], center: T, inverse: T) {
    let sum = sum_of(
        g,
        #[inline(always)]
        |v| v,
    );
    let dot = sum_of_both(
        x,
        g,
        #[inline(always)]
        |x, g| (x - center) * g,
    );
    let (shift, slope) = of_row(sum, dot, g.len(), inverse);
    g.iter_mut().zip(x).for_each(|(g, &x)| *g = inverse * (*g - shift - (x - center) * slope));
}

/// Channels of a group and elements of a plane.
fn group_sizes(run: &Run<'_>, groups: usize) -> (usize, usize) {
    let shape = run.step.inputs[0].layout.shape();
    (shape[1] / groups, shape[2..].iter().product())
}

pub(super) fn group<T: Real + Plain>(run: &Run<'_>, groups: usize, eps: f64) {
    let [x, weight, bias] = [0, 1, 2].map(|i| run.memory.read::<T>(&run.step.inputs[i]));
    let [y, mean, rstd] = [0, 1, 2].map(|i| Shared::new(run.memory.write::<T>(&run.step.outputs[i])));
    let (channels, plane) = group_sizes(run, groups);
    let len = channels * plane;
    rows(
        run,
        run.step.outputs[1].layout.shape().elements(),
        len,
        #[inline(always)]
        |row| {
            let x = &x[row * len..][..len];
            let (center, inverse) = statistics(x, eps);
            for c in 0..channels {
                let channel = row % groups * channels + c;
                let (scale, bias) = (weight[channel] * inverse, bias[channel]);
                // SAFETY: rows write different elements of results that this step has borrowed.
                let y = unsafe { y.part(row * len + c * plane, plane) };
                y.iter_mut()
                    .zip(&x[c * plane..][..plane])
                    .for_each(|(y, &x)| *y = (x - center) * scale + bias);
            }
            // SAFETY: as above.
            unsafe {
                mean.part(row, 1)[0] = center;
                rstd.part(row, 1)[0] = inverse;
            }
        },
    );
}

/// Scratch elements of [`group_grad`]: two sums for each channel of each image.
pub(super) fn group_grad_scratch(inputs: &[&ValueInfo]) -> usize {
    inputs[0].shape[0].saturating_mul(inputs[1].shape.elements()).saturating_mul(2)
}

pub(super) fn group_grad<T: Real + Plain>(run: &Run<'_>, groups: usize) {
    let [x, weight, mean, rstd, gy] = [0, 1, 2, 3, 4].map(|i| run.memory.read::<T>(&run.step.inputs[i]));
    let gx = Shared::new(run.memory.write::<T>(&run.step.outputs[0]));
    let (channels, plane) = group_sizes(run, groups);
    let (len, all) = (channels * plane, channels * groups);
    let partial = run.memory.scratch::<T>(run.step.scratch);
    let sums = Shared::new(partial);
    rows(
        run,
        mean.len(),
        len,
        #[inline(always)]
        |row| {
            let (center, inverse) = (mean[row], rstd[row]);
            let (x, gy) = (&x[row * len..][..len], &gy[row * len..][..len]);
            // SAFETY: rows write different elements; so do the channels of different rows.
            let g = unsafe { gx.part(row * len, len) };
            for c in 0..channels {
                let channel = row % groups * channels + c;
                let (x, gy) = (&x[c * plane..][..plane], &gy[c * plane..][..plane]);
                let dot = sum_of_both(
                    x,
                    gy,
                    #[inline(always)]
                    |x, gy| (x - center) * gy,
                );
                let at = 2 * (row / groups * all + channel);
                // SAFETY: as above.
                let sums = unsafe { sums.part(at, 2) };
                sums[0] = T::of(dot) * inverse;
                sums[1] = T::of(sum_of(
                    gy,
                    #[inline(always)]
                    |v| v,
                ));
                let w = weight[channel];
                g[c * plane..][..plane].iter_mut().zip(gy).for_each(|(g, &gy)| *g = gy * w);
            }
            spread(g, x, center, inverse);
        },
    );
    let [gw, gb] = [1, 2].map(|i| run.memory.write::<T>(&run.step.outputs[i]));
    gw.fill(T::ZERO);
    gb.fill(T::ZERO);
    for image in partial.chunks_exact(2 * all.max(1)) {
        for ((gw, gb), sums) in gw.iter_mut().zip(gb.iter_mut()).zip(image.chunks_exact(2)) {
            *gw += sums[0];
            *gb += sums[1];
        }
    }
}
