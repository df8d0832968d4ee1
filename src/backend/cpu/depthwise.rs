//! Convolution of each channel on its own.
//!
//! Where steps are of one, a plane is copied into one with its padding around it, whose rows follow each other: there each tap is
//! the whole plane from another place on, and no edge is left. Results between the rows are of no use and not copied out. Other
//! steps go row by row.

use std::ops::Range;

use super::{
    executable::Run,
    im2col::Geometry,
    memory::{Plain, Shared},
    parts::Parts,
    real::Real,
    simd::vectorised,
    sum::{Sum, is_finite},
};

/// Numbers that are computed at a time.
const AT_ONCE: usize = 64;
/// Taps whose gradients are summed at a time.
const TAPS_AT_ONCE: usize = 64;
/// How many times as large as the planes themselves a padded one may be.
const MOST_PADDING: usize = 4;

/// A plane with its padding, which another is computed of with steps of one.
#[derive(Clone, Copy)]
struct Padded {
    /// Rows and columns of what is padded.
    inner: [usize; 2],
    /// Rows and columns of the result.
    output: [usize; 2],
    kernel: [usize; 2],
    dilation: [usize; 2],
    /// Of rows before the first and columns before it; as many come behind as taps read.
    padding: [usize; 2],
}

impl Padded {
    /// That of x, which y is computed of.
    fn of_input(g: &Geometry) -> Option<Self> {
        let steps_of_one = g.conv.stride == [1, 1];
        let this = Self {
            inner: g.input,
            output: g.output,
            kernel: g.kernel,
            dilation: g.conv.dilation,
            padding: g.conv.padding,
        };
        (steps_of_one && this.is_worth_it()).then_some(this)
    }

    /// That of the gradient of y, of which that of x is computed with the kernel turned round.
    fn of_output(g: &Geometry) -> Option<Self> {
        let this = Self::of_input(g)?;
        let mut padding = [0; 2];
        for (i, padding) in padding.iter_mut().enumerate() {
            *padding = g.conv.dilation[i].checked_mul(g.kernel[i] - 1)?.checked_sub(g.conv.padding[i])?;
        }
        let this = Self { inner: g.output, output: g.input, padding, ..this };
        this.is_worth_it().then_some(this)
    }

    /// Whether padding is not most of it, as it is where taps lie far apart.
    fn is_worth_it(&self) -> bool {
        let numbers = || {
            let mut padded = [0_usize; 2];
            for (i, padded) in padded.iter_mut().enumerate() {
                *padded = self.dilation[i].checked_mul(self.kernel[i] - 1)?.checked_add(self.output[i])?;
            }
            padded[0].checked_mul(padded[1])
        };
        let [inner, output] = [self.inner, self.output].map(|[rows, columns]| rows * columns);
        numbers().is_some_and(|numbers| numbers <= MOST_PADDING * (inner + output) + AT_ONCE)
    }

    /// Columns with the padding.
    fn pitch(&self) -> usize {
        self.output[1] + self.dilation[1] * (self.kernel[1] - 1)
    }

    /// Numbers of the result, with those between its rows, in whole vectors.
    fn results(&self) -> usize {
        (self.output[0] * self.pitch()).next_multiple_of(AT_ONCE)
    }

    /// Numbers of the plane, with what the last result's taps read.
    fn numbers(&self) -> usize {
        self.results() + self.reach()
    }

    /// How far behind a result its last tap reads.
    fn reach(&self) -> usize {
        self.dilation[0] * (self.kernel[0] - 1) * self.pitch() + self.dilation[1] * (self.kernel[1] - 1)
    }

    /// Scratch elements of a task.
    fn part(&self) -> usize {
        self.numbers() + self.results()
    }

    /// Where a tap reads from for the first result.
    #[inline(always)]
    fn tap(&self, tap: usize) -> usize {
        let [row, column] = [tap / self.kernel[1], tap % self.kernel[1]];
        row * self.dilation[0] * self.pitch() + column * self.dilation[1]
    }

    /// Copies a plane in; its padding is there.
    #[inline(always)]
    fn fill<T: Real>(&self, plane: &[T], to: &mut [T]) {
        let [down, across] = self.padding;
        let rows = to[down * self.pitch()..].chunks_mut(self.pitch());
        for (to, from) in rows.zip(plane.chunks_exact(self.inner[1].max(1))) {
            to[across..across + from.len()].copy_from_slice(from);
        }
    }

    /// Computes the result of one plane, with a part whose padding is there.
    #[inline(always)]
    fn convolve<T: Real>(&self, plane: &[T], tap: impl Fn(usize) -> T, part: &mut [T], to: &mut [T]) {
        let (padded, results) = part.split_at_mut(self.numbers());
        self.fill(plane, padded);
        for (n, to) in results.as_chunks_mut::<AT_ONCE>().0.iter_mut().enumerate() {
            let mut sums = [T::ZERO; AT_ONCE];
            for number in 0..self.kernel[0] * self.kernel[1] {
                let (w, from) = (tap(number), &padded[n * AT_ONCE + self.tap(number)..][..AT_ONCE]);
                for (sum, &x) in sums.iter_mut().zip(from) {
                    *sum += w * x;
                }
            }
            *to = sums;
        }
        for (to, from) in to.chunks_exact_mut(self.output[1].max(1)).zip(results.chunks(self.pitch())) {
            to.copy_from_slice(&from[..to.len()]);
        }
    }

    /// The gradient of one kernel of planes of x and of the gradient of y, with a part whose padding is there.
    fn sum_taps<'a, T: Real>(
        &self,
        g: &Geometry,
        planes: impl Iterator<Item = (&'a [T], &'a [T])> + Clone,
        gw: &mut [T],
        part: &mut [T],
    ) {
        let (x_part, gy_part) = part.split_at_mut(self.numbers());
        // The gradient of y in rows as far apart; what is between them is no part of a sum.
        let rows = Self { inner: g.output, padding: [0, 0], ..*self };
        for (n, gw) in gw.chunks_mut(TAPS_AT_ONCE).enumerate() {
            let mut sums: [Sum<T>; TAPS_AT_ONCE] = std::array::from_fn(|_| Sum::new());
            for (x, gy) in planes.clone() {
                vectorised(
                    #[inline(always)]
                    || {
                        self.fill(x, x_part);
                        rows.fill(gy, gy_part);
                        for (tap, sum) in sums.iter_mut().enumerate().take(gw.len()) {
                            sum.add_both(
                                &x_part[self.tap(n * TAPS_AT_ONCE + tap)..][..gy_part.len()],
                                gy_part,
                                #[inline(always)]
                                |x, gy| x * gy,
                            );
                        }
                    },
                );
            }
            gw.iter_mut().zip(sums).for_each(|(gw, sum)| *gw = T::of(sum.total()));
        }
    }
}

/// Scratch elements of the forward pass.
pub(super) fn forward_scratch(g: &Geometry, threads: usize) -> usize {
    Padded::of_input(g).map_or(0, |padded| padded.part().saturating_mul(threads))
}

/// Scratch elements of the gradient of the input.
pub(super) fn grad_input_scratch(g: &Geometry, threads: usize) -> usize {
    Padded::of_output(g).map_or(0, |padded| padded.part().saturating_mul(threads))
}

/// Scratch elements of a plane's gradient of its weight.
pub(super) fn weight_part(g: &Geometry) -> usize {
    Padded::of_input(g).map_or(0, |padded| padded.part())
}

pub(super) fn forward<T: Real + Plain>(
    run: &Run<'_>,
    g: &Geometry,
    x: &[T],
    w: &[T],
    y: &mut [T],
    scratch: &mut [T],
) {
    let planes = [(x, g.input_plane()), (w, g.kernel[0] * g.kernel[1])];
    each(
        run,
        g,
        Padded::of_input(g),
        planes,
        (y, g.output_plane()),
        scratch,
        |w, n| w[n],
        |x, w, y| {
            g.for_each_row(|tap, out, first| {
                let from = x[first..].iter().step_by(g.conv.stride[1]);
                y[out].iter_mut().zip(from).for_each(|(y, &x)| *y += w[tap] * x);
            });
        },
    );
}

pub(super) fn grad_input<T: Real + Plain>(
    run: &Run<'_>,
    g: &Geometry,
    w: &[T],
    gy: &[T],
    gx: &mut [T],
    scratch: &mut [T],
) {
    let planes = [(gy, g.output_plane()), (w, g.kernel[0] * g.kernel[1])];
    let turned = |w: &[T], n: usize| w[w.len() - 1 - n];
    each(run, g, Padded::of_output(g), planes, (gx, g.input_plane()), scratch, turned, |gy, w, gx| {
        g.for_each_row(|tap, out, first| {
            let to = gx[first..].iter_mut().step_by(g.conv.stride[1]);
            to.zip(&gy[out]).for_each(|(gx, &gy)| *gx += w[tap] * gy);
        });
    });
}

/// Computes every plane of every image from one, of so many elements, and its kernel: padded, where that can be, with `tap` of
/// the kernel; else `by_rows`, which adds.
#[expect(clippy::too_many_arguments, reason = "two operations that differ in all of them")]
fn each<T: Real>(
    run: &Run<'_>,
    g: &Geometry,
    padded: Option<Padded>,
    [(from, a_plane), (w, taps)]: [(&[T], usize); 2],
    (to, a_result): (&mut [T], usize),
    scratch: &mut [T],
    tap: impl Fn(&[T], usize) -> T + Sync,
    by_rows: impl Fn(&[T], &[T], &mut [T]) + Sync,
) {
    // Nothing times infinity is not a number, and padding is no factor.
    let padded = padded.filter(|_| is_finite(w));
    let (count, work) = (g.batch * g.conv.groups, g.output_plane() * taps);
    let together = (256 * 1024 / work.max(1)).max(1);
    let (parts, to) = (Parts::new(scratch, padded.map_or(0, |padded| padded.part())), Shared::new(to));
    run.tasks(count.div_ceil(together), |task| {
        parts.with(|part| {
            part.fill(T::ZERO);
            for plane in task * together..((task + 1) * together).min(count) {
                let (from, w) =
                    (&from[plane * a_plane..][..a_plane], &w[plane % g.conv.groups * taps..][..taps]);
                // SAFETY: tasks write different planes, and the result is borrowed until all are done.
                let to = unsafe { to.part(plane * a_result, a_result) };
                match padded {
                    Some(padded) => vectorised(
                        #[inline(always)]
                        || padded.convolve(from, |n| tap(w, n), part, to),
                    ),
                    None => {
                        to.fill(T::ZERO);
                        by_rows(from, w, to);
                    }
                }
            }
        });
    });
}

/// The gradients of all channels' weights, of some images.
pub(super) fn grad_weight<T: Real + Plain>(
    g: &Geometry,
    images: Range<usize>,
    [x, gy]: [&[T]; 2],
    gw: &mut [T],
    part: &mut [T],
) {
    part.fill(T::ZERO);
    for (channel, gw) in gw.chunks_exact_mut(g.patch()).enumerate() {
        let planes = images.clone().map(|image| {
            let plane = image * g.conv.groups + channel;
            (
                &x[plane * g.input_plane()..][..g.input_plane()],
                &gy[plane * g.output_plane()..][..g.output_plane()],
            )
        });
        if let Some(padded) = Padded::of_input(g) {
            padded.sum_taps(g, planes.clone(), gw, part);
            // Nothing times infinity is not a number, and padding is no factor.
            if is_finite(gw) {
                continue;
            }
        }
        gw.fill(T::ZERO);
        for (x, gy) in planes {
            g.for_each_row(|tap, out, first| {
                let from = x[first..].iter().step_by(g.conv.stride[1]);
                gw[tap] += gy[out].iter().zip(from).fold(T::ZERO, |sum, (&a, &b)| sum + a * b);
            });
        }
    }
}
