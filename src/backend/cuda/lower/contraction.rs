//! Products of matrices, and convolutions as such products.

use std::mem::offset_of;

use super::{
    Lowering, THREADS, Use, Uses, blocks, name, per_element, pointwise::view_at, reduce::Splits, walk::walk,
    wide_bytes,
};
use crate::{
    backend::{
        BuildError,
        cuda::{
            arguments::{Conv, Cut, MatMul},
            driver::Access,
            source::Source,
        },
        plan::{Place, Step},
    },
    graph::{Conv2d, Op, Reduction, ValueInfo},
    tensor::{Layout, Shape},
};

/// Rows and columns of a tile, as in `gemm.cuh`.
const TILE: u64 = 64;
/// The inner dimension's part that a tile takes at once, as in `gemm.cuh`.
const DEPTH: u64 = 16;
/// The shortest inner dimension that is worth a split of its own.
const SHARE: u64 = 512;
/// With fewer rows a group, the tiles of a grouped convolution would be mostly air.
const FEW: u64 = 8;

/// A product's sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    pub(super) batch: u64,
    pub(super) m: u64,
    pub(super) n: u64,
    pub(super) k: u64,
}

/// A factor of a batch of products: strides along its rows' and its columns' indices, as the product sees it, and the
/// layout of the batch's first elements.
pub(super) struct Factor {
    pub(super) row: u64,
    pub(super) column: u64,
    pub(super) batch: Layout,
}

impl Factor {
    pub(super) fn of(layout: &Layout, is_transposed: bool) -> Self {
        let outer = layout.shape().rank() - 2;
        let strides = &layout.strides()[outer..];
        let (row, column) = if is_transposed { (1, 0) } else { (0, 1) };
        let shape: Shape = layout.shape()[..outer].into();
        let batch = Layout::strided(shape, &layout.strides()[..outer], 0)
            .unwrap_or_else(|| Layout::contiguous(Shape::scalar()));
        Self { row: strides[row] as u64, column: strides[column] as u64, batch }
    }
}

impl Sizes {
    /// Those of a product of matrices.
    pub(super) fn of_matmul(transpose_a: bool, a: &Shape, y: &Shape) -> Self {
        let batch = y.rank() - 2;
        let k = a[batch + usize::from(!transpose_a)] as u64;
        let outer = y[..batch].iter().map(|&n| n as u64).product();
        Self { batch: outer, m: y[batch] as u64, n: y[batch + 1] as u64, k }
    }

    /// Those of a convolution's product; groups are its batch. `None` for what is no convolution.
    pub(super) fn of_conv(op: &Op, first: &Shape, second: &Shape, y: &Shape) -> Option<Self> {
        let (batch, x, w, out) = match op {
            Op::Conv2d(conv) => (conv.groups, first, second, y),
            Op::Conv2dGradInput { conv, .. } => (conv.groups, y, first, second),
            Op::Conv2dGradWeight { conv, .. } => (conv.groups, first, y, second),
            _ => return None,
        };
        let product = |sizes: &[usize]| sizes.iter().map(|&n| n as u64).product::<u64>();
        let groups = batch.max(1) as u64;
        let (outputs, taps) = (w[0] as u64 / groups, product(&w[2..]));
        let (pixels_in, pixels_out) = (product(&[x[0], x[2], x[3]]), product(&[out[0], out[2], out[3]]));
        let [m, n, k] = match op {
            Op::Conv2d(_) => [outputs, pixels_out, w[1] as u64 * taps],
            Op::Conv2dGradInput { .. } => [w[1] as u64, pixels_in, outputs * taps],
            _ => [outputs, w[1] as u64 * taps, pixels_out],
        };
        Some(Self { batch: groups, m, n, k })
    }

    fn tiles(self) -> u64 {
        self.batch * self.m.div_ceil(TILE) * self.n.div_ceil(TILE)
    }

    fn splits(self) -> Splits {
        Splits::new(self.k, self.tiles(), SHARE, DEPTH)
    }

    /// Whether each element of a convolution's result has a thread, or a block, of its own.
    pub(super) fn is_direct(self) -> bool {
        self.batch > 1 && self.m < FEW
    }

    /// Bytes of scratch memory for a result of a type.
    pub(super) fn scratch_bytes(self, is_conv: bool, y: &ValueInfo) -> usize {
        if is_conv && self.is_direct() {
            return 0;
        }
        self.splits().bytes(self.batch * self.m * self.n, wide_bytes(y.dtype))
    }

    /// Whether kernels can count so far; sums and strides beyond are 64 bits wide.
    pub(super) fn fit(self) -> bool {
        [self.batch, self.m, self.n, self.k].into_iter().all(|size| size < 1 << 31)
    }

    fn cut(self, splits: Splits) -> Cut {
        Cut {
            batch: self.batch as u32,
            m: self.m as u32,
            n: self.n as u32,
            k: self.k as u32,
            splits: splits.count as u32,
            share: splits.share as u32,
            ..Cut::default()
        }
    }
}

impl Lowering<'_> {
    pub(super) fn matmul(
        &mut self,
        step: &Step,
        transpose_a: bool,
        transpose_b: bool,
    ) -> Result<(), BuildError> {
        let (a, b, out) = (&step.inputs[0], &step.inputs[1], &step.outputs[0]);
        let sizes = Sizes::of_matmul(transpose_a, a.layout.shape(), out.layout.shape());
        let [left, right] = [Factor::of(&a.layout, transpose_a), Factor::of(&b.layout, transpose_b)];
        let (walk, [strides_a, strides_b]) = walk(left.batch.shape(), [&left.batch, &right.batch]);
        let splits = sizes.splits();
        let mut record = MatMul {
            cut: sizes.cut(splits),
            walk,
            a_row: left.row,
            a_column: left.column,
            b_row: right.row,
            b_column: right.column,
            ..MatMul::default()
        };
        record.views[0].strides = strides_a;
        record.views[1].strides = strides_b;
        let views = offset_of!(MatMul, views);
        let mut uses: Uses =
            [Use::read(view_at(views, 0), a), Use::read(view_at(views, 1), b)].into_iter().collect();
        let target = [offset_of!(MatMul, out), offset_of!(MatMul, cut) + offset_of!(Cut, parts)];
        uses.push(Self::target(step, out, sizes, splits, target));
        let function = self.function(Source::MatMul, "matmul", name(out.dtype))?;
        self.push(function, (blocks(sizes.tiles() * splits.count), THREADS), &record, &uses);
        self.folded(step, out, splits)
    }

    /// Where a product's sums go: to its result, or to scratch memory if it is split.
    fn target(step: &Step, out: &Place, sizes: Sizes, splits: Splits, [out_at, parts_at]: [usize; 2]) -> Use {
        if splits.count == 1 {
            return Use::write(out_at, out);
        }
        let bytes = splits.bytes(sizes.batch * sizes.m * sizes.n, wide_bytes(out.dtype));
        Use::scratch(parts_at, step.scratch, 0, Access::Write).part(0, bytes)
    }

    fn folded(&mut self, step: &Step, out: &Place, splits: Splits) -> Result<(), BuildError> {
        if splits.count == 1 {
            return Ok(());
        }
        self.fold(step, out, (0, splits.count), (Reduction::Sum, 1.0))
    }

    pub(super) fn conv2d(&mut self, step: &Step, op: &Op, conv: &Conv2d) -> Result<(), BuildError> {
        let (first, second, out) = (&step.inputs[0], &step.inputs[1], &step.outputs[0]);
        let shapes = [first, second, out].map(|place| place.layout.shape());
        let Some(sizes) = Sizes::of_conv(op, shapes[0], shapes[1], shapes[2]) else {
            return Err(self.unsupported(op, "it is no convolution"));
        };
        let (kernel, x, w, y) = match op {
            Op::Conv2d(_) => ("conv2d", shapes[0], shapes[1], shapes[2]),
            Op::Conv2dGradInput { .. } => ("conv2d_grad_input", shapes[2], shapes[0], shapes[1]),
            _ => ("conv2d_grad_weight", shapes[0], shapes[2], shapes[1]),
        };
        let is_weight = matches!(op, Op::Conv2dGradWeight { .. });
        let is_direct = sizes.is_direct();
        let splits = if is_direct { Splits { count: 1, share: sizes.k.max(1) } } else { sizes.splits() };
        let [stride, padding, dilation] = [conv.stride, conv.padding, conv.dilation]
            .map(|[h, w]| [h, w].map(|n| u32::try_from(n).unwrap_or(u32::MAX)));
        let record = Conv {
            cut: sizes.cut(splits),
            channels: x[1] as u32,
            outputs: w[0] as u32,
            groups: conv.groups as u32,
            height: x[2] as u32,
            width: x[3] as u32,
            out_height: y[2] as u32,
            out_width: y[3] as u32,
            kernel_h: w[2] as u32,
            kernel_w: w[3] as u32,
            stride_h: stride[0],
            stride_w: stride[1],
            padding_h: padding[0],
            padding_w: padding[1],
            dilation_h: dilation[0],
            dilation_w: dilation[1],
            // The weight lies along its taps; a gradient of it is summed along pixels, which lie together on both sides.
            a_along_k: u32::from(!matches!(op, Op::Conv2dGradInput { .. })),
            b_along_k: u32::from(is_weight),
            ..Conv::default()
        };
        let mut uses: Uses =
            [Use::read(offset_of!(Conv, first), first), Use::read(offset_of!(Conv, second), second)]
                .into_iter()
                .collect();
        let target = [offset_of!(Conv, out), offset_of!(Conv, cut) + offset_of!(Cut, parts)];
        uses.push(Self::target(step, out, sizes, splits, target));
        if is_direct {
            let results = sizes.batch * sizes.m * sizes.n;
            let cut = if is_weight { (blocks(results), THREADS) } else { per_element(results) };
            let function = self.function(Source::Conv, &format!("{kernel}_direct"), name(out.dtype))?;
            self.push(function, cut, &record, &uses);
            return Ok(());
        }
        let function = self.function(Source::Conv, kernel, name(out.dtype))?;
        self.push(function, (blocks(sizes.tiles() * splits.count), THREADS), &record, &uses);
        self.folded(step, out, splits)
    }
}
