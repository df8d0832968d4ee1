//! Convolutions with 3×3 kernels by Winograd's algorithm F(4×4, 3×3): a quarter of the multiplications.
//!
//! The output is cut into tiles of 4×4. Each tile's patch of the input and each kernel are transformed to 36 points; at each
//! point the convolution is a product of matrices, over the input's channels; and the products are transformed back. The
//! product runs over matrices that the transforms write in the order in which it reads them.
//!
//! Results differ from those of a sum over patches by some units of 1e-6 of the largest as a rule, in `f32`. What is not finite
//! would spread over its tile: where a result is not, both functions here say so, and it is computed once more from patches.

mod forward;
mod transforms;
mod weight;

use super::{im2col::Geometry, product::block::COLUMNS, real::Real};

pub(super) use forward::{convolve, scratch as convolve_scratch};
pub(super) use weight::{grad_weight, scratch as grad_weight_scratch};

pub(super) use transforms::TAPS;
use transforms::{POINTS, TILE};

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

impl Winograd {
    /// Where it is faster, or never.
    pub fn where_faster(is_used: bool) -> Self {
        if is_used { Self::WhereFaster } else { Self::Never }
    }
}

/// Channels on either side from which on the transforms cost less than what the product saves.
const LEAST_CHANNELS: usize = 16;
/// Tiles from which on several tasks have whole blocks of them.
const LEAST_TILES: usize = 4 * COLUMNS;
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
    pub(super) fn of_output<T: Real>(g: &Geometry, when: Winograd) -> Option<Self> {
        Self::new::<T>(g, when, [g.inputs, g.outputs], [g.input, g.output], g.conv.padding)
    }

    /// Those of the gradient of x, which is a convolution of that of y with the kernels turned round.
    pub(super) fn of_input<T: Real>(g: &Geometry, when: Winograd) -> Option<Self> {
        let [down, across] = g.conv.padding;
        let padding = [2_usize.checked_sub(down)?, 2_usize.checked_sub(across)?];
        Self::new::<T>(g, when, [g.outputs, g.inputs], [g.output, g.input], padding)
    }

    /// Those of y, of which the gradient of the weight is a sum: at each point of whole blocks of inputs.
    pub(super) fn of_weight<T: Real>(g: &Geometry, when: Winograd) -> Option<Self> {
        Self::of_output::<T>(g, when).filter(|_| when == Winograd::Always || g.inputs >= COLUMNS)
    }

    fn new<T: Real>(
        g: &Geometry,
        when: Winograd,
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
        let is_faster = T::has_blocks()
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

/// Tiles or channels that are transformed at once.
const LANES: usize = 16;

/// The block that a group of lanes belongs to, and its first column there.
#[inline(always)]
fn place(group: usize) -> (usize, usize) {
    (group * LANES / COLUMNS, group * LANES % COLUMNS)
}

/// Numbers of a row of a patch as it is read: whole vectors. Those beyond the patch are whatever lies there.
const READ: usize = 8;

/// Rows of a square of a plane from a corner on, zeros where they lie outside.
#[inline(always)]
fn read_square<T: Real, const S: usize>(
    plane: &[T],
    [height, width]: [usize; 2],
    [row, column]: [isize; 2],
) -> [[T; READ]; S] {
    // Zeros before the row's first number, and the first column that is read.
    let (before, first) = (column.min(0).unsigned_abs().min(READ), column.max(0).unsigned_abs());
    let inside = width.saturating_sub(first);
    let mut square = [[T::ZERO; READ]; S];
    for (i, to) in square.iter_mut().enumerate() {
        let Some(row) = row.checked_add_unsigned(i).and_then(|row| usize::try_from(row).ok()) else {
            continue;
        };
        if row >= height {
            break;
        }
        let from = plane.get(row * width + first..).unwrap_or_default();
        let Some(numbers) = from.first_chunk::<READ>() else {
            let numbers = &from[..inside.min(from.len())];
            to.iter_mut().skip(before).zip(numbers).for_each(|(to, &from)| *to = from);
            continue;
        };
        if before == 0 && inside >= S {
            *to = *numbers;
            continue;
        }
        let mut shifted = [T::ZERO; 2 * READ];
        for (n, (to, &number)) in shifted[before..before + READ].iter_mut().zip(numbers).enumerate() {
            *to = if n < inside { number } else { T::ZERO };
        }
        to.copy_from_slice(&shifted[..READ]);
    }
    square
}
