//! Batch normalisation over [N, C, …]: by batch statistics and by running ones.

use super::{
    executable::Run,
    memory::{Plain, Shared},
    real::Real,
    simd::vectorised,
    sum::Sum,
};

/// The sizes: images, channels, elements of a plane.
#[derive(Clone, Copy)]
struct Sizes {
    images: usize,
    channels: usize,
    plane: usize,
}

impl Sizes {
    fn of(run: &Run<'_>) -> Self {
        let shape = run.step.inputs[0].layout.shape();
        Self { images: shape[0], channels: shape[1], plane: shape[2..].iter().product() }
    }

    /// Where the planes of one channel start.
    fn planes(self, channel: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
        (0..self.images).map(move |n| {
            let start = (n * self.channels + channel) * self.plane;
            start..start + self.plane
        })
    }

    /// Elements that share a mean, which is 0 where there are none.
    fn count(self) -> f64 {
        (self.images * self.plane).max(1) as f64
    }
}

/// Runs a function for every channel on the step's threads.
fn channels(run: &Run<'_>, sizes: Sizes, f: impl Fn(usize) + Sync) {
    let together = (32 * 1024 / (sizes.images * sizes.plane).max(1)).max(1);
    run.tasks(sizes.channels.div_ceil(together), |task| {
        vectorised(
            #[inline(always)]
            || {
                // A loop of our own: `for_each(&f)` calls `f` out of line, compiled for the baseline.
                for channel in task * together..((task + 1) * together).min(sizes.channels) {
                    f(channel);
                }
            },
        );
    });
}

pub(super) fn train<T: Real + Plain>(run: &Run<'_>, eps: f64) {
    let sizes = Sizes::of(run);
    let [x, weight, bias] = [0, 1, 2].map(|i| run.memory.read::<T>(&run.step.inputs[i]));
    let [y, mean, rstd, var] = [0, 1, 2, 3].map(|i| Shared::new(run.memory.write::<T>(&run.step.outputs[i])));
    channels(
        run,
        sizes,
        #[inline(always)]
        |c| {
            let (mut sum, mut squares) = (Sum::new(), Sum::new());
            for plane in sizes.planes(c) {
                sum.add(
                    &x[plane],
                    #[inline(always)]
                    |v| v,
                );
            }
            let center = T::of(sum.total() / sizes.count());
            for plane in sizes.planes(c) {
                squares.add(
                    &x[plane],
                    #[inline(always)]
                    |v| (v - center) * (v - center),
                );
            }
            let variance = squares.total() / sizes.count();
            let inverse = 1.0 / (variance + eps).sqrt();
            let scale = weight[c] * T::of(inverse);
            for plane in sizes.planes(c) {
                // SAFETY: channels write different planes and different statistics, all borrowed by this step.
                let y = unsafe { y.part(plane.start, sizes.plane) };
                y.iter_mut().zip(&x[plane]).for_each(|(y, &x)| *y = (x - center) * scale + bias[c]);
            }
            // SAFETY: as above.
            unsafe {
                mean.part(c, 1)[0] = center;
                rstd.part(c, 1)[0] = T::of(inverse);
                var.part(c, 1)[0] = T::of(variance);
            }
        },
    );
}

pub(super) fn train_grad<T: Real + Plain>(run: &Run<'_>) {
    let sizes = Sizes::of(run);
    let [x, weight, mean, rstd, gy] = [0, 1, 2, 3, 4].map(|i| run.memory.read::<T>(&run.step.inputs[i]));
    let [gx, gw, gb] = [0, 1, 2].map(|i| Shared::new(run.memory.write::<T>(&run.step.outputs[i])));
    channels(
        run,
        sizes,
        #[inline(always)]
        |c| {
            let (center, inverse) = (mean[c], rstd[c]);
            let (sum, dot) = sums(sizes, c, x, gy, center);
            let scale = weight[c] * inverse;
            let shift = T::of(sum / sizes.count());
            let slope = inverse * inverse * T::of(dot / sizes.count());
            for plane in sizes.planes(c) {
                // SAFETY: channels write different planes and different gradients, all borrowed by this step.
                let gx = unsafe { gx.part(plane.start, sizes.plane) };
                for ((gx, &x), &gy) in gx.iter_mut().zip(&x[plane.clone()]).zip(&gy[plane]) {
                    *gx = scale * (gy - shift - (x - center) * slope);
                }
            }
            // SAFETY: as above.
            unsafe {
                gw.part(c, 1)[0] = inverse * T::of(dot);
                gb.part(c, 1)[0] = T::of(sum);
            }
        },
    );
}

/// Σ gy and Σ gy·(x − center) of one channel.
#[inline(always)]
fn sums<T: Real>(sizes: Sizes, channel: usize, x: &[T], gy: &[T], center: T) -> (f64, f64) {
    let (mut sum, mut dot) = (Sum::new(), Sum::new());
    for plane in sizes.planes(channel) {
        sum.add(
            &gy[plane.clone()],
            #[inline(always)]
            |v| v,
        );
        dot.add_both(
            &x[plane.clone()],
            &gy[plane],
            #[inline(always)]
            |x, gy| (x - center) * gy,
        );
    }
    (sum.total(), dot.total())
}

pub(super) fn eval<T: Real + Plain>(run: &Run<'_>, eps: f64) {
    let sizes = Sizes::of(run);
    let [x, weight, bias, mean, var] = [0, 1, 2, 3, 4].map(|i| run.memory.read::<T>(&run.step.inputs[i]));
    let y = Shared::new(run.memory.write::<T>(&run.step.outputs[0]));
    channels(
        run,
        sizes,
        #[inline(always)]
        |c| {
            let scale = weight[c] / (var[c] + T::of(eps)).sqrt();
            for plane in sizes.planes(c) {
                // SAFETY: channels write different planes, all borrowed by this step.
                let y = unsafe { y.part(plane.start, sizes.plane) };
                y.iter_mut().zip(&x[plane]).for_each(|(y, &x)| *y = (x - mean[c]) * scale + bias[c]);
            }
        },
    );
}

pub(super) fn eval_grad<T: Real + Plain>(run: &Run<'_>, eps: f64) {
    let sizes = Sizes::of(run);
    let [x, weight, mean, var, gy] = [0, 1, 2, 3, 4].map(|i| run.memory.read::<T>(&run.step.inputs[i]));
    let [gx, gw, gb] = [0, 1, 2].map(|i| Shared::new(run.memory.write::<T>(&run.step.outputs[i])));
    channels(
        run,
        sizes,
        #[inline(always)]
        |c| {
            let inverse = T::ONE / (var[c] + T::of(eps)).sqrt();
            let (sum, dot) = sums(sizes, c, x, gy, mean[c]);
            let scale = weight[c] * inverse;
            for plane in sizes.planes(c) {
                // SAFETY: channels write different planes and different gradients, all borrowed by this step.
                let gx = unsafe { gx.part(plane.start, sizes.plane) };
                gx.iter_mut().zip(&gy[plane]).for_each(|(gx, &gy)| *gx = gy * scale);
            }
            // SAFETY: as above.
            unsafe {
                gw.part(c, 1)[0] = inverse * T::of(dot);
                gb.part(c, 1)[0] = T::of(sum);
            }
        },
    );
}
