//! Which products go to a library, and as what.
//!
//! A library counts column by column, a plan row by row. A matrix by rows is its transpose by columns, so the library is
//! asked for yᵀ = bᵀ·aᵀ, whose columns are the rows of y.

use std::{collections::HashMap, mem::offset_of, sync::Arc};

use smallvec::SmallVec;

use super::{
    Lowering, Use, Uses,
    contraction::{Factor, Sizes},
    walk::walk,
};
use crate::{
    backend::{
        cuda::driver::{Access, Code, Driver, Matrices, PlannedProduct, ProductArguments, ProductSpec},
        plan::Step,
    },
    graph::{Op, ValueInfo},
    tensor::{DType, Layout, Shape},
};

/// The most that is promised of an address: what copies to tensor cores ask for. Blocks are aligned to more.
pub(in crate::backend::cuda) const MOST_ALIGNMENT_BYTES: usize = 16;

/// The products of a plan that its library computes, open as long as this lives.
#[derive(Debug)]
pub(in crate::backend::cuda) struct Planned {
    driver: Arc<dyn Driver>,
    tf32: bool,
    /// `None` for what the library has no way for.
    by_spec: HashMap<ProductSpec, Option<PlannedProduct>>,
}

impl Planned {
    /// None yet; `tf32` says whether factors may be rounded to it.
    pub(in crate::backend::cuda) fn new(driver: Arc<dyn Driver>, tf32: bool) -> Self {
        Self { driver, tf32, by_spec: HashMap::new() }
    }

    /// Plans the product that an operation is, if it is one and there is a library that computes it.
    pub(super) fn plan(&mut self, op: &Op, inputs: &[&Layout], y: &ValueInfo) -> Option<PlannedProduct> {
        let spec = Product::of(op, inputs, &y.shape)?.spec(y.dtype, self.tf32)?;
        *self.by_spec.entry(spec).or_insert_with(|| self.driver.plan_product(&spec))
    }

    /// The product that was planned for a step, and which of the step's operands is its left factor.
    pub(super) fn of_step(&self, op: &Op, step: &Step) -> Option<(PlannedProduct, usize)> {
        let inputs: SmallVec<[_; 4]> = step.inputs.iter().map(|place| &place.layout).collect();
        let y = &step.outputs[0];
        let product = Product::of(op, &inputs, y.layout.shape())?;
        let planned = self.by_spec.get(&product.spec(y.dtype, self.tf32)?).copied().flatten()?;
        Some((planned, product.left))
    }

    /// Bytes of memory that it takes, but for what the library keeps.
    pub(in crate::backend::cuda) fn held_bytes(&self) -> usize {
        self.by_spec.capacity() * size_of::<(ProductSpec, Option<PlannedProduct>)>()
    }
}

impl Drop for Planned {
    fn drop(&mut self) {
        for planned in self.by_spec.values().flatten() {
            self.driver.close_product(planned.product);
        }
    }
}

/// y = a·b for each of a batch, where y lies row by row without gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Product {
    sizes: Sizes,
    /// Which operand of the operation a is.
    left: usize,
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
    fn of(op: &Op, inputs: &[&Layout], y: &Shape) -> Option<Self> {
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
    fn spec(self, dtype: DType, tf32: bool) -> Option<ProductSpec> {
        let Self { sizes: Sizes { batch, m, n, k }, a, b, .. } = self;
        let matrices = |lead, apart, first: u64| {
            let aligned = (first * dtype.size_bytes() as u64) | MOST_ALIGNMENT_BYTES as u64;
            let alignment_bytes = 1 << aligned.trailing_zeros();
            Matrices { lead, apart: if batch > 1 { apart } else { 0 }, alignment_bytes }
        };
        // What is left of the product by columns is right of it by rows.
        let (transposes_a, lead_a) = stored(n, k, b.column, b.row)?;
        let (transposes_b, lead_b) = stored(k, m, a.column, a.row)?;
        let is_floating = matches!(dtype, DType::F32 | DType::F64 | DType::BF16 | DType::F16);
        is_floating.then(|| ProductSpec {
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
        })
    }
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

impl Lowering<'_> {
    /// A step that its library computes.
    pub(super) fn product(&mut self, step: &Step, (planned, left): (PlannedProduct, usize)) {
        let mut uses: Uses = [
            Use::read(offset_of!(ProductArguments, a), &step.inputs[1 - left]),
            Use::read(offset_of!(ProductArguments, b), &step.inputs[left]),
            Use::write(offset_of!(ProductArguments, out), &step.outputs[0]),
        ]
        .into_iter()
        .collect();
        if planned.workspace_bytes > 0 {
            uses.push(Use::scratch(offset_of!(ProductArguments, workspace), step.scratch, 0, Access::Write));
        }
        self.program.push(Code::Product(planned.product), &ProductArguments::default(), &uses, None);
    }
}
