//! Which operations are products for a library, and as what.
//!
//! A library counts column by column, a plan row by row. A matrix by rows is its transpose by columns, so the library is
//! asked for yᵀ = bᵀ·aᵀ, whose columns are the rows of y.

use super::{
    contraction::{Factor, Sizes},
    walk::walk,
};
use crate::{
    backend::cuda::driver::{MOST_ALIGNMENT_BYTES, Matrices, ProductSpec},
    graph::Op,
    tensor::{DType, Layout, Shape},
};

/// y = a·b for each of a batch, where y lies row by row without gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Product {
    sizes: Sizes,
    /// Which operand of the operation a is.
    pub(super) left: usize,
    a: Side,
    b: Side,
}

/// A factor: elements between neighbours along its rows' index, its columns' and the batch's, and before the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Side {
    row: u64,
    column: u64,
    apart: u64,
    first: u64,
}

impl Product {
    /// The product that an operation is; `None` for one that is something else, or is not one by single strides.
    pub(super) fn of(op: &Op, inputs: &[&Layout], y: &Shape) -> Option<Self> {
        let whole = |layout: &Layout| layout.shape().iter().all(|&size| size > 0);
        let [first, second] = *inputs else { return None };
        if !(whole(first) && whole(second)) {
            return None;
        }
        let product = match op {
            Op::MatMul { transpose_a, transpose_b } => {
                Self::of_matmul(first, *transpose_a, second, *transpose_b, y)?
            }
            _ => Self::of_conv(op, first, second, y)?,
        };
        Some(product.in_one_piece())
    }

    fn of_matmul(a: &Layout, transpose_a: bool, b: &Layout, transpose_b: bool, y: &Shape) -> Option<Self> {
        let sizes = Sizes::of_matmul(transpose_a, a.shape(), y);
        let [left, right] = [Factor::of(a, transpose_a), Factor::of(b, transpose_b)];
        let (walk, [apart_a, apart_b]) = walk(left.batch.shape(), [&left.batch, &right.batch]);
        let side = |factor: &Factor, layout: &Layout, apart| Side {
            row: factor.row,
            column: factor.column,
            apart,
            first: layout.offset() as u64,
        };
        (walk.rank == 1).then(|| Self {
            sizes,
            left: 0,
            a: side(&left, a, apart_a[0]),
            b: side(&right, b, apart_b[0]),
        })
    }

    /// A convolution by 1×1 is a product for each image, with one weight for all. The weight's gradient sums over images
    /// too: it is a product where there is one image, or where each has one pixel; with one pixel, so are the others.
    fn of_conv(op: &Op, first: &Layout, second: &Layout, y: &Shape) -> Option<Self> {
        let (conv, x, w) = match op {
            Op::Conv2d(conv) => (conv, first.shape(), second.shape()),
            Op::Conv2dGradInput { conv, .. } => (conv, y, first.shape()),
            Op::Conv2dGradWeight { conv, .. } => (conv, first.shape(), y),
            _ => return None,
        };
        let is_plain = w[2..] == [1, 1] && (conv.stride, conv.padding, conv.groups) == ([1, 1], [0, 0], 1);
        if !is_plain {
            return None;
        }
        let [images, channels, outputs] = [x[0], x[1], w[0]].map(|size| size as u64);
        let pixels = (x[2] * x[3]) as u64;
        let whole = |m, n, k, left, a, b| Self { sizes: Sizes { batch: 1, m, n, k }, left, a, b };
        // The weight times each image.
        let each = |m, k, left, weight, pixel: Side| {
            let sizes = Sizes { batch: images, m, n: pixels, k };
            Self { sizes, left, a: weight, b: Side { apart: k * pixels, ..pixel } }
        };
        let side =
            |row, column, layout: &Layout| Side { row, column, apart: 0, first: layout.offset() as u64 };
        Some(match op {
            Op::Conv2d(_) if pixels == 1 => {
                whole(images, outputs, channels, 0, side(channels, 1, first), side(1, channels, second))
            }
            Op::Conv2d(_) => each(outputs, channels, 1, side(channels, 1, second), side(pixels, 1, first)),
            Op::Conv2dGradInput { .. } if pixels == 1 => {
                whole(images, channels, outputs, 1, side(outputs, 1, second), side(channels, 1, first))
            }
            Op::Conv2dGradInput { .. } => {
                each(channels, outputs, 0, side(1, channels, first), side(pixels, 1, second))
            }
            _ if images == 1 => {
                whole(outputs, channels, pixels, 1, side(pixels, 1, second), side(1, pixels, first))
            }
            _ if pixels == 1 => {
                whole(outputs, channels, images, 1, side(1, outputs, second), side(channels, 1, first))
            }
            _ => return None,
        })
    }

    /// As one product of more rows, where a batch has one b and each a goes on where the last one ends.
    fn in_one_piece(self) -> Self {
        let Self { sizes: Sizes { batch, m, .. }, a, b, .. } = self;
        let row = if m == 1 { a.apart } else { a.row };
        let sizes = Sizes { batch: 1, m: batch.saturating_mul(m), ..self.sizes };
        if batch > 1 && b.apart == 0 && a.apart == m.saturating_mul(row) && sizes.fit() {
            return Self { sizes, a: Side { row, apart: 0, ..a }, ..self };
        }
        self
    }

    /// As the library is asked for it; `None` where it cannot be told how a factor lies.
    pub(super) fn spec(self, dtype: DType, tf32: bool) -> Option<ProductSpec> {
        self.with(false, dtype, tf32)
    }

    /// The same with a bias, as long as the product's rows, which are the library's columns; `None` for several products, and
    /// for float64, of which NVIDIA's documentation promises nothing.
    pub(super) fn with_bias(self, dtype: DType, tf32: bool) -> Option<ProductSpec> {
        let is_promised = self.sizes.batch == 1 && dtype != DType::F64;
        is_promised.then(|| self.with(true, dtype, tf32)).flatten()
    }

    fn with(self, adds_bias: bool, dtype: DType, tf32: bool) -> Option<ProductSpec> {
        let Self { sizes: Sizes { batch, m, n, k }, a, b, .. } = self;
        let matrices = |lead, apart, first: u64| {
            let alignment_bytes = alignment_bytes(first, dtype);
            Matrices { lead, apart: if batch > 1 { apart } else { 0 }, alignment_bytes }
        };
        // What is left of the product by columns is right of it by rows.
        let (transposes_a, lead_a) = stored(n, k, b.column, b.row)?;
        let (transposes_b, lead_b) = stored(k, m, a.column, a.row)?;
        dtype.is_floating_point().then(|| ProductSpec {
            dtype,
            tf32: tf32 && dtype == DType::F32,
            batch,
            m: n,
            n: m,
            k,
            transposes_a,
            transposes_b,
            a: matrices(lead_a, b.apart, b.first),
            b: matrices(lead_b, a.apart, a.first),
            out: matrices(n, m * n, 0),
            adds_bias,
        })
    }
}

/// What is promised of the address of an element, from how many lie before it in its block.
pub(super) fn alignment_bytes(first: u64, dtype: DType) -> u32 {
    let aligned = (first * dtype.size_bytes() as u64) | MOST_ALIGNMENT_BYTES as u64;
    1 << aligned.trailing_zeros()
}

/// How a matrix of so many rows and columns lies by columns, from its elements' distances along rows' indices and along
/// columns': whether transposed, and the distance from one column to the next. `None` where its elements lie together
/// along neither, or columns overlap.
fn stored(rows: u64, columns: u64, row: u64, column: u64) -> Option<(bool, u64)> {
    let lies = |len, along, count, across| {
        let lead = if count == 1 { len } else { across };
        (len == 1 || along == 1).then_some(lead).filter(|&lead| lead >= len)
    };
    let straight = lies(rows, row, columns, column).map(|lead| (false, lead));
    let turned = lies(columns, column, rows, row).map(|lead| (true, lead));
    // A vector is both: the long way, it lies together.
    if rows >= columns { straight.or(turned) } else { turned.or(straight) }
}
