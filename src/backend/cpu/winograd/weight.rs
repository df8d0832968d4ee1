//! The gradient of the weight: at each point a product over all tiles.

use super::{
    super::{
        executable::Run,
        memory::Shared,
        product::block::{BLOCK, COLUMNS, ROWS},
        real::Real,
        simd::vectorised,
        sum::is_finite,
    },
    LANES, READ, TAPS, TILE, Tiles, place, read_square,
    transforms::{PATCH, POINTS, gathered, of_gradient, of_input, of_squares, to_kernel},
};

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
        self.rows * self.columns * BLOCK
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
    transform_back(run, tiles, &cut, sums, gw);
    is_finite(gw)
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
            let mut rows = [[[T::ZERO; READ]; ROWS]; PATCH];
            for panel in 0..cut.rows {
                of_squares::<T, TILE, ROWS>(
                    #[inline(always)]
                    |lane| {
                        let output = panel * ROWS + lane;
                        if output >= tiles.outputs {
                            return [[T::ZERO; READ]; TILE];
                        }
                        read_square(
                            &gy[(tile.image * tiles.outputs + output) * plane..][..plane],
                            tiles.output,
                            corner,
                        )
                    },
                    of_gradient,
                    &mut rows,
                    #[inline(always)]
                    |point, lanes| {
                        let start = ((point * cut.rows + panel) * count + nth) * ROWS;
                        // SAFETY: as the caller promises.
                        unsafe { to.part(start, ROWS) }.copy_from_slice(lanes);
                    },
                );
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
            let mut rows = [[[T::ZERO; READ]; LANES]; PATCH];
            for group in 0..cut.columns * COLUMNS / LANES {
                let (panel, half) = place(group);
                of_squares::<T, PATCH, LANES>(
                    #[inline(always)]
                    |lane| {
                        let input = group * LANES + lane;
                        if input >= tiles.inputs {
                            return [[T::ZERO; READ]; PATCH];
                        }
                        let plane = &x[(tile.image * tiles.inputs + input) * plane..][..plane];
                        read_square(plane, tiles.input, tiles.corner(tile))
                    },
                    of_input,
                    &mut rows,
                    #[inline(always)]
                    |point, lanes| {
                        let start = ((point * cut.columns + panel) * count + nth) * COLUMNS + half;
                        // SAFETY: as the caller promises.
                        unsafe { to.part(start, LANES) }.copy_from_slice(lanes);
                    },
                );
            }
        },
    );
}

/// Adds a round's products at one point.
fn accumulate<T: Real>(cut: &Cut, count: usize, gradients: &[T], patches: &[T], sums: &mut [T]) {
    let mut blocks = sums.chunks_exact_mut(BLOCK);
    for patches in patches.chunks_exact(count * COLUMNS).take(cut.columns) {
        for gradients in gradients.chunks_exact(count * ROWS).take(cut.rows) {
            let Some(to) = blocks.next() else { return };
            // SAFETY: a block of the sums, which are borrowed mutably.
            unsafe { T::block(gradients, patches, to.as_mut_ptr(), COLUMNS, true) };
        }
    }
}

/// Outputs that one task transforms back.
const TASK_OUTPUTS: usize = 16;

fn transform_back<T: Real>(run: &Run<'_>, tiles: &Tiles, cut: &Cut, sums: &[T], gw: &mut [T]) {
    let (an_output, shared) = (tiles.inputs * TAPS, Shared::new(gw));
    run.tasks(tiles.outputs.div_ceil(TASK_OUTPUTS), |task| {
        let outputs = task * TASK_OUTPUTS..(task * TASK_OUTPUTS + TASK_OUTPUTS).min(tiles.outputs);
        vectorised(
            #[inline(always)]
            || {
                for output in outputs {
                    // SAFETY: each output has kernels of its own, which are borrowed until all are done.
                    let gw = unsafe { shared.part(output * an_output, an_output) };
                    for (column, kernels) in gw.chunks_mut(COLUMNS * TAPS).enumerate() {
                        let row = (column * cut.rows + output / ROWS) * ROWS + output % ROWS;
                        let taps = to_kernel::<T, COLUMNS>(&gathered(&sums[row * COLUMNS..], cut.sums()));
                        for (lane, kernel) in kernels.chunks_exact_mut(TAPS).enumerate() {
                            for (to, tap) in kernel.iter_mut().zip(taps.as_flattened()) {
                                *to = tap[lane];
                            }
                        }
                    }
                }
            },
        );
    });
}
