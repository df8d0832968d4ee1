//! Convolutions with 3×3 kernels by Winograd's algorithm F(4×4, 3×3): a quarter of the multiplications.
//!
//! The output is cut into tiles of 4×4. Each tile's patch of the input and each kernel are transformed to 36 points; at each
//! point the convolution is a product of matrices, over the input's channels; and the products are transformed back. The
//! product runs over matrices that the transforms write in the order in which it reads them.
//!
//! Results differ from those of a sum over patches by some units of 1e-6 of the largest, in `f32`. What is not finite would
//! spread over its tile: tiles that hold such a result are computed once more, tap by tap.

mod forward;
#[cfg(test)]
mod tests;
mod transforms;
mod weight;

use super::im2col::Geometry;

pub(super) use forward::{convolve, scratch as convolve_scratch};
pub(super) use weight::{grad_weight, scratch as grad_weight_scratch};

use transforms::{POINTS, TAPS, TILE};

/// When it is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Winograd {
    /// Never.
    Never,
    /// Where it is faster.
    #[default]
    WhereFaster,
    /// Wherever it can be, for tests of sizes that are not worth it.
    Always,
}

/// Channels on either side from which on the transforms cost less than what the product saves.
const LEAST_CHANNELS: usize = 32;
/// Tiles from which on a task has whole blocks of them.
const LEAST_TILES: usize = 32;
/// Numbers that transformed kernels may have; they are scratch memory.
const MOST_KERNEL_NUMBERS: usize = 10 << 20;

/// A convolution as it is cut into tiles.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tiles {
    /// Channels of what is convolved, and of the result.
    inputs: usize,
    outputs: usize,
    /// Rows and columns of each.
    input: [usize; 2],
    output: [usize; 2],
    padding: [usize; 2],
    /// Tiles of a plane.
    down: usize,
    across: usize,
    /// Of all images.
    total: usize,
}

/// Where a tile lies.
#[derive(Clone, Copy)]
struct Tile {
    image: usize,
    /// Its first row and column in the output.
    row: usize,
    column: usize,
}

impl Tiles {
    /// Those of y, where the algorithm is to be used.
    pub(super) fn of_output(g: &Geometry, when: Winograd, has_blocks: bool) -> Option<Self> {
        Self::new(g, when, has_blocks, [g.inputs, g.outputs], [g.input, g.output], g.conv.padding)
    }

    /// Those of the gradient of x, which is a convolution of that of y with the kernels turned round.
    pub(super) fn of_input(g: &Geometry, when: Winograd, has_blocks: bool) -> Option<Self> {
        let [down, across] = g.conv.padding;
        let padding = [2_usize.checked_sub(down)?, 2_usize.checked_sub(across)?];
        Self::new(g, when, has_blocks, [g.outputs, g.inputs], [g.output, g.input], padding)
    }

    fn new(
        g: &Geometry,
        when: Winograd,
        has_blocks: bool,
        [inputs, outputs]: [usize; 2],
        [input, output]: [[usize; 2]; 2],
        padding: [usize; 2],
    ) -> Option<Self> {
        let is_plain = g.kernel == [3, 3]
            && g.conv.stride == [1, 1]
            && g.conv.dilation == [1, 1]
            && g.conv.groups == 1
            && !output.contains(&0);
        let [down, across] = output.map(|size| size.div_ceil(TILE));
        let total = g.batch * down * across;
        let is_faster = has_blocks
            && inputs.min(outputs) >= LEAST_CHANNELS
            && total >= LEAST_TILES
            && POINTS.saturating_mul(inputs).saturating_mul(outputs) <= MOST_KERNEL_NUMBERS
            // Of what is computed at least half is wanted.
            && 2 * output[0] * output[1] >= down * across * TILE * TILE;
        let is_used = match when {
            Winograd::Never => false,
            Winograd::WhereFaster => is_plain && is_faster,
            Winograd::Always => is_plain && total > 0 && inputs > 0 && outputs > 0,
        };
        is_used.then_some(Self { inputs, outputs, input, output, padding, down, across, total })
    }

    fn tile(&self, number: usize) -> Tile {
        let plane = self.down * self.across;
        let (image, within) = (number / plane, number % plane);
        Tile { image, row: within / self.across * TILE, column: within % self.across * TILE }
    }

    /// Elements of a plane of what is convolved.
    fn input_plane(&self) -> usize {
        self.input[0] * self.input[1]
    }

    /// Elements of a plane of the result.
    fn output_plane(&self) -> usize {
        self.output[0] * self.output[1]
    }

    /// The first row and column of the input that a tile reads, which may lie before it.
    fn corner(&self, tile: Tile) -> [isize; 2] {
        [tile.row as isize - self.padding[0] as isize, tile.column as isize - self.padding[1] as isize]
    }
}

/// Copies a square of a plane from a corner on into one lane, zeros where it lies outside.
#[inline(always)]
fn square<T: Copy, const S: usize, const L: usize>(
    plane: &[T],
    [height, width]: [usize; 2],
    [row, column]: [isize; 2],
    lane: usize,
    to: &mut [[[T; L]; S]; S],
) {
    let fits = |first: isize, size: usize| usize::try_from(first).ok().filter(|&first| first + S <= size);
    if let (Some(row), Some(column)) = (fits(row, height), fits(column, width)) {
        for (i, to) in to.iter_mut().enumerate() {
            let from: &[T] = &plane[(row + i) * width + column..][..S];
            for (to, &from) in to.iter_mut().zip(from) {
                to[lane] = from;
            }
        }
        return;
    }
    for (i, to) in to.iter_mut().enumerate() {
        let Some(row) = row.checked_add_unsigned(i).and_then(|row| usize::try_from(row).ok()) else {
            continue;
        };
        for (j, to) in to.iter_mut().enumerate() {
            let column = column.checked_add_unsigned(j).and_then(|column| usize::try_from(column).ok());
            if let Some(column) = column.filter(|&column| row < height && column < width) {
                to[lane] = plane[row * width + column];
            }
        }
    }
}
