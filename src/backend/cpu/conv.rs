//! 2-d convolution and its two gradients.
//!
//! Tasks are images. Scratch is cut into as many parts as threads may work; a task takes a free one, so
//! which part it gets decides nothing about its result.

use super::{
    contraction::{Matrix, product},
    depthwise,
    executable::Run,
    im2col::{Geometry, col2im, im2col},
    memory::{Plain, Shared},
    parts::Parts,
    real::Real,
    winograd::{self, Tiles, Winograd},
};
use crate::{
    graph::{Conv2d, ValueInfo},
    tensor::DType,
};

/// Whether products by blocks are fast for a type.
fn has_blocks(dtype: DType) -> bool {
    if dtype == DType::F64 { f64::has_blocks() } else { f32::has_blocks() }
}

/// Scratch elements of the forward pass: what Winograd's algorithm takes, or a tile of patches for each thread.
pub(super) fn forward_scratch(
    conv: &Conv2d,
    inputs: &[&ValueInfo],
    outputs: &[&ValueInfo],
    (winograd, threads): (Winograd, usize),
) -> usize {
    let g = Geometry::new(conv, &inputs[0].shape, &inputs[1].shape, &outputs[0].shape);
    match Tiles::of_output(&g, winograd, has_blocks(outputs[0].dtype)) {
        Some(tiles) => winograd::convolve_scratch(&tiles, threads),
        None => g.tile().saturating_mul(threads),
    }
}

/// Scratch elements of the gradient of the input, likewise.
pub(super) fn grad_input_scratch(
    conv: &Conv2d,
    inputs: &[&ValueInfo],
    outputs: &[&ValueInfo],
    (winograd, threads): (Winograd, usize),
) -> usize {
    let g = Geometry::new(conv, &outputs[0].shape, &inputs[0].shape, &inputs[1].shape);
    match Tiles::of_input(&g, winograd, has_blocks(outputs[0].dtype)) {
        Some(tiles) => winograd::convolve_scratch(&tiles, threads),
        None => g.tile().saturating_mul(threads),
    }
}

pub(super) fn forward<T: Real + Plain>(run: &Run<'_>, conv: &Conv2d) {
    let (x, w, y) = (&run.step.inputs[0], &run.step.inputs[1], &run.step.outputs[0]);
    let g = Geometry::new(conv, x.layout.shape(), w.layout.shape(), y.layout.shape());
    let (x, w) = (run.memory.read::<T>(x), run.memory.read::<T>(w));
    let y = run.memory.write::<T>(y);
    if y.is_empty() {
        return;
    }
    if g.is_depthwise() {
        return depthwise::forward(run, &g, x, w, y);
    }
    if let Some(tiles) = Tiles::of_output(&g, run.winograd, T::has_blocks()) {
        let scratch = run.memory.scratch::<T>(run.step.scratch);
        let taps = |output, input| kernel(w, output * g.inputs + input);
        return winograd::convolve(run, &tiles, x, y, scratch, taps);
    }
    let (plane, group_in, group_out) =
        (g.output_plane(), g.inputs * g.input_plane(), g.outputs * g.output_plane());
    let parts = Parts::new(run.memory.scratch::<T>(run.step.scratch), g.tile());
    let out = Shared::new(y);
    run.tasks(g.batch * conv.groups, |task| {
        let group = task % conv.groups;
        let x = &x[task * group_in..][..group_in];
        let weight = Matrix::rows(&w[group * g.outputs * g.patch()..][..g.outputs * g.patch()], g.patch());
        // SAFETY: tasks write different groups of planes, and `y` is borrowed until all are done.
        let y = unsafe { out.part(task * group_out, group_out) };
        if g.is_pointwise() {
            return product([g.outputs, g.inputs, plane], weight, Matrix::rows(x, plane), y, plane, false);
        }
        parts.with(|tile| {
            for first in (0..g.output[0]).step_by(g.tile_rows()) {
                let rows = first..(first + g.tile_rows()).min(g.output[0]);
                let count = rows.len() * g.output[1];
                let columns = &mut tile[..g.patch() * count];
                im2col(&g, x, rows, columns);
                let y = &mut y[first * g.output[1]..];
                product([g.outputs, g.patch(), count], weight, Matrix::rows(columns, count), y, plane, false);
            }
        });
    });
}

pub(super) fn grad_input<T: Real + Plain>(run: &Run<'_>, conv: &Conv2d) {
    let (w, gy, gx) = (&run.step.inputs[0], &run.step.inputs[1], &run.step.outputs[0]);
    let g = Geometry::new(conv, gx.layout.shape(), w.layout.shape(), gy.layout.shape());
    let (w, gy) = (run.memory.read::<T>(w), run.memory.read::<T>(gy));
    let gx = run.memory.write::<T>(gx);
    if gx.is_empty() {
        return;
    }
    if g.is_depthwise() {
        return depthwise::grad_input(run, &g, w, gy, gx);
    }
    if let Some(tiles) = Tiles::of_input(&g, run.winograd, T::has_blocks()) {
        let scratch = run.memory.scratch::<T>(run.step.scratch);
        let taps = |input, output| {
            let mut taps = kernel(w, output * g.inputs + input);
            taps.reverse();
            taps
        };
        return winograd::convolve(run, &tiles, gy, gx, scratch, taps);
    }
    let (plane, group_in, group_out) =
        (g.output_plane(), g.inputs * g.input_plane(), g.outputs * g.output_plane());
    let parts = Parts::new(run.memory.scratch::<T>(run.step.scratch), g.tile());
    let out = Shared::new(gx);
    run.tasks(g.batch * conv.groups, |task| {
        let group = task % conv.groups;
        let gy = &gy[task * group_out..][..group_out];
        let weight = Matrix::columns(&w[group * g.outputs * g.patch()..][..g.outputs * g.patch()], g.patch());
        // SAFETY: tasks write different groups of planes, and `gx` is borrowed until all are done.
        let gx = unsafe { out.part(task * group_in, group_in) };
        if g.is_pointwise() {
            return product([g.inputs, g.outputs, plane], weight, Matrix::rows(gy, plane), gx, plane, false);
        }
        gx.fill(T::ZERO);
        parts.with(|tile| {
            for first in (0..g.output[0]).step_by(g.tile_rows()) {
                let rows = first..(first + g.tile_rows()).min(g.output[0]);
                let count = rows.len() * g.output[1];
                let gy = Matrix { data: &gy[first * g.output[1]..], row_stride: plane, column_stride: 1 };
                let columns = &mut tile[..g.patch() * count];
                product([g.patch(), g.outputs, count], weight, gy, columns, count, false);
                col2im(&g, columns, rows, gx);
            }
        });
    });
}

/// The n-th kernel of 3×3.
#[inline(always)]
fn kernel<T: Real>(w: &[T], n: usize) -> [T; 9] {
    w.as_chunks::<9>().0[n]
}

/// Images whose gradients of the weight are summed by one task. The number of sums depends on the shape
/// alone, and they are added in order: equal bits on any number of threads.
fn images_a_sum(batch: usize) -> usize {
    batch.div_ceil(8).max(1)
}

/// Scratch elements of the gradient of the weight: for each sum its gradient and a tile of patches; as many as Winograd's
/// algorithm takes, if that is more.
pub(super) fn grad_weight_scratch(
    conv: &Conv2d,
    inputs: &[&ValueInfo],
    outputs: &[&ValueInfo],
    winograd: Winograd,
) -> usize {
    let g = Geometry::new(conv, &inputs[0].shape, &outputs[0].shape, &inputs[1].shape);
    let sums = g.batch.div_ceil(images_a_sum(g.batch));
    let weight = outputs[0].shape.elements();
    let tiles = Tiles::of_output(&g, winograd, has_blocks(outputs[0].dtype));
    let by_points = tiles.map_or(0, |tiles| winograd::grad_weight_scratch(&tiles));
    sums.saturating_mul(weight.saturating_add(g.tile())).max(by_points)
}

pub(super) fn grad_weight<T: Real + Plain>(run: &Run<'_>, conv: &Conv2d) {
    let (x, gy, gw) = (&run.step.inputs[0], &run.step.inputs[1], &run.step.outputs[0]);
    let g = Geometry::new(conv, x.layout.shape(), gw.layout.shape(), gy.layout.shape());
    let (x, gy) = (run.memory.read::<T>(x), run.memory.read::<T>(gy));
    let gw = run.memory.write::<T>(gw);
    let sums = g.batch.div_ceil(images_a_sum(g.batch));
    let scratch = run.memory.scratch::<T>(run.step.scratch);
    if let Some(tiles) = Tiles::of_output(&g, run.winograd, T::has_blocks())
        && winograd::grad_weight(run, &tiles, x, gy, gw, scratch)
    {
        return;
    }
    let scratch = &mut scratch[..sums * (gw.len() + g.tile())];
    let (partial, tiles) = scratch.split_at_mut(sums * gw.len());
    let (len, shared, tiles) = (gw.len(), Shared::new(partial), Shared::new(tiles));
    run.tasks(sums, |sum| {
        // SAFETY: each sum has its own part of both, which are borrowed until all are done.
        let (partial, tile) = unsafe { (shared.part(sum * len, len), tiles.part(sum * g.tile(), g.tile())) };
        partial.fill(T::ZERO);
        let first = sum * images_a_sum(g.batch);
        for image in first..(first + images_a_sum(g.batch)).min(g.batch) {
            add_image(&g, image, x, gy, partial, tile);
        }
    });
    gw.fill(T::ZERO);
    for partial in partial.chunks_exact(len.max(1)) {
        gw.iter_mut().zip(partial).for_each(|(to, &v)| *to += v);
    }
}

/// Adds one image's gradient of the weight.
fn add_image<T: Real + Plain>(g: &Geometry, image: usize, x: &[T], gy: &[T], gw: &mut [T], tile: &mut [T]) {
    let (plane, group_in, group_out) =
        (g.output_plane(), g.inputs * g.input_plane(), g.outputs * g.output_plane());
    for group in 0..g.conv.groups {
        let at = image * g.conv.groups + group;
        let (x, gy) = (&x[at * group_in..][..group_in], &gy[at * group_out..][..group_out]);
        let gw = &mut gw[group * g.outputs * g.patch()..][..g.outputs * g.patch()];
        if g.is_depthwise() {
            depthwise::add_grad_weight(g, x, gy, gw);
        } else if g.is_pointwise() {
            let sizes = [g.outputs, plane, g.inputs];
            product(sizes, Matrix::rows(gy, plane), Matrix::columns(x, plane), gw, g.inputs, true);
        } else {
            for first in (0..g.output[0]).step_by(g.tile_rows()) {
                let rows = first..(first + g.tile_rows()).min(g.output[0]);
                let count = rows.len() * g.output[1];
                let columns = &mut tile[..g.patch() * count];
                im2col(g, x, rows, columns);
                let gy = Matrix { data: &gy[first * g.output[1]..], row_stride: plane, column_stride: 1 };
                let sizes = [g.outputs, count, g.patch()];
                product(sizes, gy, Matrix::columns(columns, count), gw, g.patch(), true);
            }
        }
    }
}
