//! The result of a convolution, or the gradient of its input, tile by tile.

use super::{
    super::{
        block::{COLUMNS, ROWS},
        executable::Run,
        memory::Shared,
        parts::Parts,
        real::Real,
        simd::vectorised,
    },
    TAPS, TILE, Tiles, square,
    transforms::{PATCH, POINTS, of_input, of_kernel, of_products},
};

/// Tiles that are transformed at once.
const LANES: usize = 8;
/// Numbers of a task's patches and products, which should stay in the cache that a core has alone, or near it.
const TASK_NUMBERS: usize = 512 * 1024;

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
        let at_once = (TASK_NUMBERS / a_tile).clamp(2 * COLUMNS, 4 * COLUMNS) / COLUMNS * COLUMNS;
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

/// Scratch elements: all kernels, and the patches and products of a task for each thread.
pub(in super::super) fn scratch(tiles: &Tiles, threads: usize) -> usize {
    let cut = Cut::of(tiles);
    cut.kernels(tiles).saturating_add(cut.part(tiles).saturating_mul(threads))
}

/// y of x, with the taps of the kernel that leads from one channel of x to one of y, by the latter first.
pub(in super::super) fn convolve<T: Real>(
    run: &Run<'_>,
    tiles: &Tiles,
    x: &[T],
    y: &mut [T],
    scratch: &mut [T],
    taps: impl Fn(usize, usize) -> [T; TAPS] + Sync,
) {
    let cut = Cut::of(tiles);
    let (kernels, parts) = scratch.split_at_mut(cut.kernels(tiles));
    let shared = Shared::new(kernels);
    run.tasks(cut.panels, |panel| {
        // SAFETY: each panel has a part of its own, and the kernels are borrowed until all are done.
        let kernels = unsafe { shared.part(panel * cut.panel(tiles), cut.panel(tiles)) };
        transform_kernels(tiles, panel, kernels, &taps);
    });
    let (parts, out) = (Parts::new(parts, cut.part(tiles)), Shared::new(y));
    run.tasks(tiles.total.div_ceil(cut.tiles), |task| {
        let first = task * cut.tiles;
        let count = cut.tiles.min(tiles.total - first);
        parts.with(|part| {
            let (patches, products) = part.split_at_mut(cut.patches(tiles));
            transform_patches(tiles, first, count, x, patches);
            multiply(tiles, &cut, count, kernels, patches, products);
            // SAFETY: tasks write different tiles, and `y` is borrowed until all are done.
            let is_finite = unsafe { write_tiles(tiles, &cut, first, count, products, &out) };
            if !is_finite {
                // SAFETY: as above.
                unsafe { write_directly(tiles, first, count, x, &out, &taps) };
            }
        });
    });
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
            for group in 0..blocks * COLUMNS / LANES {
                let (block, half) = (group * LANES / COLUMNS, group * LANES % COLUMNS);
                let numbers = first + group * LANES..first + (group * LANES + LANES).min(count);
                for input in 0..tiles.inputs {
                    let mut d = [[[T::ZERO; LANES]; PATCH]; PATCH];
                    for (lane, number) in numbers.clone().enumerate() {
                        let tile = tiles.tile(number);
                        let plane = &x[(tile.image * tiles.inputs + input) * plane..][..plane];
                        square(plane, tiles.input, tiles.corner(tile), lane, &mut d);
                    }
                    let points = of_input(&d);
                    let at = (block * tiles.inputs + input) * COLUMNS + half;
                    for (point, lanes) in points.as_flattened().iter().enumerate() {
                        patches[point * a_point + at..][..LANES].copy_from_slice(lanes);
                    }
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
    let mut products = products.chunks_exact_mut(ROWS * COLUMNS);
    for (point, patches) in patches.chunks_exact(blocks * inputs * COLUMNS).take(POINTS).enumerate() {
        for patches in patches.chunks_exact(inputs * COLUMNS) {
            for kernels in kernels.chunks_exact(cut.panel(tiles)) {
                let kernels = &kernels[point * inputs * ROWS..][..inputs * ROWS];
                let Some(to) = products.next() else { return };
                to.copy_from_slice(T::block(kernels, patches).as_flattened());
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
    let a_point = blocks * cut.panels * ROWS * COLUMNS;
    // 0 as long as everything is finite.
    let mut probe = [T::ZERO; LANES];
    vectorised(
        #[inline(always)]
        || {
            for group in 0..blocks * COLUMNS / LANES {
                let (block, half) = (group * LANES / COLUMNS, group * LANES % COLUMNS);
                let numbers = first + group * LANES..first + (group * LANES + LANES).min(count);
                for output in 0..tiles.outputs {
                    let at = (block * cut.panels * ROWS + output) * COLUMNS + half;
                    let m: [[[T; LANES]; PATCH]; PATCH] = std::array::from_fn(|i| {
                        std::array::from_fn(|j| {
                            let from = &products[(i * PATCH + j) * a_point + at..][..LANES];
                            std::array::from_fn(|lane| from[lane])
                        })
                    });
                    let out = of_products(&m);
                    for lanes in out.as_flattened() {
                        for (probe, &value) in probe.iter_mut().zip(lanes) {
                            *probe += value * T::ZERO;
                        }
                    }
                    for (lane, number) in numbers.clone().enumerate() {
                        let tile = tiles.tile(number);
                        let plane = (tile.image * tiles.outputs + output) * tiles.output_plane();
                        let width = TILE.min(tiles.output[1] - tile.column);
                        for (i, out) in out.iter().enumerate().take(tiles.output[0] - tile.row) {
                            let start = plane + (tile.row + i) * tiles.output[1] + tile.column;
                            // SAFETY: a row of a tile, which the caller promises to be nobody else's.
                            let row = unsafe { y.part(start, width) };
                            for (to, out) in row.iter_mut().zip(out) {
                                *to = out[lane];
                            }
                        }
                    }
                }
            }
        },
    );
    probe.iter().all(|&probe| probe == T::ZERO)
}

/// Computes tiles of y tap by tap.
///
/// # Safety
/// As for [`write_tiles`].
unsafe fn write_directly<T: Real>(
    tiles: &Tiles,
    first: usize,
    count: usize,
    x: &[T],
    y: &Shared<T>,
    taps: impl Fn(usize, usize) -> [T; TAPS],
) {
    for output in 0..tiles.outputs {
        for tile in (first..first + count).map(|number| tiles.tile(number)) {
            let mut sums = [[[T::ZERO; 1]; TILE]; TILE];
            for input in 0..tiles.inputs {
                let plane = &x[(tile.image * tiles.inputs + input) * tiles.input_plane()..];
                let mut patch = [[[T::ZERO; 1]; PATCH]; PATCH];
                square(&plane[..tiles.input_plane()], tiles.input, tiles.corner(tile), 0, &mut patch);
                // What lies outside is no factor: nothing times infinity is not a number.
                let [row, column] = tiles.corner(tile);
                let is_inside = |first: isize, n: usize, size: usize| {
                    usize::try_from(first + n as isize).is_ok_and(|at| at < size)
                };
                for (n, tap) in taps(output, input).into_iter().enumerate() {
                    for i in (0..TILE).filter(|i| is_inside(row, i + n / 3, tiles.input[0])) {
                        for j in (0..TILE).filter(|j| is_inside(column, j + n % 3, tiles.input[1])) {
                            sums[i][j][0] += tap * patch[i + n / 3][j + n % 3][0];
                        }
                    }
                }
            }
            let plane = (tile.image * tiles.outputs + output) * tiles.output_plane();
            let width = TILE.min(tiles.output[1] - tile.column);
            for (i, sums) in sums.iter().enumerate().take(tiles.output[0] - tile.row) {
                let start = plane + (tile.row + i) * tiles.output[1] + tile.column;
                // SAFETY: as above.
                let row = unsafe { y.part(start, width) };
                row.iter_mut().zip(sums).for_each(|(to, sum)| *to = sum[0]);
            }
        }
    }
}
