//! Element by element.

use std::mem::offset_of;

use super::{Lowering, Use, Uses, kernel, name, per_element, size_name, walk::walk};
use crate::{
    backend::{
        BuildError,
        cuda::{
            arguments::{self, Pointwise, View},
            source::Source,
        },
        plan::{Chain, LinkOp, MOST_INPUTS, Step},
    },
    graph::{Binary, Compare, Op, Unary},
    tensor::DType,
};

/// Where the n-th operand's pointer stands.
pub(super) const fn view_at(views: usize, n: usize) -> usize {
    views + n * size_of::<View>() + offset_of!(View, data)
}

impl Lowering<'_> {
    /// The record for `K` operands, and their uses.
    fn pointwise<const K: usize>(step: &Step) -> (Pointwise, Uses) {
        let out = &step.outputs[0];
        let operands: [_; K] = std::array::from_fn(|k| &step.inputs[k]);
        let (walk, strides) = walk(out.layout.shape(), operands.map(|place| &place.layout));
        let mut record = Pointwise { walk, ..Pointwise::default() };
        let mut uses = Uses::new();
        for (k, (place, strides)) in operands.into_iter().zip(strides).enumerate() {
            record.views[k].strides = strides;
            uses.push(Use::read(view_at(offset_of!(Pointwise, views), k), place));
        }
        uses.push(Use::write(offset_of!(Pointwise, out), out));
        (record, uses)
    }

    pub(super) fn unary(&mut self, step: &Step, kernel: &str, unary: &Unary) -> Result<(), BuildError> {
        let (mut record, uses) =
            if step.inputs.len() == 1 { Self::pointwise::<1>(step) } else { Self::pointwise::<2>(step) };
        let Some((code, [first, second])) = arguments::unary(unary) else {
            return Err(self.unsupported(&Op::Unary(*unary), "no kernel computes it"));
        };
        (record.code, record.first, record.second) = (code, first, second);
        let function = self.function(Source::Unary, kernel, name(step.outputs[0].dtype))?;
        self.push(function, per_element(record.walk.elements), &record, &uses);
        Ok(())
    }

    pub(super) fn chain(&mut self, step: &Step, chain: &Chain) -> Result<(), BuildError> {
        let shape = step.outputs[0].layout.shape();
        // One that nothing reads stands for those that are missing.
        let layouts: [_; MOST_INPUTS] =
            std::array::from_fn(|k| &step.inputs.get(k).unwrap_or(&step.inputs[0]).layout);
        let (walk, strides) = walk(shape, layouts);
        let mut record = arguments::Chain {
            walk,
            inputs: step.inputs.len() as u32,
            count: chain.links.len() as u32,
            ..arguments::Chain::default()
        };
        let mut uses = Uses::new();
        for (k, place) in step.inputs.iter().enumerate() {
            record.operands[k].strides = strides[k];
            uses.push(Use::read(view_at(offset_of!(arguments::Chain, operands), k), place));
        }
        for (k, place) in step.outputs.iter().enumerate() {
            let at = offset_of!(arguments::Chain, results) + k * size_of::<arguments::Pointer>();
            uses.push(Use::write(at, place));
        }
        for (number, link) in chain.links.iter().enumerate() {
            let Some((kind, code, [first, second])) = arguments::link(link.op) else {
                return Err(self.unsupported_link(link.op));
            };
            let value = (step.inputs.len() + number) as u8;
            let result = chain.outputs.iter().position(|&output| output == value).map_or(0, |n| n as u32 + 1);
            let [a, b] = link.args.map(u32::from);
            let what = kind | a << 8 | b << 16 | result << 24;
            record.links[number] = arguments::Link { code, what, first, second };
        }
        let function = self.function(Source::Chain, "chain", name(step.outputs[0].dtype))?;
        let code = kernel(function, per_element(record.walk.elements));
        let drops = chain.links.iter().any(|link| matches!(link.op, LinkOp::Dropout { .. }));
        let seed_at = drops.then_some(offset_of!(arguments::Chain, seed));
        self.program.push(code, &record, &uses, seed_at);
        Ok(())
    }

    fn unsupported_link(&self, op: LinkOp) -> BuildError {
        let op = match op {
            LinkOp::Unary(unary) => Op::Unary(unary),
            LinkOp::UnaryGrad(unary) => Op::UnaryGrad(unary),
            LinkOp::Binary(binary) => Op::Binary(binary),
            LinkOp::Dropout { p, site } => Op::Dropout { p, site },
        };
        self.unsupported(&op, "no kernel computes it")
    }

    pub(super) fn binary(&mut self, step: &Step, binary: Binary) -> Result<(), BuildError> {
        let (mut record, uses) = Self::pointwise::<2>(step);
        record.code = arguments::binary(binary);
        let function = self.function(Source::Binary, "binary", name(step.outputs[0].dtype))?;
        self.push(function, per_element(record.walk.elements), &record, &uses);
        Ok(())
    }

    pub(super) fn compare(&mut self, step: &Step, compare: Compare) -> Result<(), BuildError> {
        let (mut record, uses) = Self::pointwise::<2>(step);
        record.code = arguments::compare(compare);
        let function = self.function(Source::Binary, "compare", name(step.inputs[0].dtype))?;
        self.push(function, per_element(record.walk.elements), &record, &uses);
        Ok(())
    }

    pub(super) fn choose(&mut self, step: &Step) -> Result<(), BuildError> {
        let (record, uses) = Self::pointwise::<3>(step);
        let function = self.function(Source::Binary, "choose", size_name(step.outputs[0].dtype))?;
        self.push(function, per_element(record.walk.elements), &record, &uses);
        Ok(())
    }

    pub(super) fn cast(&mut self, step: &Step, to: DType) -> Result<(), BuildError> {
        let (mut record, uses) = Self::pointwise::<1>(step);
        record.code = arguments::dtype(to);
        let from = step.inputs[0].dtype;
        // Any byte but 0 is true, whoever wrote it.
        let from = if from == DType::Bool { "bool" } else { name(from) };
        let function = self.function(Source::Cast, "cast", from)?;
        self.push(function, per_element(record.walk.elements), &record, &uses);
        Ok(())
    }

    pub(super) fn dropout(&mut self, step: &Step, p: f64, site: u32) -> Result<(), BuildError> {
        let (mut record, uses) = Self::pointwise::<1>(step);
        let [factor, bound] = arguments::dropout(p);
        (record.code, record.first, record.bound) = (site, factor, bound as u64);
        let function = self.function(Source::Unary, "dropout", name(step.outputs[0].dtype))?;
        let seed_at = Some(offset_of!(Pointwise, seed));
        self.program.push(kernel(function, per_element(record.walk.elements)), &record, &uses, seed_at);
        Ok(())
    }

    pub(super) fn arange(
        &mut self,
        step: &Step,
        start: f64,
        by: f64,
        dtype: DType,
    ) -> Result<(), BuildError> {
        let (mut record, uses) = Self::pointwise::<0>(step);
        (record.code, record.first, record.second) = (arguments::dtype(dtype), start, by);
        let function = self.kernels.function(Source::Cast, "arange")?;
        self.push(function, per_element(record.walk.elements), &record, &uses);
        Ok(())
    }
}
