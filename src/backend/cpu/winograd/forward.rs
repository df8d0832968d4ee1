//! The result of a convolution, or the gradient of its input, tile by tile.

use std::sync::atomic::{AtomicBool, Ordering};

use smallvec::SmallVec;

use super::{
    super::{
        executable::Run,
        memory::Shared,
        parts::Parts,
        product::block::{BLOCK, COLUMNS, ROWS},
        real::Real,
        simd::vectorised,
    },
    LANES, READ, TAPS, TILE, Tile, Tiles, place, read_square,
    transforms::{PATCH, POINTS, gathered, of_input, of_kernel, of_products, of_squares},
};

/// Numbers of a task's patches and products, which should stay in the cache that a core has alone, or near it.
const TASK_NUMBERS: usize = 512 * 1024;

impl Tiles {
    /// The tiles of a group of lanes, of so many tiles from one on: fewer than lanes where they end.
    fn of_lanes(&self, first: usize, group: usize, count: usize) -> SmallVec<[Tile; LANES]> {
        (group * LANES..(group * LANES + LANES).min(count)).map(|nth| self.tile(first + nth)).collect()
    }
}

/// How the work is cut.
#[derive(Clone, Copy)]
struct Cut {
    /// Blocks of outputs.
    panels: usize,
    /// Tiles of a task: whole blocks.
    tiles: usize,
}

impl Cut {
    fn of(tiles: &Tiles) -> Self {
        let panels = tiles.outputs.div_ceil(ROWS);
        let a_tile = POINTS * (tiles.inputs + panels * ROWS);
        let at_once = (TASK_NUMBERS / a_tile).clamp(COLUMNS, 2 * COLUMNS) / COLUMNS * COLUMNS;
        Self { panels, tiles: at_once.min(tiles.total.next_multiple_of(COLUMNS)) }
    }

    /// Numbers of all transformed kernels.
    fn kernels(&self, tiles: &Tiles) -> usize {
        self.panels * self.panel(tiles)
    }

    /// Numbers of the transformed kernels of a block of outputs.
    fn panel(&self, tiles: &Tiles) -> usize {
        POINTS * tiles.inputs * ROWS
    }

    /// Numbers of a task's patches.
    fn patches(&self, tiles: &Tiles) -> usize {
        POINTS * self.tiles * tiles.inputs
    }

    /// Numbers of a task's products.
    fn products(&self) -> usize {
        POINTS * self.tiles * self.panels * ROWS
    }

    fn part(&self, tiles: &Tiles) -> usize {
        self.patches(tiles) + self.products()
    }
}

/// Scratch elements: all kernels, and the patches and products of a task for each thread that has one.
pub(in super::super) fn scratch(tiles: &Tiles, threads: usize) -> usize {
    let cut = Cut::of(tiles);
    let tasks = tiles.total.div_ceil(cut.tiles);
    cut.kernels(tiles).saturating_add(cut.part(tiles).saturating_mul(threads.min(tasks)))
}

/// y of x, with the taps of the kernel that leads from one channel of x to one of y, by the latter first; `false` when it holds
/// what is not finite, and may hold it where it does not belong.
pub(in super::super) fn convolve<T: Real>(
    run: &Run<'_>,
    tiles: &Tiles,
    x: &[T],
    y: &mut [T],
    scratch: &mut [T],
    taps: impl Fn(usize, usize) -> [T; TAPS] + Sync,
) -> bool {
    let cut = Cut::of(tiles);
    let (kernels, parts) = scratch.split_at_mut(cut.kernels(tiles));
    let shared = Shared::new(kernels);
    run.tasks(cut.panels, |panel| {
        // SAFETY: each panel has a part of its own, and the kernels are borrowed until all are done.
        let kernels = unsafe { shared.part(panel * cut.panel(tiles), cut.panel(tiles)) };
        transform_kernels(tiles, panel, kernels, &taps);
    });
    let (parts, out) = (Parts::new(parts, cut.part(tiles)), Shared::new(y));
    let is_finite = AtomicBool::new(true);
    run.tasks(tiles.total.div_ceil(cut.tiles), |task| {
        let first = task * cut.tiles;
        let count = cut.tiles.min(tiles.total - first);
        parts.with(|part| {
            let (patches, products) = part.split_at_mut(cut.patches(tiles));
            transform_patches(tiles, first, count, x, patches);
            multiply(tiles, &cut, count, kernels, patches, products);
            // SAFETY: tasks write different tiles, and `y` is borrowed until all are done.
            if !unsafe { write_tiles(tiles, &cut, first, count, products, &out) } {
                is_finite.store(false, Ordering::Relaxed);
            }
        });
    });
    is_finite.into_inner()
}

/// By point, then by channel of the input: [`ROWS`] outputs.
fn transform_kernels<T: Real>(
    tiles: &Tiles,
    panel: usize,
    kernels: &mut [T],
    taps: impl Fn(usize, usize) -> [T; TAPS],
) {
    vectorised(
        #[inline(always)]
        || {
            for input in 0..tiles.inputs {
                let mut g = [[[T::ZERO; ROWS]; 3]; 3];
                let outputs = panel * ROWS..(panel * ROWS + ROWS).min(tiles.outputs);
                for (lane, output) in outputs.enumerate() {
                    let taps = taps(output, input);
                    for (n, tap) in taps.into_iter().enumerate() {
                        g[n / 3][n % 3][lane] = tap;
                    }
                }
                let points = of_kernel(&g);
                for (point, lanes) in points.as_flattened().iter().enumerate() {
                    kernels[(point * tiles.inputs + input) * ROWS..][..ROWS].copy_from_slice(lanes);
                }
            }
        },
    );
}

/// By point, block of tiles and channel: [`COLUMNS`] tiles.
fn transform_patches<T: Real>(tiles: &Tiles, first: usize, count: usize, x: &[T], patches: &mut [T]) {
    let blocks = count.div_ceil(COLUMNS);
    let a_point = blocks * tiles.inputs * COLUMNS;
    let plane = tiles.input_plane();
    vectorised(
        #[inline(always)]
        || {
            let mut rows = [[[T::ZERO; READ]; LANES]; PATCH];
            for group in 0..blocks * COLUMNS / LANES {
                let (block, half) = place(group);
                let of_lanes = tiles.of_lanes(first, group, count);
                for input in 0..tiles.inputs {
                    let at = (block * tiles.inputs + input) * COLUMNS + half;
                    of_squares::<T, PATCH, LANES>(
                        #[inline(always)]
                        |lane| {
                            let Some(&tile) = of_lanes.get(lane) else { return [[T::ZERO; READ]; PATCH] };
                            let plane = &x[(tile.image * tiles.inputs + input) * plane..][..plane];
                            read_square(plane, tiles.input, tiles.corner(tile))
                        },
                        of_input,
                        &mut rows,
                        #[inline(always)]
                        |point, lanes| patches[point * a_point + at..][..LANES].copy_from_slice(lanes),
                    );
                }
            }
        },
    );
}

/// By point, block of tiles and output: [`COLUMNS`] tiles.
fn multiply<T: Real>(
    tiles: &Tiles,
    cut: &Cut,
    count: usize,
    kernels: &[T],
    patches: &[T],
    products: &mut [T],
) {
    let (blocks, inputs) = (count.div_ceil(COLUMNS), tiles.inputs);
    let mut products = products.chunks_exact_mut(BLOCK);
    for (point, patches) in patches.chunks_exact(blocks * inputs * COLUMNS).take(POINTS).enumerate() {
        for patches in patches.chunks_exact(inputs * COLUMNS) {
            for kernels in kernels.chunks_exact(cut.panel(tiles)) {
                let kernels = &kernels[point * inputs * ROWS..][..inputs * ROWS];
                let Some(to) = products.next() else { return };
                // SAFETY: a block of the products, which are borrowed mutably.
                unsafe { T::block(kernels, patches, to.as_mut_ptr(), COLUMNS, false) };
            }
        }
    }
}

/// Transforms products back into tiles of y; `false` when one of them is not finite.
///
/// # Safety
/// Nobody else may write to these tiles.
unsafe fn write_tiles<T: Real>(
    tiles: &Tiles,
    cut: &Cut,
    first: usize,
    count: usize,
    products: &[T],
    y: &Shared<T>,
) -> bool {
    let blocks = count.div_ceil(COLUMNS);
    let a_point = blocks * cut.panels * BLOCK;
    // 0 as long as everything is finite.
    let mut probe = [T::ZERO; LANES];
    vectorised(
        #[inline(always)]
        || {
            for group in 0..blocks * COLUMNS / LANES {
                let (block, half) = place(group);
                let of_lanes = tiles.of_lanes(first, group, count);
                for output in 0..tiles.outputs {
                    let at = (block * cut.panels * ROWS + output) * COLUMNS + half;
                    let out = of_products::<T, LANES>(&gathered(&products[at..], a_point));
                    for lanes in out.as_flattened() {
                        for (probe, &value) in probe.iter_mut().zip(lanes) {
                            *probe += value * T::ZERO;
                        }
                    }
                    let mut squares = [[T::ZERO; TILE * TILE]; LANES];
                    T::interleave(out.as_flattened().as_flattened(), LANES, &mut squares);
                    for (&tile, square) in of_lanes.iter().zip(&squares) {
                        // SAFETY: as the caller promises.
                        unsafe { write_tile(tiles, tile, output, square, y) };
                    }
                }
            }
        },
    );
    probe.iter().all(|&probe| probe == T::ZERO)
}

/// Writes a tile of a channel of y, as far as it lies within.
///
/// # Safety
/// Nobody else may write to this tile.
#[inline(always)]
unsafe fn write_tile<T: Real>(
    tiles: &Tiles,
    tile: Tile,
    output: usize,
    from: &[T; TILE * TILE],
    y: &Shared<T>,
) {
    let plane = (tile.image * tiles.outputs + output) * tiles.output_plane();
    let width = TILE.min(tiles.output[1] - tile.column);
    for (i, from) in from.as_chunks::<TILE>().0.iter().enumerate().take(tiles.output[0] - tile.row) {
        let start = plane + (tile.row + i) * tiles.output[1] + tile.column;
        // SAFETY: a row of the tile, which the caller promises to be nobody else's.
        let row = unsafe { y.part(start, width) };
        match row.first_chunk_mut() {
            Some(row) => *row = *from,
            None => row.copy_from_slice(&from[..width]),
        }
    }
}
