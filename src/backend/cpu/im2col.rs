//! Convolution as a matrix product: patches of the input laid out as columns.

use std::ops::Range;

use super::{memory::Plain, product::block::COLUMNS, real::Real};
use crate::graph::Conv2d;

/// The sizes of one convolution, for one group of one image.
#[derive(Clone, Copy, Debug)]
pub(super) struct Geometry {
    pub(super) conv: Conv2d,
    pub(super) batch: usize,
    /// Input channels of a group.
    pub(super) inputs: usize,
    /// Output channels of a group.
    pub(super) outputs: usize,
    pub(super) input: [usize; 2],
    pub(super) kernel: [usize; 2],
    pub(super) output: [usize; 2],
}

impl Geometry {
    /// From the shapes of x, w and y.
    pub(super) fn new(conv: &Conv2d, x: &[usize], w: &[usize], y: &[usize]) -> Self {
        Self {
            conv: *conv,
            batch: x[0],
            inputs: w[1],
            outputs: w[0] / conv.groups,
            input: [x[2], x[3]],
            kernel: [w[2], w[3]],
            output: [y[2], y[3]],
        }
    }

    /// Elements of one plane of the input.
    pub(super) fn input_plane(&self) -> usize {
        self.input[0] * self.input[1]
    }

    /// Elements of one plane of the output.
    pub(super) fn output_plane(&self) -> usize {
        self.output[0] * self.output[1]
    }

    /// Rows of the matrix of patches.
    pub(super) fn patch(&self) -> usize {
        self.inputs * self.kernel[0] * self.kernel[1]
    }

    /// Whether patches are the input itself.
    pub(super) fn is_pointwise(&self) -> bool {
        self.kernel == [1, 1] && self.conv.stride == [1, 1] && self.conv.padding == [0, 0]
    }

    /// Whether each channel is convolved on its own.
    pub(super) fn is_depthwise(&self) -> bool {
        self.inputs == 1 && self.outputs == 1
    }

    /// Output rows whose patches are multiplied at a time: they stay in the cache, a small batch has several tiles, and
    /// each is as wide as products go well.
    pub(super) fn tile_rows(&self) -> usize {
        const TILE_ELEMENTS: usize = 128 * 1024;
        const TILES: usize = 16;
        const LEAST_COLUMNS: usize = 128;
        let (rows, columns) = (self.output[0].max(1), self.output[1].max(1));
        let a_row = (self.patch() * columns).max(1);
        let in_turn = (rows * self.batch * self.conv.groups).div_ceil(TILES).max(LEAST_COLUMNS / columns);
        (TILE_ELEMENTS / a_row).min(in_turn).max(COLUMNS.div_ceil(columns)).clamp(1, rows)
    }

    /// Columns of the matrix of patches that are multiplied at a time.
    pub(super) fn tile_columns(&self) -> usize {
        self.tile_rows() * self.output[1]
    }

    /// Tiles of an output plane.
    pub(super) fn tiles(&self) -> usize {
        self.output[0].div_ceil(self.tile_rows())
    }

    /// Elements of one tile of patches where they are laid out.
    pub(super) fn tile(&self) -> usize {
        if self.is_pointwise() { 0 } else { self.patch() * self.tile_columns() }
    }

    /// For one tap along one dimension: the outputs that read within the input, and the input index of the
    /// first of them.
    fn inside(&self, i: usize, k: usize) -> (Range<usize>, usize) {
        let (shift, padding, stride) = (k * self.conv.dilation[i], self.conv.padding[i], self.conv.stride[i]);
        let low = padding.saturating_sub(shift).div_ceil(stride);
        let high = (self.input[i] + padding).saturating_sub(shift).div_ceil(stride).min(self.output[i]);
        (low.min(high)..high, (low * stride + shift).saturating_sub(padding))
    }

    /// For every tap of every output row: the tap's number, the outputs that read within the input by their numbers in the
    /// plane, and the number in its plane of what the first of them reads.
    pub(super) fn for_each_row(&self, mut f: impl FnMut(usize, Range<usize>, usize)) {
        for kh in 0..self.kernel[0] {
            let (rows, first_row) = self.inside(0, kh);
            for kw in 0..self.kernel[1] {
                let (columns, first_column) = self.inside(1, kw);
                if columns.is_empty() {
                    continue;
                }
                for (n, row) in rows.clone().enumerate() {
                    let out = row * self.output[1] + columns.start;
                    let input = (first_row + n * self.conv.stride[0]) * self.input[1] + first_column;
                    f(kh * self.kernel[1] + kw, out..out + columns.len(), input);
                }
            }
        }
    }
}

/// Lays out the patches of output rows `rows` of one group of one image: row (c, kh, kw), column (h, w).
pub(super) fn im2col<T: Plain + Real>(g: &Geometry, x: &[T], rows: Range<usize>, columns: &mut [T]) {
    let (width, count) = (g.output[1], rows.len() * g.output[1]);
    if g.input_plane() == 0 {
        // Nothing but padding.
        return columns.fill(T::ZERO);
    }
    let mut lines = columns.chunks_exact_mut(count.max(1));
    for plane in x.chunks_exact(g.input_plane()).take(g.inputs) {
        for kh in 0..g.kernel[0] {
            let (inside_h, first_h) = g.inside(0, kh);
            for kw in 0..g.kernel[1] {
                let (inside_w, first_w) = g.inside(1, kw);
                let Some(line) = lines.next() else { return };
                for (to, h) in line.chunks_exact_mut(width.max(1)).zip(rows.clone()) {
                    if !inside_h.contains(&h) {
                        to.fill(T::ZERO);
                        continue;
                    }
                    let from_h = first_h + (h - inside_h.start) * g.conv.stride[0];
                    let row = &plane[from_h * g.input[1]..][..g.input[1]];
                    to[..inside_w.start].fill(T::ZERO);
                    to[inside_w.end..].fill(T::ZERO);
                    if inside_w.is_empty() {
                        continue;
                    }
                    let to = &mut to[inside_w.clone()];
                    if g.conv.stride[1] == 1 {
                        to.copy_from_slice(&row[first_w..first_w + to.len()]);
                    } else {
                        for (to, from) in to.iter_mut().zip(row[first_w..].iter().step_by(g.conv.stride[1])) {
                            *to = *from;
                        }
                    }
                }
            }
        }
    }
}

/// Adds patches back to where [`im2col`] took them from.
pub(super) fn col2im<T: Plain + Real>(g: &Geometry, columns: &[T], rows: Range<usize>, gx: &mut [T]) {
    let (width, count) = (g.output[1], rows.len() * g.output[1]);
    let mut lines = columns.chunks_exact(count.max(1));
    for plane in gx.chunks_exact_mut(g.input_plane().max(1)).take(g.inputs) {
        for kh in 0..g.kernel[0] {
            let (inside_h, first_h) = g.inside(0, kh);
            for kw in 0..g.kernel[1] {
                let (inside_w, first_w) = g.inside(1, kw);
                let Some(line) = lines.next() else { return };
                for (from, h) in line.chunks_exact(width.max(1)).zip(rows.clone()) {
                    if !inside_h.contains(&h) || inside_w.is_empty() {
                        continue;
                    }
                    let to_h = first_h + (h - inside_h.start) * g.conv.stride[0];
                    let row = &mut plane[to_h * g.input[1]..][..g.input[1]];
                    let from = &from[inside_w.clone()];
                    if g.conv.stride[1] == 1 {
                        row[first_w..first_w + from.len()].iter_mut().zip(from).for_each(|(to, &v)| *to += v);
                    } else {
                        row[first_w..]
                            .iter_mut()
                            .step_by(g.conv.stride[1])
                            .zip(from)
                            .for_each(|(to, &v)| *to += v);
                    }
                }
            }
        }
    }
}
