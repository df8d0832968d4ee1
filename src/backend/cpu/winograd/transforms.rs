//! The transforms of F(4×4, 3×3), for several tiles or channels at once: each lane of an array is one.
//!
//! y = Aᵀ((G·g·Gᵀ) ⊙ (Bᵀ·d·B))·A with the interpolation points 0, ±1, ±2 and ∞ (Lavin and Gray, 2015). The gradient of g is
//! what the chain rule makes of it: Gᵀ((A·gy·Aᵀ) ⊙ (Bᵀ·d·B))·G.

use super::{super::real::Real, READ};

/// Outputs of a tile along a dimension.
pub(super) const TILE: usize = 4;
/// Inputs of a tile along a dimension.
pub(super) const PATCH: usize = 6;
/// Points of a tile in the transformed domain.
pub(super) const POINTS: usize = PATCH * PATCH;
/// Taps of a kernel.
pub(in super::super) const TAPS: usize = 9;

/// One number for each lane.
pub(super) type Lanes<T, const L: usize> = [T; L];

/// Applies a transform of N to M numbers along both dimensions, to those of each lane.
#[inline(always)]
fn both<T: Real, const L: usize, const N: usize, const M: usize>(
    from: &[[Lanes<T, L>; N]; N],
    transform: impl Fn([T; N]) -> [T; M],
) -> [[Lanes<T, L>; M]; M] {
    let mut half = [[[T::ZERO; L]; N]; M];
    for j in 0..N {
        let mut column = [[T::ZERO; L]; N];
        for (column, from) in column.iter_mut().zip(from) {
            *column = from[j];
        }
        for (half, column) in half.iter_mut().zip(along(&column, &transform)) {
            half[j] = column;
        }
    }
    let mut to = [[[T::ZERO; L]; M]; M];
    for (to, half) in to.iter_mut().zip(&half) {
        *to = along(half, &transform);
    }
    to
}

/// Applies it along one.
#[inline(always)]
pub(super) fn along<T: Real, const L: usize, const N: usize, const M: usize>(
    from: &[Lanes<T, L>; N],
    transform: impl Fn([T; N]) -> [T; M],
) -> [Lanes<T, L>; M] {
    let mut to = [[T::ZERO; L]; M];
    for l in 0..L {
        let mut of_lane = [T::ZERO; N];
        for (of_lane, from) in of_lane.iter_mut().zip(from) {
            *of_lane = from[l];
        }
        let of_lane = transform(of_lane);
        for (to, value) in to.iter_mut().zip(of_lane) {
            to[l] = value;
        }
    }
    to
}

/// Bᵀ·d, of a column of a patch of the input.
#[inline(always)]
pub(super) fn of_input<T: Real>([d0, d1, d2, d3, d4, d5]: [T; PATCH]) -> [T; PATCH] {
    let (two, four, five) = (T::of(2.0), T::of(4.0), T::of(5.0));
    let (a, b) = (d4 - four * d2, d3 - four * d1);
    let (c, e) = (d4 - d2, two * (d3 - d1));
    [four * d0 - five * d2 + d4, a + b, a - b, c + e, c - e, four * d1 - five * d3 + d5]
}

/// G·g·Gᵀ, of a kernel.
#[inline(always)]
pub(super) fn of_kernel<T: Real, const L: usize>(g: &[[Lanes<T, L>; 3]; 3]) -> [[Lanes<T, L>; PATCH]; PATCH] {
    let [quarter, sixth, twelfth, twenty_fourth] = [4.0, 6.0, 12.0, 24.0].map(|n: f64| T::of(1.0 / n));
    both(
        g,
        #[inline(always)]
        |[g0, g1, g2]| {
            let (a, b) = (-(g0 + g2) * sixth, g1 * sixth);
            let (c, e) = (g0 * twenty_fourth + g2 * sixth, g1 * twelfth);
            [g0 * quarter, a - b, a + b, c + e, c - e, g2]
        },
    )
}

/// Aᵀ·m·A, of a tile's products.
#[inline(always)]
pub(super) fn of_products<T: Real, const L: usize>(
    m: &[[Lanes<T, L>; PATCH]; PATCH],
) -> [[Lanes<T, L>; TILE]; TILE] {
    let (two, four, eight) = (T::of(2.0), T::of(4.0), T::of(8.0));
    both(
        m,
        #[inline(always)]
        |[m0, m1, m2, m3, m4, m5]| {
            let (s, r, u, v) = (m1 + m2, m1 - m2, m3 + m4, m3 - m4);
            [m0 + s + u, r + two * v, s + four * u, r + eight * v + m5]
        },
    )
}

/// A·gy, of a column of a tile of the output's gradient.
#[inline(always)]
pub(super) fn of_gradient<T: Real>([y0, y1, y2, y3]: [T; TILE]) -> [T; PATCH] {
    let (two, four, eight) = (T::of(2.0), T::of(4.0), T::of(8.0));
    let (a, b) = (y0 + y2, y1 + y3);
    let (c, e) = (y0 + four * y2, two * y1 + eight * y3);
    [y0, a + b, a - b, c + e, c - e, y3]
}

/// Squares of all lanes that are transformed along their columns: by row, then by lane.
pub(super) type Rows<T, const L: usize> = [[[T; READ]; L]; PATCH];

/// Transforms the squares of all lanes, along columns as they are read and along rows lane by lane, and hands each point's
/// numbers out.
#[inline(always)]
pub(super) fn of_squares<T: Real, const N: usize, const L: usize>(
    square: impl Fn(usize) -> [[T; READ]; N],
    transform: impl Fn([T; N]) -> [T; PATCH],
    rows: &mut Rows<T, L>,
    mut hand: impl FnMut(usize, &Lanes<T, L>),
) {
    for lane in 0..L {
        let columns = along(&square(lane), &transform);
        for (rows, columns) in rows.iter_mut().zip(columns) {
            rows[lane] = columns;
        }
    }
    for (i, rows) in rows.iter().enumerate() {
        let mut lanes = [[T::ZERO; L]; READ];
        T::interleave(rows.as_flattened(), READ, &mut lanes);
        let Some(lanes) = lanes.first_chunk() else { return };
        let points = along(lanes, &transform);
        for (j, point) in points.iter().enumerate() {
            hand(i * PATCH + j, point);
        }
    }
}

/// Gᵀ·m·G, the gradient of a kernel of the sums over all tiles.
#[inline(always)]
pub(super) fn to_kernel<T: Real, const L: usize>(m: &[[Lanes<T, L>; PATCH]; PATCH]) -> [[Lanes<T, L>; 3]; 3] {
    let [quarter, sixth, twelfth, twenty_fourth] = [4.0, 6.0, 12.0, 24.0].map(|n: f64| T::of(1.0 / n));
    both(
        m,
        #[inline(always)]
        |[m0, m1, m2, m3, m4, m5]| {
            [
                m0 * quarter - (m1 + m2) * sixth + (m3 + m4) * twenty_fourth,
                (m2 - m1) * sixth + (m3 - m4) * twelfth,
                (m3 + m4 - m1 - m2) * sixth + m5,
            ]
        },
    )
}

/// The numbers of all points, which lie so far apart.
#[inline(always)]
pub(super) fn gathered<T: Real, const L: usize>(from: &[T], apart: usize) -> [[Lanes<T, L>; PATCH]; PATCH] {
    let mut to = [[[T::ZERO; L]; PATCH]; PATCH];
    for (point, to) in to.as_flattened_mut().iter_mut().enumerate() {
        to.copy_from_slice(&from[point * apart..][..L]);
    }
    to
}
