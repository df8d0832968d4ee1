//! Pooling.

use std::mem::offset_of;

use super::{Lowering, THREADS, Use, blocks, name, per_element};
use crate::{
    backend::{
        BuildError,
        cuda::{arguments::Pool, driver::Access, source::Source},
        plan::{Place, Step},
    },
    graph::Pool2d,
    tensor::DType,
};

/// Whether values of a type are summed in a wider one beside.
pub(super) fn sums_beside(dtype: DType) -> bool {
    matches!(dtype, DType::BF16 | DType::F16)
}

/// The record for the larger and the smaller side of a pooling.
fn record(large: &Place, small: &Place) -> Pool {
    let (large, small) = (large.layout.shape(), small.layout.shape());
    Pool {
        planes: large[0] as u64 * large[1] as u64,
        height: large[2] as u32,
        width: large[3] as u32,
        out_height: small[2] as u32,
        out_width: small[3] as u32,
        ..Pool::default()
    }
}

fn windowed(record: Pool, pool: &Pool2d) -> Pool {
    let [kernel, stride, padding, dilation] =
        [pool.kernel, pool.stride, pool.padding, pool.dilation].map(|pair| pair.map(|n| n as u32));
    Pool {
        kernel_h: kernel[0],
        kernel_w: kernel[1],
        stride_h: stride[0],
        stride_w: stride[1],
        padding_h: padding[0],
        padding_w: padding[1],
        dilation_h: dilation[0],
        dilation_w: dilation[1],
        ..record
    }
}

impl Lowering<'_> {
    pub(super) fn max_pool(&mut self, step: &Step, pool: &Pool2d) -> Result<(), BuildError> {
        let (x, y, indices) = (&step.inputs[0], &step.outputs[0], &step.outputs[1]);
        let record = windowed(record(x, y), pool);
        let uses = [
            Use::read(offset_of!(Pool, from), x),
            Use::write(offset_of!(Pool, out), y),
            Use::write(offset_of!(Pool, indices), indices),
        ];
        let cut = per_element(y.layout.shape().elements() as u64);
        let function = self.function(Source::Pool, "max_pool2d", name(y.dtype))?;
        self.push(function, cut, &record, &uses.into_iter().collect());
        Ok(())
    }

    pub(super) fn max_pool_grad(&mut self, step: &Step) -> Result<(), BuildError> {
        let (indices, gy, gx) = (&step.inputs[0], &step.inputs[1], &step.outputs[0]);
        let record = record(gx, gy);
        let mut uses = vec![
            Use::read(offset_of!(Pool, indices), indices),
            Use::read(offset_of!(Pool, from), gy),
            Use::write(offset_of!(Pool, out), gx),
        ];
        if sums_beside(gx.dtype) {
            uses.push(Use::scratch(offset_of!(Pool, scratch), step.scratch, 0, Access::Write));
        }
        let function = self.function(Source::Pool, "max_pool2d_grad", name(gx.dtype))?;
        self.push(function, (blocks(record.planes), THREADS), &record, &uses.into_iter().collect());
        Ok(())
    }

    /// An average or its gradient, by `kernel`'s name.
    pub(super) fn avg_pool(
        &mut self,
        step: &Step,
        kernel: &str,
        pool: &Pool2d,
        counts_padding: bool,
        divisor: Option<usize>,
    ) -> Result<(), BuildError> {
        let record = Pool {
            counts_padding: counts_padding.into(),
            divisor: divisor.unwrap_or(0) as u64,
            ..windowed(Self::sides(step, kernel), pool)
        };
        self.averaged(step, kernel, &record)
    }

    /// An adaptive average or its gradient.
    pub(super) fn adaptive(&mut self, step: &Step, kernel: &str) -> Result<(), BuildError> {
        let record = Self::sides(step, kernel);
        self.averaged(step, kernel, &record)
    }

    fn sides(step: &Step, kernel: &str) -> Pool {
        let (from, out) = (&step.inputs[0], &step.outputs[0]);
        if kernel.ends_with("_grad") { record(out, from) } else { record(from, out) }
    }

    fn averaged(&mut self, step: &Step, kernel: &str, record: &Pool) -> Result<(), BuildError> {
        let (from, out) = (&step.inputs[0], &step.outputs[0]);
        let uses = [Use::read(offset_of!(Pool, from), from), Use::write(offset_of!(Pool, out), out)];
        let function = self.function(Source::Pool, kernel, name(out.dtype))?;
        let cut = per_element(out.layout.shape().elements() as u64);
        self.push(function, cut, record, &uses.into_iter().collect());
        Ok(())
    }
}
