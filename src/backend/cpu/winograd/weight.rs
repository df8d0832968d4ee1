//! The gradient of the weight: at each point a product over all tiles.

use super::{
    super::{
        block::{COLUMNS, ROWS},
        executable::Run,
        memory::Shared,
        real::Real,
        simd::vectorised,
    },
    TILE, Tiles, square,
    transforms::{PATCH, POINTS, of_gradient, of_input, to_kernel},
};

/// Channels that are transformed at once.
const LANES: usize = 8;
/// Numbers of the patches and gradients that are transformed before they are multiplied.
const ROUND_NUMBERS: usize = 6 << 20;
/// Tiles that one task transforms.
const TASK_TILES: usize = 16;

/// How the work is cut.
#[derive(Clone, Copy)]
struct Cut {
    /// Blocks of outputs, and of inputs.
    rows: usize,
    columns: usize,
    /// Tiles of a round.
    tiles: usize,
}

impl Cut {
    fn of(tiles: &Tiles) -> Self {
        let (rows, columns) = (tiles.outputs.div_ceil(ROWS), tiles.inputs.div_ceil(COLUMNS));
        let a_tile = POINTS * (rows * ROWS + columns * COLUMNS);
        let at_once = (ROUND_NUMBERS / a_tile).max(TASK_TILES) / TASK_TILES * TASK_TILES;
        Self { rows, columns, tiles: at_once.min(tiles.total) }
    }

    /// Numbers of a round's gradients.
    fn gradients(&self) -> usize {
        POINTS * self.rows * ROWS * self.tiles
    }

    /// Numbers of a round's patches.
    fn patches(&self) -> usize {
        POINTS * self.columns * COLUMNS * self.tiles
    }

    /// Numbers of the sums of a point.
    fn sums(&self) -> usize {
        self.rows * self.columns * ROWS * COLUMNS
    }
}

/// Scratch elements: a round's gradients and patches, and all sums.
pub(in super::super) fn scratch(tiles: &Tiles) -> usize {
    let cut = Cut::of(tiles);
    cut.gradients().saturating_add(cut.patches()).saturating_add(POINTS.saturating_mul(cut.sums()))
}

/// The gradient of the weight; `false` when it holds what is not finite, and may hold it where it does not belong.
pub(in super::super) fn grad_weight<T: Real>(
    run: &Run<'_>,
    tiles: &Tiles,
    x: &[T],
    gy: &[T],
    gw: &mut [T],
    scratch: &mut [T],
) -> bool {
    let cut = Cut::of(tiles);
    let (gradients, rest) = scratch.split_at_mut(cut.gradients());
    let (patches, sums) = rest.split_at_mut(cut.patches());
    let sums = &mut sums[..POINTS * cut.sums()];
    sums.fill(T::ZERO);
    for first in (0..tiles.total).step_by(cut.tiles) {
        let count = cut.tiles.min(tiles.total - first);
        let (to_gradients, to_patches) = (Shared::new(gradients), Shared::new(patches));
        run.tasks(count.div_ceil(TASK_TILES), |task| {
            let within = task * TASK_TILES..(task * TASK_TILES + TASK_TILES).min(count);
            for nth in within {
                // SAFETY: tasks write the numbers of different tiles, and both are borrowed until all are done.
                unsafe {
                    transform_gradient(tiles, &cut, [first, nth, count], gy, &to_gradients);
                    transform_patch(tiles, &cut, [first, nth, count], x, &to_patches);
                }
            }
        });
        let shared = Shared::new(sums);
        run.tasks(POINTS, |point| {
            // SAFETY: each point has sums of its own, which are borrowed until all are done.
            let sums = unsafe { shared.part(point * cut.sums(), cut.sums()) };
            let gradients = &gradients[point * cut.rows * count * ROWS..];
            let patches = &patches[point * cut.columns * count * COLUMNS..];
            accumulate(&cut, count, gradients, patches, sums);
        });
    }
    transform_back(tiles, &cut, sums, gw);
    gw.iter().fold(T::ZERO, |probe, &value| probe + value * T::ZERO) == T::ZERO
}

/// By point, block of outputs and tile: [`ROWS`] outputs.
///
/// # Safety
/// Nobody else may write to this tile's numbers.
unsafe fn transform_gradient<T: Real>(
    tiles: &Tiles,
    cut: &Cut,
    [first, nth, count]: [usize; 3],
    gy: &[T],
    to: &Shared<T>,
) {
    let (tile, plane) = (tiles.tile(first + nth), tiles.output_plane());
    let corner = [tile.row as isize, tile.column as isize];
    vectorised(
        #[inline(always)]
        || {
            for panel in 0..cut.rows {
                let mut square_of = [[[T::ZERO; ROWS]; TILE]; TILE];
                for lane in 0..ROWS.min(tiles.outputs - panel * ROWS) {
                    let plane = &gy[(tile.image * tiles.outputs + panel * ROWS + lane) * plane..][..plane];
                    square(plane, tiles.output, corner, lane, &mut square_of);
                }
                let points = of_gradient(&square_of);
                for (point, lanes) in points.as_flattened().iter().enumerate() {
                    let start = ((point * cut.rows + panel) * count + nth) * ROWS;
                    // SAFETY: as the caller promises.
                    unsafe { to.part(start, ROWS) }.copy_from_slice(lanes);
                }
            }
        },
    );
}

/// By point, block of inputs and tile: [`COLUMNS`] inputs.
///
/// # Safety
/// As for [`transform_gradient`].
unsafe fn transform_patch<T: Real>(
    tiles: &Tiles,
    cut: &Cut,
    [first, nth, count]: [usize; 3],
    x: &[T],
    to: &Shared<T>,
) {
    let (tile, plane) = (tiles.tile(first + nth), tiles.input_plane());
    vectorised(
        #[inline(always)]
        || {
            for group in 0..cut.columns * COLUMNS / LANES {
                let (panel, half) = (group * LANES / COLUMNS, group * LANES % COLUMNS);
                let mut patch = [[[T::ZERO; LANES]; PATCH]; PATCH];
                for lane in 0..LANES.min(tiles.inputs.saturating_sub(group * LANES)) {
                    let plane = &x[(tile.image * tiles.inputs + group * LANES + lane) * plane..][..plane];
                    square(plane, tiles.input, tiles.corner(tile), lane, &mut patch);
                }
                let points = of_input(&patch);
                for (point, lanes) in points.as_flattened().iter().enumerate() {
                    let start = ((point * cut.columns + panel) * count + nth) * COLUMNS + half;
                    // SAFETY: as the caller promises.
                    unsafe { to.part(start, LANES) }.copy_from_slice(lanes);
                }
            }
        },
    );
}

/// Adds a round's products at one point.
fn accumulate<T: Real>(cut: &Cut, count: usize, gradients: &[T], patches: &[T], sums: &mut [T]) {
    let mut blocks = sums.chunks_exact_mut(ROWS * COLUMNS);
    for patches in patches.chunks_exact(count * COLUMNS).take(cut.columns) {
        for gradients in gradients.chunks_exact(count * ROWS).take(cut.rows) {
            let Some(to) = blocks.next() else { return };
            let block = T::block(gradients, patches);
            to.iter_mut().zip(block.as_flattened()).for_each(|(to, &value)| *to += value);
        }
    }
}

fn transform_back<T: Real>(tiles: &Tiles, cut: &Cut, sums: &[T], gw: &mut [T]) {
    vectorised(
        #[inline(always)]
        || {
            for (output, gw) in gw.chunks_exact_mut(tiles.inputs * super::TAPS).enumerate() {
                for column in 0..cut.columns {
                    let row = (column * cut.rows + output / ROWS) * ROWS + output % ROWS;
                    let m: [[[T; COLUMNS]; PATCH]; PATCH] = std::array::from_fn(|i| {
                        std::array::from_fn(|j| {
                            let from = &sums[(i * PATCH + j) * cut.sums() + row * COLUMNS..][..COLUMNS];
                            std::array::from_fn(|lane| from[lane])
                        })
                    });
                    let taps = to_kernel(&m);
                    let kernels = gw[column * COLUMNS * super::TAPS..].chunks_exact_mut(super::TAPS);
                    for (lane, kernel) in kernels.take(COLUMNS).enumerate() {
                        for (to, tap) in kernel.iter_mut().zip(taps.as_flattened()) {
                            *to = tap[lane];
                        }
                    }
                }
            }
        },
    );
}
