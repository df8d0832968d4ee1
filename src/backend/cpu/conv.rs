//! 2-d convolution and its two gradients.
//!
//! Each channel on its own goes plane by plane ([`depthwise`]); kernels of 3×3 by Winograd's algorithm ([`winograd`]) where
//! that is faster; everything else as a product of the kernels and patches of the input, a tile of output rows at a time. Where
//! padding meets what is not finite, tap by tap ([`taps`]).
//!
//! Scratch is cut into as many parts as threads may work; a task takes a free one, so which part it gets decides nothing about
//! its result.

use std::ops::Range;

use super::{
    depthwise,
    executable::Run,
    im2col::{Geometry, col2im, im2col},
    memory::{Plain, Shared},
    parts::Parts,
    product::{Left, Matrix, Target, accumulate, accumulate_part},
    real::Real,
    sum::is_finite,
    support::Cpu,
    taps,
    winograd::{self, TAPS, Tiles},
};
use crate::graph::{Conv2d, ValueInfo};

/// Scratch elements of the forward pass.
pub(super) fn forward_scratch<T: Real>(
    conv: &Conv2d,
    inputs: &[&ValueInfo],
    outputs: &[&ValueInfo],
    cpu: &Cpu,
) -> usize {
    let g = Geometry::new(conv, &inputs[0].shape, &inputs[1].shape, &outputs[0].shape);
    if g.is_depthwise() {
        return depthwise::forward_scratch(&g, cpu.threads);
    }
    let tiles = Tiles::of_output::<T>(&g, cpu.winograd);
    let by_points = tiles.map_or(0, |tiles| winograd::convolve_scratch(&tiles, cpu.threads));
    Patches::forward(&g).scratch::<T>(&g, cpu.threads).max(by_points)
}

/// Scratch elements of the gradient of the input.
pub(super) fn grad_input_scratch<T: Real>(
    conv: &Conv2d,
    inputs: &[&ValueInfo],
    outputs: &[&ValueInfo],
    cpu: &Cpu,
) -> usize {
    let g = Geometry::new(conv, &outputs[0].shape, &inputs[0].shape, &inputs[1].shape);
    if g.is_depthwise() {
        return depthwise::grad_input_scratch(&g, cpu.threads);
    }
    let tiles = Tiles::of_input::<T>(&g, cpu.winograd);
    let by_points = tiles.map_or(0, |tiles| winograd::convolve_scratch(&tiles, cpu.threads));
    Patches::backward(&g).scratch::<T>(&g, cpu.threads).max(by_points)
}

/// The product of the kernels of a group, as they are or turned, and a tile.
#[derive(Clone, Copy)]
struct Patches {
    sizes: [usize; 3],
    is_turned: bool,
}

impl Patches {
    /// y of patches of x.
    fn forward(g: &Geometry) -> Self {
        Self { sizes: [g.outputs, g.patch(), g.tile_columns()], is_turned: false }
    }

    /// Patches of the gradient of x, of that of y.
    fn backward(g: &Geometry) -> Self {
        Self { sizes: [g.patch(), g.outputs, g.tile_columns()], is_turned: true }
    }

    /// Scratch elements of a task: a tile of patches, and what its product takes.
    fn part<T: Real>(self, g: &Geometry) -> usize {
        g.tile().saturating_add(Left::<T>::part(self.sizes))
    }

    /// Scratch elements: the kernels of all groups, and those of tasks.
    fn scratch<T: Real>(self, g: &Geometry, threads: usize) -> usize {
        let kernels = Left::<T>::scratch(self.sizes).saturating_mul(g.conv.groups);
        kernels.saturating_add(self.part::<T>(g).saturating_mul(threads))
    }

    /// Lays out kernels as products read them, and hands out what tasks may write to.
    fn prepare<'a, T: Real>(
        self,
        run: &Run<'_>,
        g: &Geometry,
        w: &[T],
        scratch: &'a mut [T],
    ) -> (&'a [T], Parts<T>) {
        let a_group = Left::<T>::scratch(self.sizes);
        let (packed, parts) = scratch.split_at_mut(a_group * g.conv.groups);
        for (group, packed) in packed.chunks_exact_mut(a_group.max(1)).enumerate() {
            Left::pack(run, self.sizes, self.kernels(g, w, group), packed);
        }
        (packed, Parts::new(parts, self.part::<T>(g)))
    }

    fn kernels<'a, T>(self, g: &Geometry, w: &'a [T], group: usize) -> Matrix<'a, T> {
        let a_group = g.outputs * g.patch();
        let kernels = Matrix::rows(&w[group * a_group..][..a_group], g.patch());
        if self.is_turned { kernels.turned() } else { kernels }
    }

    /// A group's kernels, of what [`prepare`](Self::prepare) has laid out.
    fn left<'a, T: Real>(self, g: &Geometry, w: &'a [T], packed: &'a [T], group: usize) -> Left<'a, T> {
        let a_group = Left::<T>::scratch(self.sizes);
        Left::new(self.sizes, self.kernels(g, w, group), &packed[group * a_group..][..a_group])
    }
}

/// The output rows of a tile.
fn rows(g: &Geometry, tile: usize) -> Range<usize> {
    tile * g.tile_rows()..(tile * g.tile_rows() + g.tile_rows()).min(g.output[0])
}

/// The patches of a tile's rows: the input itself, or laid out in `tile`.
fn patches_of<'a, T: Real + Plain>(
    g: &Geometry,
    x: &'a [T],
    rows: Range<usize>,
    tile: &'a mut [T],
) -> Matrix<'a, T> {
    let (first, count) = (rows.start * g.output[1], rows.len() * g.output[1]);
    if g.is_pointwise() {
        return Matrix::rows(x, g.input_plane()).columns_from(first);
    }
    im2col(g, x, rows, tile);
    Matrix::rows(tile, count)
}

pub(super) fn forward<T: Real + Plain>(run: &Run<'_>, conv: &Conv2d) {
    let (x, w, y) = (&run.step.inputs[0], &run.step.inputs[1], &run.step.outputs[0]);
    let g = Geometry::new(conv, x.layout.shape(), w.layout.shape(), y.layout.shape());
    let (x, w) = (run.memory.read::<T>(x), run.memory.read::<T>(w));
    let y = run.memory.write::<T>(y);
    let scratch = run.memory.scratch::<T>(run.step.scratch);
    if y.is_empty() {
        return;
    }
    if g.is_depthwise() {
        return depthwise::forward(run, &g, x, w, y, scratch);
    }
    if conv.padding != [0, 0] && !is_finite(w) {
        return taps::forward(run, &g, x, w, y);
    }
    if let Some(tiles) = Tiles::of_output::<T>(&g, run.winograd)
        && winograd::convolve(
            run,
            &tiles,
            x,
            y,
            scratch,
            #[inline(always)]
            |output, input| kernel(w, output * g.inputs + input),
        )
    {
        return;
    }
    let (plane, group_in, group_out) =
        (g.output_plane(), g.inputs * g.input_plane(), g.outputs * g.output_plane());
    let patches = Patches::forward(&g);
    let (packed, parts) = patches.prepare(run, &g, w, scratch);
    let (out, tiles) = (Shared::new(y), g.tiles());
    run.tasks(g.batch * conv.groups * tiles, |task| {
        let (at, rows) = (task / tiles, rows(&g, task % tiles));
        let (x, left) = (&x[at * group_in..][..group_in], patches.left(&g, w, packed, at % conv.groups));
        let (first, count) = (rows.start * g.output[1], rows.len() * g.output[1]);
        let y = Target { start: out.pointer(at * group_out + first), stride: plane };
        parts.with(|part| {
            let (tile, part) = part.split_at_mut(g.tile());
            let columns = patches_of(&g, x, rows, tile);
            // SAFETY: tasks write different rows of different groups of planes, and `y` is borrowed until all are done.
            unsafe { left.times(columns, count, y, part) };
        });
    });
}

pub(super) fn grad_input<T: Real + Plain>(run: &Run<'_>, conv: &Conv2d) {
    let (w, gy, gx) = (&run.step.inputs[0], &run.step.inputs[1], &run.step.outputs[0]);
    let g = Geometry::new(conv, gx.layout.shape(), w.layout.shape(), gy.layout.shape());
    let (w, gy) = (run.memory.read::<T>(w), run.memory.read::<T>(gy));
    let gx = run.memory.write::<T>(gx);
    let scratch = run.memory.scratch::<T>(run.step.scratch);
    if gx.is_empty() {
        return;
    }
    if g.is_depthwise() {
        return depthwise::grad_input(run, &g, w, gy, gx, scratch);
    }
    if let Some(tiles) = Tiles::of_input::<T>(&g, run.winograd)
        && winograd::convolve(
            run,
            &tiles,
            gy,
            gx,
            scratch,
            #[inline(always)]
            |input, output| {
                let mut taps = kernel(w, output * g.inputs + input);
                taps.reverse();
                taps
            },
        )
    {
        return;
    }
    let (plane, group_in, group_out) =
        (g.output_plane(), g.inputs * g.input_plane(), g.outputs * g.output_plane());
    let patches = Patches::backward(&g);
    let (packed, parts) = patches.prepare(run, &g, w, scratch);
    // One that is empty, where there is no output.
    let (out, tiles) = (Shared::new(gx), g.tiles().max(1));
    // Patches of neighbouring tiles overlap, but where they are the input itself.
    let together = if g.is_pointwise() { 1 } else { tiles };
    run.tasks(g.batch * conv.groups * tiles / together, |task| {
        let at = task * together / tiles;
        let (gy, left) = (&gy[at * group_out..][..group_out], patches.left(&g, w, packed, at % conv.groups));
        let columns = |rows: &Range<usize>| Matrix::rows(gy, plane).columns_from(rows.start * g.output[1]);
        if g.is_pointwise() {
            let rows = rows(&g, task % tiles);
            let gx = Target { start: out.pointer(at * group_in + rows.start * g.output[1]), stride: plane };
            // SAFETY: tasks write different rows of different groups of planes, and `gx` is borrowed until all are done.
            return parts
                .with(|part| unsafe { left.times(columns(&rows), rows.len() * g.output[1], gx, part) });
        }
        // SAFETY: tasks write different groups of planes, and `gx` is borrowed until all are done.
        let gx = unsafe { out.part(at * group_in, group_in) };
        gx.fill(T::ZERO);
        parts.with(|part| {
            let (tile, part) = part.split_at_mut(g.tile());
            for rows in (0..tiles).map(|tile| rows(&g, tile)) {
                let count = rows.len() * g.output[1];
                let patches = &mut tile[..g.patch() * count];
                let to = Target { start: patches.as_mut_ptr(), stride: count };
                // SAFETY: the slice has a row for each tap of as many columns.
                unsafe { left.times(columns(&rows), count, to, part) };
                col2im(&g, patches, rows, gx);
            }
        });
    });
}

/// The n-th kernel of 3×3.
#[inline(always)]
fn kernel<T: Real>(w: &[T], n: usize) -> [T; TAPS] {
    w.as_chunks().0[n]
}

/// Images whose gradients of the weight are summed by one task. The number of sums depends on the shape
/// alone, and they are added in order: equal bits on any number of threads.
fn images_a_sum(batch: usize) -> usize {
    batch.div_ceil(8).max(1)
}

/// The sizes of the product of the gradient of y and patches that is an image's gradient of the weight.
fn weight_sizes(g: &Geometry) -> [usize; 3] {
    [g.outputs, g.tile_columns(), g.patch()]
}

/// Scratch elements of an image's gradient of the weight: a tile of patches and what the product takes.
fn weight_part<T: Real>(g: &Geometry) -> usize {
    if g.is_depthwise() {
        depthwise::weight_part(g)
    } else {
        g.tile().saturating_add(accumulate_part::<T>(weight_sizes(g)))
    }
}

/// Scratch elements of the gradient of the weight: for each sum its gradient and what an image's takes; as many as Winograd's
/// algorithm takes, if that is more.
pub(super) fn grad_weight_scratch<T: Real>(
    conv: &Conv2d,
    inputs: &[&ValueInfo],
    outputs: &[&ValueInfo],
    cpu: &Cpu,
) -> usize {
    let g = Geometry::new(conv, &inputs[0].shape, &outputs[0].shape, &inputs[1].shape);
    let sums = g.batch.div_ceil(images_a_sum(g.batch));
    let weight = outputs[0].shape.elements();
    let tiles = Tiles::of_weight::<T>(&g, cpu.winograd);
    let by_points = tiles.map_or(0, |tiles| winograd::grad_weight_scratch(&tiles));
    sums.saturating_mul(weight.saturating_add(weight_part::<T>(&g))).max(by_points)
}

pub(super) fn grad_weight<T: Real + Plain>(run: &Run<'_>, conv: &Conv2d) {
    let (x, gy, gw) = (&run.step.inputs[0], &run.step.inputs[1], &run.step.outputs[0]);
    let g = Geometry::new(conv, x.layout.shape(), gw.layout.shape(), gy.layout.shape());
    let (x, gy) = (run.memory.read::<T>(x), run.memory.read::<T>(gy));
    let gw = run.memory.write::<T>(gw);
    let sums = g.batch.div_ceil(images_a_sum(g.batch));
    let scratch = run.memory.scratch::<T>(run.step.scratch);
    if let Some(tiles) = Tiles::of_weight::<T>(&g, run.winograd)
        && winograd::grad_weight(run, &tiles, x, gy, gw, scratch)
    {
        return;
    }
    let (len, part) = (gw.len(), weight_part::<T>(&g));
    let (partial, parts) = scratch[..sums * (len + part)].split_at_mut(sums * len);
    let (shared, parts) = (Shared::new(partial), Shared::new(parts));
    run.tasks(sums, |sum| {
        // SAFETY: each sum has its own part of both, which are borrowed until all are done.
        let (partial, part) = unsafe { (shared.part(sum * len, len), parts.part(sum * part, part)) };
        let first = sum * images_a_sum(g.batch);
        let images = first..(first + images_a_sum(g.batch)).min(g.batch);
        if g.is_depthwise() {
            return depthwise::grad_weight(&g, images, [x, gy], partial, part);
        }
        partial.fill(T::ZERO);
        for image in images {
            add_image(&g, image, x, gy, partial, part);
        }
    });
    gw.fill(T::ZERO);
    for partial in partial.chunks_exact(len.max(1)) {
        gw.iter_mut().zip(partial).for_each(|(to, &v)| *to += v);
    }
    if conv.padding != [0, 0] && !g.is_depthwise() && !is_finite(gw) && !is_finite(gy) {
        taps::grad_weight(run, &g, x, gy, gw);
    }
}

/// Adds one image's gradient of the weight.
fn add_image<T: Real + Plain>(g: &Geometry, image: usize, x: &[T], gy: &[T], gw: &mut [T], part: &mut [T]) {
    let (plane, group_in, group_out) =
        (g.output_plane(), g.inputs * g.input_plane(), g.outputs * g.output_plane());
    for group in 0..g.conv.groups {
        let at = image * g.conv.groups + group;
        let (x, gy) = (&x[at * group_in..][..group_in], &gy[at * group_out..][..group_out]);
        let gw = &mut gw[group * g.outputs * g.patch()..][..g.outputs * g.patch()];
        let (tile, part) = part.split_at_mut(g.tile());
        for rows in (0..g.tiles()).map(|tile| rows(g, tile)) {
            let (first, count) = (rows.start * g.output[1], rows.len() * g.output[1]);
            let columns = patches_of(g, x, rows, tile);
            let gy = Matrix::rows(gy, plane).columns_from(first);
            accumulate([g.outputs, count, g.patch()], gy, columns.turned(), gw, part);
        }
    }
}
