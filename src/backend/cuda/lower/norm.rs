//! Normalisation.

use std::mem::offset_of;

use super::{
    Lowering, THREADS, Use, Uses, blocks, name, per_element, reduce::Splits, threads_for, wide_bytes,
};
use crate::{
    backend::{
        BuildError,
        cuda::{arguments::Norm, driver::Access, source::Source},
        plan::{Place, Step},
    },
    graph::{Reduction, ValueInfo},
    tensor::Shape,
};

/// The fewest rows that are worth a split of their own.
const SHARE: u64 = 512;

/// Rows and elements of a layer norm over the last `dims` dimensions.
fn rows(shape: &Shape, dims: usize) -> (u64, u64) {
    let (outer, inner) = shape.split_at(shape.rank() - dims);
    let product = |sizes: &[usize]| sizes.iter().map(|&n| n as u64).product();
    (product(outer), product(inner))
}

fn splits(rows: u64, len: u64) -> Splits {
    Splits::new(rows, len.div_ceil(32), SHARE, 8)
}

/// Bytes of scratch memory for the gradients of a layer norm's weight and bias.
pub(super) fn scratch_bytes(x: &ValueInfo, dims: usize) -> usize {
    let (rows, len) = rows(&x.shape, dims);
    splits(rows, len).bytes(2 * len, wide_bytes(x.dtype))
}

/// The pointers of operands and results, in their order.
fn uses(step: &Step, inputs: &[usize], outputs: &[usize]) -> Uses {
    let read = inputs.iter().zip(&step.inputs).map(|(&at, place)| Use::read(at, place));
    let written = outputs.iter().zip(&step.outputs).map(|(&at, place)| Use::write(at, place));
    read.chain(written).collect()
}

const FORWARD: [usize; 3] = [offset_of!(Norm, x), offset_of!(Norm, weight), offset_of!(Norm, bias)];
const STATISTICS: [usize; 4] = [
    offset_of!(Norm, out),
    offset_of!(Norm, out_mean),
    offset_of!(Norm, out_rstd),
    offset_of!(Norm, out_var),
];
const BACKWARD: [usize; 5] = [
    offset_of!(Norm, x),
    offset_of!(Norm, weight),
    offset_of!(Norm, mean),
    offset_of!(Norm, rstd),
    offset_of!(Norm, gy),
];
const GRADIENTS: [usize; 3] =
    [offset_of!(Norm, out), offset_of!(Norm, out_weight), offset_of!(Norm, out_bias)];

/// [N, C, …] as batch, channels and what lies behind them.
fn channels(x: &Place, eps: f64) -> Norm {
    let (batch, channels, spatial) = super::around(x, 1);
    Norm { batch, channels, spatial, groups: 1, splits: 1, eps, ..Norm::default() }
}

/// The same with the channels cut into groups, each of `channels` channels.
fn grouped(x: &Place, groups: usize, eps: f64) -> Norm {
    let norm = channels(x, eps);
    let groups = groups.max(1) as u64;
    Norm { channels: norm.channels / groups, groups, ..norm }
}

impl Lowering<'_> {
    pub(super) fn batch_norm(&mut self, step: &Step, eps: f64) -> Result<(), BuildError> {
        let record = channels(&step.inputs[0], eps);
        let cut = (blocks(record.channels), threads_for(record.batch * record.spatial));
        self.norm(step, Source::BatchNorm, "batch_norm", cut, &record, &uses(step, &FORWARD, &STATISTICS))
    }

    pub(super) fn batch_norm_grad(&mut self, step: &Step, kernel: &str, eps: f64) -> Result<(), BuildError> {
        let record = channels(&step.inputs[0], eps);
        let cut = (blocks(record.channels), threads_for(record.batch * record.spatial));
        self.norm(step, Source::BatchNorm, kernel, cut, &record, &uses(step, &BACKWARD, &GRADIENTS))
    }

    pub(super) fn batch_norm_eval(&mut self, step: &Step, eps: f64) -> Result<(), BuildError> {
        let record = channels(&step.inputs[0], eps);
        let operands = [FORWARD[0], FORWARD[1], FORWARD[2], BACKWARD[2], BACKWARD[3]];
        let cut = per_element(record.batch * record.channels * record.spatial);
        let uses = uses(step, &operands, &STATISTICS[..1]);
        self.norm(step, Source::BatchNorm, "batch_norm_eval", cut, &record, &uses)
    }

    pub(super) fn layer_norm(&mut self, step: &Step, dims: usize, eps: f64) -> Result<(), BuildError> {
        let (batch, channels) = rows(step.inputs[0].layout.shape(), dims);
        let record = Norm { batch, channels, spatial: 1, groups: 1, splits: 1, eps, ..Norm::default() };
        self.row_norm(step, &record)
    }

    pub(super) fn group_norm(&mut self, step: &Step, groups: usize, eps: f64) -> Result<(), BuildError> {
        let record = grouped(&step.inputs[0], groups, eps);
        self.row_norm(step, &record)
    }

    fn row_norm(&mut self, step: &Step, record: &Norm) -> Result<(), BuildError> {
        let cut = (blocks(record.batch * record.groups), threads_for(record.channels * record.spatial));
        let uses = uses(step, &FORWARD, &STATISTICS[..3]);
        self.norm(step, Source::RowNorm, "row_norm", cut, record, &uses)
    }

    /// The gradient of x, a block a row.
    fn row_norm_grad(&mut self, step: &Step, record: &Norm) -> Result<(), BuildError> {
        if step.inputs[0].layout.shape().contains(&0) {
            return Ok(());
        }
        let cut = (blocks(record.batch * record.groups), threads_for(record.channels * record.spatial));
        let uses = uses(step, &BACKWARD, &GRADIENTS[..1]);
        self.norm(step, Source::RowNorm, "row_norm_grad", cut, record, &uses)
    }

    pub(super) fn layer_norm_grad(&mut self, step: &Step, dims: usize) -> Result<(), BuildError> {
        let (batch, channels) = rows(step.inputs[0].layout.shape(), dims);
        let splits = splits(batch, channels);
        let record = Norm {
            batch,
            channels,
            spatial: 1,
            groups: 1,
            splits: splits.count,
            share: splits.share,
            ..Norm::default()
        };
        self.row_norm_grad(step, &record)?;
        let (weight, bias) = (&step.outputs[1], &step.outputs[2]);
        if channels == 0 {
            return Ok(());
        }
        let mut uses = uses(step, &BACKWARD, &[]);
        let half = splits.bytes(channels, wide_bytes(weight.dtype));
        if splits.count > 1 {
            let scratch = Use::scratch(offset_of!(Norm, parts), step.scratch, 0, Access::Write);
            uses.push(scratch.part(0, 2 * half));
        } else {
            uses.push(Use::write(GRADIENTS[1], weight));
            uses.push(Use::write(GRADIENTS[2], bias));
        }
        let cut = (blocks(channels.div_ceil(32) * splits.count), THREADS);
        self.norm(step, Source::RowNorm, "row_norm_scale_grad", cut, &record, &uses)?;
        if splits.count > 1 {
            self.fold(step, weight, (0, splits.count), (Reduction::Sum, 1.0))?;
            self.fold(step, bias, (half, splits.count), (Reduction::Sum, 1.0))?;
        }
        Ok(())
    }

    pub(super) fn group_norm_grad(&mut self, step: &Step, groups: usize) -> Result<(), BuildError> {
        let record = grouped(&step.inputs[0], groups, 0.0);
        self.row_norm_grad(step, &record)?;
        let all = record.groups * record.channels;
        if all == 0 {
            return Ok(());
        }
        let mut uses = uses(step, &BACKWARD, &[]);
        uses.push(Use::write(GRADIENTS[1], &step.outputs[1]));
        uses.push(Use::write(GRADIENTS[2], &step.outputs[2]));
        let cut = (blocks(all), threads_for(record.batch * record.spatial));
        self.norm(step, Source::RowNorm, "row_norm_plane_grad", cut, &record, &uses)
    }

    fn norm(
        &mut self,
        step: &Step,
        source: Source,
        kernel: &str,
        cut: (u32, u32),
        record: &Norm,
        uses: &Uses,
    ) -> Result<(), BuildError> {
        let function = self.function(source, kernel, name(step.outputs[0].dtype))?;
        self.push(function, cut, record, uses);
        Ok(())
    }
}
