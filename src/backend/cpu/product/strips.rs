//! Products by blocks, over packed operands.
//!
//! The result is cut into strips of its longer side. The operand of the other side is packed once for all strips; each task
//! packs its strip, a piece of the depth at a time.

use std::ops::Range;

use super::{
    super::{executable::Run, memory::Shared, parts::Parts, real::Real},
    Matrix, TASK_WORK, Target,
    block::{BLOCK, COLUMNS, ROWS},
    packing::pack,
    product, product_at,
};

/// The most of the depth that is packed at once.
const DEPTH: usize = 512;
/// Numbers of a strip's pieces, which stay in the cache that a core has alone.
const STRIP_NUMBERS: usize = 64 * 1024;

/// A product as it is cut into strips.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Strips {
    sizes: [usize; 3],
    /// Whether strips are rows of the result, else columns.
    by_rows: bool,
    /// Rows or columns of a strip.
    width: usize,
    /// The part of the depth that is packed at once.
    depth: usize,
}

impl Strips {
    /// Strips of the longer side, where that pays.
    pub(in super::super) fn new<T: Real>([m, k, n]: [usize; 3]) -> Option<Self> {
        let pays =
            m >= ROWS && n >= COLUMNS && k >= ROWS && m.saturating_mul(n).saturating_mul(k) >= TASK_WORK / 8;
        (T::has_blocks() && pays).then(|| Self::cut([m, k, n], m >= n))
    }

    /// Strips of columns of the result, where that pays.
    pub(super) fn of_columns<T: Real>([m, k, n]: [usize; 3]) -> Option<Self> {
        let pays = m >= ROWS && n >= COLUMNS / 2 && k >= ROWS;
        (T::has_blocks() && pays).then(|| Self::cut([m, k, n], false))
    }

    /// Strips for products that are not by blocks.
    fn uncut([m, k, n]: [usize; 3]) -> Self {
        let by_rows = m >= n;
        let slices = (m.saturating_mul(n).saturating_mul(k) / TASK_WORK).clamp(1, 8);
        let width = m.max(n).div_ceil(slices).next_multiple_of(16);
        Self { sizes: [m, k, n], by_rows, width, depth: k }
    }

    fn cut([m, k, n]: [usize; 3], by_rows: bool) -> Self {
        let depth = k.min(DEPTH);
        let (long, other, step) = if by_rows { (m, n, ROWS) } else { (n, m, COLUMNS) };
        let worth = TASK_WORK.div_ceil(k * other);
        let width = long.div_ceil(16).max(worth).min(STRIP_NUMBERS / depth).next_multiple_of(step);
        Self { sizes: [m, k, n], by_rows, width: width.min(long.next_multiple_of(step)), depth }
    }

    /// How many there are.
    pub(in super::super) fn count(&self) -> usize {
        let [m, _, n] = self.sizes;
        if self.by_rows { m } else { n }.div_ceil(self.width)
    }

    /// Numbers of the operand that strips share.
    pub(super) fn shared(&self) -> usize {
        let [m, k, n] = self.sizes;
        k.saturating_mul(if self.by_rows { n.next_multiple_of(COLUMNS) } else { m.next_multiple_of(ROWS) })
    }

    /// Numbers of a piece of a strip.
    pub(super) fn part(&self) -> usize {
        self.width * self.depth
    }

    /// Scratch elements for so many threads.
    pub(in super::super) fn scratch(&self, threads: usize) -> usize {
        self.shared().saturating_add(self.part().saturating_mul(threads.min(self.count())))
    }

    /// Packs the operand that strips share, b where they are rows and else a, on the step's threads.
    pub(super) fn pack_shared<T: Real>(&self, run: &Run<'_>, from: Matrix<'_, T>, to: &mut [T]) {
        let [m, k, n] = self.sizes;
        let (from, lanes, panel) = if self.by_rows { (from.turned(), n, COLUMNS) } else { (from, m, ROWS) };
        let at_once = (TASK_WORK / 16 / (k * panel).max(1)).max(1) * panel;
        let shared = Shared::new(to);
        run.tasks(lanes.div_ceil(at_once), |task| {
            let first = task * at_once;
            let lanes = at_once.min(lanes - first);
            // SAFETY: tasks write different panels, and `to` is borrowed until all are done.
            let to = unsafe { shared.part(first * k, lanes.next_multiple_of(panel) * k) };
            if self.by_rows {
                pack::<T, COLUMNS>(from.rows_from(first), [lanes, k], to);
            } else {
                pack::<T, ROWS>(from.rows_from(first), [lanes, k], to);
            }
        });
    }

    /// The rows and columns of a strip's part of the result.
    pub(super) fn of(&self, strip: usize) -> [Range<usize>; 2] {
        let [m, _, n] = self.sizes;
        let of = |long: usize| strip * self.width..(strip * self.width + self.width).min(long);
        if self.by_rows { [of(m), 0..n] } else { [0..m, of(n)] }
    }

    /// Multiplies one strip: its own operand, of which it packs what is the strip's, by the shared one, which is packed.
    ///
    /// # Safety
    /// `c`, the whole result, must be valid for reads and writes of the strip's part, which nobody else touches meanwhile.
    pub(super) unsafe fn multiply<T: Real>(
        &self,
        strip: usize,
        shared: &[T],
        own: Matrix<'_, T>,
        part: &mut [T],
        c: Target<T>,
    ) {
        let ([_, k, _], [rows, columns]) = (self.sizes, self.of(strip));
        // SAFETY: within the strip's part, as the caller promises.
        let c = unsafe { c.from(rows.start, columns.start) };
        for first in (0..k).step_by(self.depth) {
            let depth = first..(first + self.depth).min(k);
            let shared = Panels { numbers: shared, depth: k, range: depth.clone() };
            let sizes = [rows.len(), columns.len()];
            let of_strip = |numbers| Panels { numbers, depth: depth.len(), range: 0..depth.len() };
            if self.by_rows {
                let own = own.rows_from(rows.start).columns_from(first);
                pack::<T, ROWS>(own, [rows.len(), depth.len()], part);
                // SAFETY: as the caller promises.
                unsafe { blocks(sizes, &of_strip(part), &shared, c, first > 0) };
            } else {
                let own = own.columns_from(columns.start).rows_from(first).turned();
                pack::<T, COLUMNS>(own, [columns.len(), depth.len()], part);
                // SAFETY: as the caller promises.
                unsafe { blocks(sizes, &shared, &of_strip(part), c, first > 0) };
            }
        }
    }
}

/// A packed operand, of whose depth a range is meant.
struct Panels<'a, T> {
    numbers: &'a [T],
    depth: usize,
    range: Range<usize>,
}

impl<'a, T> Panels<'a, T> {
    fn panel(&self, number: usize, width: usize) -> &'a [T] {
        let start = (number * self.depth + self.range.start) * width;
        &self.numbers[start..start + self.range.len() * width]
    }
}

/// c = a·b or c += a·b of packed operands.
///
/// # Safety
/// `c` must be valid for reads and writes of `m` rows of `n` elements which nobody else touches meanwhile.
unsafe fn blocks<T: Real>([m, n]: [usize; 2], a: &Panels<'_, T>, b: &Panels<'_, T>, c: Target<T>, add: bool) {
    for column in (0..n).step_by(COLUMNS) {
        let b = b.panel(column / COLUMNS, COLUMNS);
        let columns = COLUMNS.min(n - column);
        for row in (0..m).step_by(ROWS) {
            let a = a.panel(row / ROWS, ROWS);
            let rows = ROWS.min(m - row);
            // SAFETY: within the rows and columns that the caller promises.
            let to = unsafe { c.from(row, column) };
            if rows == ROWS && columns == COLUMNS {
                // SAFETY: as above.
                unsafe { T::block(a, b, to.start, to.stride, add) };
                continue;
            }
            let mut block = [T::ZERO; BLOCK];
            // SAFETY: a block of our own.
            unsafe { T::block(a, b, block.as_mut_ptr(), COLUMNS, false) };
            for (row, block) in block.chunks_exact(COLUMNS).enumerate().take(rows) {
                // SAFETY: a row of the result, within what the caller promises.
                let to = unsafe { std::slice::from_raw_parts_mut(to.from(row, 0).start, columns) };
                for (to, &value) in to.iter_mut().zip(block) {
                    *to = if add { *to + value } else { value };
                }
            }
        }
    }
}

/// c = a·b with contiguous rows of `c`, on the step's threads. `finish` is called with each part of a row of `c` once its
/// strip is there, and with its first column.
pub(in super::super) fn product_on<T: Real>(
    run: &Run<'_>,
    [m, k, n]: [usize; 3],
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    c: &mut [T],
    scratch: &mut [T],
    finish: impl Fn(&mut [T], usize) + Sync,
) {
    if c.is_empty() {
        return;
    }
    assert!(
        m * n <= c.len() && a.holds(m, k) && b.holds(k, n),
        "the result and the operands hold what is touched"
    );
    let blocks = Strips::new::<T>([m, k, n]);
    // Without blocks the same cut in eight at most, since each part packs what they share.
    let strips = blocks.unwrap_or_else(|| Strips::uncut([m, k, n]));
    let (packed, parts) = scratch.split_at_mut(blocks.map_or(0, |strips| strips.shared()));
    let (own, shared) = if strips.by_rows { (a, b) } else { (b, a) };
    if blocks.is_some() {
        strips.pack_shared(run, shared, packed);
    }
    let (parts, out) = (Parts::new(parts, blocks.map_or(0, |strips| strips.part())), Shared::new(c));
    run.tasks(strips.count(), |strip| {
        let [rows, columns] = strips.of(strip);
        let c = Target { start: out.pointer(0), stride: n };
        parts.with(|part| {
            // SAFETY: strips have different parts of `c`, which is borrowed until all are done and lies within its slice.
            unsafe {
                if blocks.is_some() {
                    strips.multiply(strip, packed, own, part, c);
                } else {
                    let sizes = [rows.len(), k, columns.len()];
                    let (a, b) = (a.rows_from(rows.start), b.columns_from(columns.start));
                    product_at(sizes, a, b, T::ONE, c.from(rows.start, columns.start), false);
                }
            }
        });
        for row in rows {
            // SAFETY: as above.
            finish(unsafe { out.part(row * n + columns.start, columns.len()) }, columns.start);
        }
    });
}

/// The part of the depth that [`accumulate`] packs at once.
fn accumulated_depth([m, k, n]: [usize; 3]) -> usize {
    k.min(2 * STRIP_NUMBERS / (m.next_multiple_of(ROWS) + n.next_multiple_of(COLUMNS))).max(1)
}

/// Scratch elements of [`accumulate`].
pub(in super::super) fn accumulate_part<T: Real>(sizes: [usize; 3]) -> usize {
    let [m, _, n] = sizes;
    match Strips::of_columns::<T>(sizes) {
        Some(_) => accumulated_depth(sizes) * (m.next_multiple_of(ROWS) + n.next_multiple_of(COLUMNS)),
        None => 0,
    }
}

/// c += a·b with contiguous rows of `c`, on the calling thread, for a result that is small beside the depth.
pub(in super::super) fn accumulate<T: Real>(
    [m, k, n]: [usize; 3],
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    c: &mut [T],
    part: &mut [T],
) {
    if Strips::of_columns::<T>([m, k, n]).is_none() {
        return product([m, k, n], a, b, c, n, true);
    }
    assert!(m * n <= c.len(), "the result holds what is written");
    let c = Target { start: c.as_mut_ptr(), stride: n };
    let most = accumulated_depth([m, k, n]);
    let (to_a, to_b) = part.split_at_mut(m.next_multiple_of(ROWS) * most);
    for first in (0..k).step_by(most) {
        let depth = most.min(k - first);
        pack::<T, ROWS>(a.columns_from(first), [m, depth], to_a);
        pack::<T, COLUMNS>(b.rows_from(first).turned(), [n, depth], to_b);
        let (a, b) = (
            Panels { numbers: to_a, depth, range: 0..depth },
            Panels { numbers: to_b, depth, range: 0..depth },
        );
        // SAFETY: the assertion has held the result against its slice, which is borrowed mutably.
        unsafe { blocks([m, n], &a, &b, c, true) };
    }
}
