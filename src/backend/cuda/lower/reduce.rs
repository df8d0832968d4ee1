//! Reductions over dimensions, and softmax along one.

use std::mem::offset_of;

use super::{
    BLOCKS, Lowering, THREADS, Use, Uses, around, blocks, name, per_element, threads_for, walk::walk,
    wide_bytes,
};
use crate::{
    backend::{
        BuildError,
        cuda::{
            arguments::{self, Reduce, Softmax},
            driver::Access,
            source::Source,
        },
        plan::Step,
    },
    graph::{Reduction, ValueInfo},
    tensor::{Layout, Shape},
};

/// The fewest elements of a result that are worth a block of their own.
const SHARE: u64 = 2048;

/// How the elements of each result are cut: into how many splits, of how many elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Splits {
    pub(super) count: u64,
    pub(super) share: u64,
}

impl Splits {
    /// Cuts `len` elements into as many shares as it takes to have work for all blocks where there are `pieces` of
    /// work already; shares are whole multiples of `unit`, and at least `least` long.
    pub(super) fn new(len: u64, pieces: u64, least: u64, unit: u64) -> Self {
        let wanted = BLOCKS.div_ceil(pieces.max(1)).min(len / least.max(1)).max(1);
        let share = len.div_ceil(wanted).next_multiple_of(unit).max(unit);
        Self { count: len.div_ceil(share).max(1), share }
    }

    /// Bytes of scratch memory for the sums of so many results.
    pub(super) fn bytes(self, results: u64, wide_bytes: usize) -> usize {
        if self.count == 1 { 0 } else { (self.count * results) as usize * wide_bytes }
    }
}

/// How a reduction is cut; it does not depend on strides, which are not known when scratch memory is planned.
fn splits(shape: &Shape, results: u64) -> Splits {
    let gone = (shape.elements() as u64).checked_div(results).unwrap_or(0);
    Splits::new(gone, results.div_ceil(32), SHARE, 1)
}

/// Bytes of scratch memory of a reduction.
pub(super) fn scratch_bytes(x: &ValueInfo, y: &ValueInfo) -> usize {
    let results = y.shape.elements() as u64;
    splits(&x.shape, results).bytes(results, wide_bytes(y.dtype))
}

impl Lowering<'_> {
    pub(super) fn reduce(
        &mut self,
        step: &Step,
        reduction: Reduction,
        dims: &[usize],
    ) -> Result<(), BuildError> {
        let (x, out) = (&step.inputs[0], &step.outputs[0]);
        let shape = x.layout.shape();
        let part = |gone: bool| {
            let own: Vec<usize> = (0..shape.rank()).filter(|d| dims.contains(d) == gone).collect();
            let sizes: Shape = own.iter().map(|&d| shape[d]).collect();
            let strides: Vec<usize> = own.iter().map(|&d| x.layout.strides()[d]).collect();
            Layout::strided(sizes, &strides, 0).unwrap_or_else(|| Layout::contiguous(Shape::scalar()))
        };
        let (kept, gone) = (part(false), part(true));
        let (kept_walk, [kept_strides]) = walk(kept.shape(), [&kept]);
        let (gone_walk, [gone_strides]) = walk(gone.shape(), [&gone]);
        let splits = splits(shape, kept_walk.elements);
        let divisor = gone.shape().elements() as f64;
        let mut record = Reduce {
            kept: kept_walk,
            gone: gone_walk,
            code: arguments::reduction(reduction),
            splits: splits.count as u32,
            share: splits.share,
            divisor,
            ..Reduce::default()
        };
        record.views[0].strides = kept_strides;
        record.views[1].strides = gone_strides;
        let mut uses: Uses = [Use::read(offset_of!(Reduce, from), x)].into_iter().collect();
        if splits.count > 1 {
            let bytes = splits.bytes(kept_walk.elements, wide_bytes(out.dtype));
            let scratch = Use::scratch(offset_of!(Reduce, partial), step.scratch, 0, Access::Write);
            uses.push(scratch.part(0, bytes));
        } else {
            uses.push(Use::write(offset_of!(Reduce, out), out));
        }
        // Whether the elements of one result lie closer together than the results do.
        let innermost = |strides: &[u64], rank: u32| strides[rank as usize - 1];
        let (of_kept, of_gone) =
            (innermost(&kept_strides, kept_walk.rank), innermost(&gone_strides, gone_walk.rank));
        let along = kept_walk.elements == 1 || (gone_walk.elements > 1 && of_gone < of_kept);
        let (kernel, cut) = if along {
            let jobs = kept_walk.elements * splits.count;
            ("reduce_rows", (blocks(jobs), threads_for(splits.share)))
        } else {
            ("reduce_columns", (blocks(kept_walk.elements.div_ceil(32) * splits.count), THREADS))
        };
        let function = self.function(Source::Reduce, kernel, name(out.dtype))?;
        self.push(function, cut, &record, &uses);
        if splits.count == 1 {
            return Ok(());
        }
        self.fold(step, out, (0, splits.count), (reduction, divisor))
    }

    pub(super) fn softmax(&mut self, step: &Step, dim: usize, is_log: bool) -> Result<(), BuildError> {
        self.along(step, dim, is_log, "softmax")
    }

    pub(super) fn softmax_grad(&mut self, step: &Step, dim: usize, is_log: bool) -> Result<(), BuildError> {
        self.along(step, dim, is_log, "softmax_grad")
    }

    fn along(&mut self, step: &Step, dim: usize, is_log: bool, kernel: &str) -> Result<(), BuildError> {
        let out = &step.outputs[0];
        let (outer, size, inner) = around(out, dim);
        let record = Softmax { outer, size, inner, is_log: is_log.into(), ..Softmax::default() };
        let mut uses: Uses = [Use::read(offset_of!(Softmax, first), &step.inputs[0])].into_iter().collect();
        if let Some(gy) = step.inputs.get(1) {
            uses.push(Use::read(offset_of!(Softmax, second), gy));
        }
        uses.push(Use::write(offset_of!(Softmax, out), out));
        let (suffix, cut) = if inner == 1 {
            ("rows", (blocks(outer), threads_for(size)))
        } else {
            ("columns", per_element(outer * inner))
        };
        let function = self.function(Source::Softmax, &format!("{kernel}_{suffix}"), name(out.dtype))?;
        self.push(function, cut, &record, &uses);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_sums_of_few_results_are_cut_and_others_are_not() {
        assert_eq!(Splits::new(1 << 20, 1, SHARE, 1), Splits { count: 256, share: 4096 });
        assert_eq!(Splits::new(1 << 20, 512, SHARE, 1), Splits { count: 1, share: 1 << 20 });
        assert_eq!(Splits::new(5000, 1, SHARE, 1), Splits { count: 2, share: 2500 });
        assert_eq!(Splits::new(100, 1, SHARE, 1), Splits { count: 1, share: 100 });
        assert_eq!(Splits::new(0, 1, SHARE, 1), Splits { count: 1, share: 1 });
        let cut = Splits::new(5184, 1, 512, 16);
        assert_eq!(cut, Splits { count: 10, share: 528 });
        assert_eq!((cut.bytes(3, 4), Splits::new(1, 1, 512, 16).bytes(3, 4)), (120, 0));
    }
}
