//! Elements that go elsewhere as they are.

use std::mem::offset_of;

use super::{
    Lowering, Use, Uses, around, blocks, name, per_element, pointwise::view_at, size_name, walk::walk,
};
use crate::{
    backend::{
        BuildError,
        cuda::{
            arguments::{Line, Move},
            source::Source,
        },
        plan::{Place, Step},
    },
    tensor::{DType, Layout},
};

impl Lowering<'_> {
    pub(super) fn copy(&mut self, step: &Step) -> Result<(), BuildError> {
        self.move_to(&step.inputs[0], &step.outputs[0])
    }

    /// Copies one place to another of the same shape, both with any strides.
    fn move_to(&mut self, from: &Place, to: &Place) -> Result<(), BuildError> {
        let (walk, [read, written]) = walk(from.layout.shape(), [&from.layout, &to.layout]);
        if walk.elements == 0 {
            return Ok(());
        }
        let mut record = Move { walk, ..Move::default() };
        record.views[0].strides = read;
        record.views[1].strides = written;
        let views = offset_of!(Move, views);
        let uses: Uses =
            [Use::read(view_at(views, 0), from), Use::write(view_at(views, 1), to)].into_iter().collect();
        let function = self.function(Source::Movement, "copy", size_name(from.dtype))?;
        self.push(function, per_element(walk.elements), &record, &uses);
        Ok(())
    }

    /// Each operand is copied to its slice of the result.
    pub(super) fn cat(&mut self, step: &Step, dim: usize) -> Result<(), BuildError> {
        let out = &step.outputs[0];
        let mut start = 0;
        for from in &step.inputs {
            let len = from.layout.shape()[dim];
            let layout: Layout = out.layout.slice(dim, start, len, 1);
            self.move_to(from, &Place { layout, ..out.clone() })?;
            start += len;
        }
        Ok(())
    }

    pub(super) fn unslice(
        &mut self,
        step: &Step,
        dim: usize,
        start: usize,
        by: usize,
    ) -> Result<(), BuildError> {
        let (from, out) = (&step.inputs[0], &step.outputs[0]);
        let (outer, size, inner) = around(out, dim);
        let len = from.layout.shape()[dim] as u64;
        let record =
            Line { outer, size, inner, len, start: start as u64, step: by as u64, ..Line::default() };
        let uses = [Use::read(offset_of!(Line, from), from), Use::write(offset_of!(Line, out), out)];
        let function = self.function(Source::Movement, "unslice", size_name(out.dtype))?;
        self.push(function, per_element(outer * size * inner), &record, &uses.into_iter().collect());
        Ok(())
    }

    pub(super) fn pick(&mut self, step: &Step, dim: usize) -> Result<(), BuildError> {
        let (from, indices, out) = (&step.inputs[0], &step.inputs[1], &step.outputs[0]);
        let (outer, size, inner) = around(from, dim);
        let len = out.layout.shape()[dim] as u64;
        let missing = match out.dtype {
            DType::F32 => f32::NAN.to_bits().into(),
            DType::F64 => f64::NAN.to_bits(),
            DType::BF16 | DType::F16 => u16::MAX.into(),
            DType::I64 | DType::I32 | DType::U8 | DType::Bool => 0,
        };
        let record = Line { outer, size, inner, len, missing, ..Line::default() };
        let uses = [
            Use::read(offset_of!(Line, from), from),
            Use::read(offset_of!(Line, indices), indices),
            Use::write(offset_of!(Line, out), out),
        ];
        let function = self.function(Source::Movement, "pick", size_name(out.dtype))?;
        self.push(function, per_element(outer * len * inner), &record, &uses.into_iter().collect());
        Ok(())
    }

    pub(super) fn unpick(&mut self, step: &Step, dim: usize) -> Result<(), BuildError> {
        let (indices, from, out) = (&step.inputs[0], &step.inputs[1], &step.outputs[0]);
        let (outer, size, inner) = around(out, dim);
        let len = from.layout.shape()[dim] as u64;
        let record = Line { outer, size, inner, len, ..Line::default() };
        let uses = [
            Use::read(offset_of!(Line, from), from),
            Use::read(offset_of!(Line, indices), indices),
            Use::write(offset_of!(Line, out), out),
        ];
        let function = self.function(Source::Movement, "unpick", name(out.dtype))?;
        // A warp for each row, eight of them a block.
        let cut = (blocks((outer * size).div_ceil(8)), 256);
        self.push(function, cut, &record, &uses.into_iter().collect());
        Ok(())
    }
}
