//! What the program's tensors hold at the moment: which share memory, and what a write to one does to others.
//!
//! The graph knows values and no memory. A tensor that is a view of another remembers how it was cut from it,
//! so that a write through it becomes a new value of the whole, and whoever looks at that memory later reads
//! from the new whole. Where it is not known whether PyTorch copies (`reshape`, `contiguous`), a write to
//! either side makes the other unreadable: refused, and never wrong.

use super::{
    Lowering,
    value::{TensorRef, Value},
};
use crate::{
    artifact::Problem,
    graph::{Op, ValueId},
    tensor::{DType, Shape},
};

/// Where the memory behind a tensor comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    Computed,
    Input,
    Parameter,
    Constant,
    Buffer(u32),
}

/// One piece of memory, and the regions that lie in it or may lie in it.
#[derive(Debug)]
struct Memory {
    origin: Origin,
    regions: Vec<u32>,
}

/// Tensors that are known to show the same memory.
#[derive(Clone, Copy, Debug)]
struct Region {
    memory: u32,
    /// How many writes there were.
    writes: u32,
    /// Written through a tensor that may or may not share the memory.
    lost: bool,
}

/// A tensor of the program.
#[derive(Clone, Debug)]
struct Cell {
    /// What it held after `writes` writes to its region.
    value: ValueId,
    writes: u32,
    region: u32,
    /// The tensor it is a view of, and the movements from that to this. Whoever holds the present value has a
    /// base that does.
    base: Option<(u32, Vec<Op>)>,
}

/// The tensors of one lowering.
#[derive(Debug, Default)]
pub(super) struct Cells {
    cells: Vec<Cell>,
    regions: Vec<Region>,
    memories: Vec<Memory>,
}

impl Cells {
    /// A tensor in memory of its own.
    pub(super) fn allocate(&mut self, value: ValueId, origin: Origin) -> TensorRef {
        self.memories.push(Memory { origin, regions: Vec::new() });
        self.first(value, self.memories.len() as u32 - 1)
    }

    /// The first tensor of a new region.
    fn first(&mut self, value: ValueId, memory: u32) -> TensorRef {
        let region = self.regions.len() as u32;
        self.regions.push(Region { memory, writes: 0, lost: false });
        self.memories[memory as usize].regions.push(region);
        self.add(Cell { value, writes: 0, region, base: None })
    }

    fn add(&mut self, cell: Cell) -> TensorRef {
        self.cells.push(cell);
        TensorRef(self.cells.len() as u32 - 1)
    }

    fn region(&self, tensor: TensorRef) -> &Region {
        &self.regions[self.cells[tensor.0 as usize].region as usize]
    }

    pub(super) fn origin(&self, tensor: TensorRef) -> Origin {
        self.memories[self.region(tensor).memory as usize].origin
    }

    /// A value of this tensor's shape and type, though not always the present one.
    pub(super) fn any_value(&self, tensor: TensorRef) -> ValueId {
        self.cells[tensor.0 as usize].value
    }

    /// Makes the first tensor of a region hold a value, with no question asked.
    pub(super) fn reset(&mut self, tensor: TensorRef, value: ValueId) {
        let region = self.cells[tensor.0 as usize].region as usize;
        self.regions[region].writes += 1;
        self.regions[region].lost = false;
        let cell = &mut self.cells[tensor.0 as usize];
        (cell.value, cell.writes) = (value, self.regions[region].writes);
    }
}

/// How far back the movements of one view are looked for.
const MAX_MOVEMENTS: usize = 8;

impl Lowering<'_> {
    /// A tensor in memory of its own.
    pub(super) fn fresh(&mut self, value: ValueId) -> Value {
        Value::Tensor(self.cells.allocate(value, Origin::Computed))
    }

    /// A view of `base`, whose value was made of the base's present one.
    pub(super) fn view_of(&mut self, base: TensorRef, value: ValueId) -> Value {
        let Cell { value: whole, writes, region, .. } = self.cells.cells[base.0 as usize];
        match self.movements(whole, value) {
            Some(steps) if writes == self.cells.region(base).writes => {
                let base = Some((base.0, steps));
                Value::Tensor(self.cells.add(Cell { value, writes, region, base }))
            }
            _ => self.maybe_view_of(base, value),
        }
    }

    /// A tensor that PyTorch makes a view or a copy of `base`, by how `base` lies in memory.
    pub(super) fn maybe_view_of(&mut self, base: TensorRef, value: ValueId) -> Value {
        let memory = self.cells.region(base).memory;
        Value::Tensor(self.cells.first(value, memory))
    }

    /// Makes a tensor what a view of it is: the same elements, in another order or shape.
    pub(super) fn turn(&mut self, tensor: TensorRef, view: TensorRef) -> Result<(), Problem> {
        if tensor == view {
            return Ok(());
        }
        if self.is_state(tensor) {
            return Err(Problem::unsupported("turning a parameter or buffer in place"));
        }
        // What may be the tensor itself, as `contiguous` gives it, may be turned with it.
        self.value(tensor)?;
        let own = self.cells.cells[tensor.0 as usize].region;
        let memory = self.cells.regions[own as usize].memory as usize;
        let regions = std::mem::replace(&mut self.cells.memories[memory].regions, vec![own]);
        self.charge(regions.len() as u64)?;
        for other in regions.into_iter().filter(|&region| region != own) {
            self.cells.regions[other as usize].lost = true;
        }
        // Its other views stay views of what it was.
        let old = self.cells.cells.len() as u32;
        self.charge(u64::from(old))?;
        self.cells.add(self.cells.cells[tensor.0 as usize].clone());
        for cell in &mut self.cells.cells {
            if let Some((base, _)) = &mut cell.base
                && *base == tensor.0
            {
                *base = old;
            }
        }
        self.cells.cells[tensor.0 as usize] = self.cells.cells[view.0 as usize].clone();
        Ok(())
    }

    /// The movements that lead from one value to another, where there is nothing else between them.
    fn movements(&self, whole: ValueId, part: ValueId) -> Option<Vec<Op>> {
        let mut steps = Vec::new();
        let mut at = part;
        for node in self.builder.graph().nodes.iter().rev().take(MAX_MOVEMENTS) {
            if at == whole {
                break;
            }
            if node.outputs.contains(&at) {
                if !matches!(node.op, Op::Reshape(_) | Op::Permute(_) | Op::Slice { .. }) {
                    return None;
                }
                steps.push(node.op.clone());
                at = node.inputs[0];
            }
        }
        steps.reverse();
        (at == whole).then_some(steps)
    }

    /// The value that a tensor has now.
    pub(crate) fn value(&mut self, tensor: TensorRef) -> Result<ValueId, Problem> {
        let Region { writes, lost, .. } = *self.cells.region(tensor);
        if lost {
            return Err(Problem::unsupported(
                "reading a tensor after another was written in place that may or may not share its memory",
            ));
        }
        let mut behind = Vec::new();
        let mut at = tensor.0;
        while self.cells.cells[at as usize].writes != writes {
            let Some((base, _)) = self.cells.cells[at as usize].base else { break };
            behind.push(at);
            at = base;
        }
        self.charge(behind.len() as u64)?;
        let mut value = self.cells.cells[at as usize].value;
        for at in behind.into_iter().rev() {
            let steps = self.cells.cells[at as usize].base.clone().map_or(Vec::new(), |(_, steps)| steps);
            for step in steps {
                value = self.builder.apply(step, &[value])?;
            }
            let cell = &mut self.cells.cells[at as usize];
            (cell.value, cell.writes) = (value, writes);
        }
        Ok(value)
    }

    /// Writes a tensor in place: it holds `value` from now on, and whoever shares its memory sees that.
    pub(super) fn write(&mut self, tensor: TensorRef, value: ValueId) -> Result<(), Problem> {
        match self.cells.origin(tensor) {
            Origin::Parameter => return Err(Problem::unsupported("writing a parameter in place")),
            Origin::Constant => return Err(Problem::unsupported("writing a constant in place")),
            Origin::Buffer(index) if self.buffers[index as usize].shared => {
                return Err(Problem::unsupported("writing a buffer that shares memory with another tensor"));
            }
            Origin::Computed | Origin::Input | Origin::Buffer(_) => {}
        }
        self.value(tensor)?;
        let own = self.cells.cells[tensor.0 as usize].region;
        let Region { memory, writes, .. } = self.cells.regions[own as usize];
        // The new values of the tensor and of all that it is a view of, before any is changed.
        let mut changed = vec![(tensor.0, value)];
        let (mut at, mut value) = (tensor.0, value);
        while let Some((base, steps)) = self.cells.cells[at as usize].base.clone() {
            let whole = self.cells.cells[base as usize].value;
            value = self.put_back(whole, &steps, value)?;
            changed.push((base, value));
            at = base;
        }
        // The walk is paid for, so that many views and many writes cannot cost quadratic time.
        let regions = std::mem::take(&mut self.cells.memories[memory as usize].regions);
        self.charge((changed.len() + regions.len()) as u64)?;
        for &other in regions.iter().filter(|&&region| region != own) {
            self.cells.regions[other as usize].lost = true;
        }
        self.cells.memories[memory as usize].regions = vec![own];
        self.cells.regions[own as usize].writes = writes + 1;
        for (cell, value) in changed {
            let cell = &mut self.cells.cells[cell as usize];
            (cell.value, cell.writes) = (value, writes + 1);
        }
        Ok(())
    }

    /// `whole` with `new` in the place that `part` was cut from.
    pub(super) fn replace(
        &mut self,
        whole: ValueId,
        part: ValueId,
        new: ValueId,
    ) -> Result<ValueId, Problem> {
        match self.movements(whole, part) {
            Some(steps) => self.put_back(whole, &steps, new),
            None => Err(Problem::unsupported("writing through this view")),
        }
    }

    /// `whole` with `part` in the place that the movements cut out.
    fn put_back(&mut self, whole: ValueId, steps: &[Op], part: ValueId) -> Result<ValueId, Problem> {
        let mut olds = vec![whole];
        for step in steps.iter().take(steps.len().saturating_sub(1)) {
            let last = olds[olds.len() - 1];
            olds.push(self.builder.apply(step.clone(), &[last])?);
        }
        let mut new = part;
        for (step, old) in steps.iter().zip(olds).rev() {
            new = match step {
                Op::Reshape(_) => {
                    let shape = self.builder.shape(old).clone();
                    self.builder.apply(Op::Reshape(shape), &[new])?
                }
                Op::Permute(order) => {
                    let mut back = vec![0; order.len()];
                    order.iter().enumerate().for_each(|(to, &from)| back[from] = to);
                    self.builder.apply(Op::Permute(back), &[new])?
                }
                Op::Slice { dim, start, len, step } => {
                    self.put_slice(old, [*dim, *start, *len, *step], new)?
                }
                _ => return Err(Problem::unsupported("writing through this view")),
            };
        }
        Ok(new)
    }

    /// `old` with `new` at the indices that a slice of one dimension reads.
    pub(super) fn put_slice(
        &mut self,
        old: ValueId,
        [dim, start, len, step]: [usize; 4],
        new: ValueId,
    ) -> Result<ValueId, Problem> {
        if len == 0 {
            return Ok(old);
        }
        let size = self.builder.shape(old)[dim];
        if step == 1 || len == 1 {
            let end = start + len;
            let mut parts = Vec::with_capacity(3);
            if start > 0 {
                parts.push(self.builder.apply(Op::Slice { dim, start: 0, len: start, step: 1 }, &[old])?);
            }
            parts.push(new);
            if end < size {
                let rest = Op::Slice { dim, start: end, len: size - end, step: 1 };
                parts.push(self.builder.apply(rest, &[old])?);
            }
            return Ok(if parts.len() == 1 { new } else { self.builder.apply(Op::Cat { dim }, &parts)? });
        }
        let dtype = self.builder.dtype(old);
        if !dtype.is_floating_point() {
            return Err(Problem::unsupported("writing integers through a slice with a step"));
        }
        let spread = |this: &mut Self, x| this.builder.apply(Op::Unslice { dim, size, start, step }, &[x]);
        let values = spread(self, new)?;
        let shape = self.builder.shape(new).clone();
        let ones = self.builder.apply(Op::Full { shape, dtype, value: 1.0 }, &[])?;
        let chosen = spread(self, ones)?;
        let none = self.builder.apply(Op::Full { shape: Shape::scalar(), dtype, value: 0.0 }, &[])?;
        let chosen = self.builder.apply(Op::Compare(crate::graph::Compare::Ne), &[chosen, none])?;
        debug_assert_eq!(self.builder.dtype(chosen), DType::Bool, "a comparison gives bools");
        Ok(self.builder.apply(Op::Where, &[chosen, values, old])?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        artifact::{Mode, NamedTensor, ReadLimits, aten::call},
        graph::Limits,
        tensor::HostTensor,
    };

    /// A buffer turned in place would have another shape at the next pass.
    #[test]
    fn state_is_not_turned_but_its_views_are() {
        let tensor = HostTensor::from_values([2, 3].into(), &[0.0f32; 6]).unwrap();
        let (aliases, persistent) = (Vec::new(), true);
        let buffers = [NamedTensor { name: "table".into(), tensor, shared: false, aliases, persistent }];
        let mut lowering =
            Lowering::new(&[], &buffers, Mode::Train, Limits::default(), &ReadLimits::default());
        let buffer = lowering.buffer(0).unwrap();
        let error = call(&mut lowering, "t_", "", &[(None, buffer.clone())]).unwrap_err();
        assert!(error.to_string().contains("turning a parameter or buffer"), "{error}");

        let view = call(
            &mut lowering,
            "select",
            "",
            &[(None, buffer), (None, Value::int(0)), (None, Value::int(0))],
        );
        let view = view.unwrap();
        call(&mut lowering, "unsqueeze_", "", &[(None, view.clone()), (None, Value::int(0))]).unwrap();
        assert_eq!(lowering.info(&view).map(|(shape, _)| shape), Some([1, 3].into()));
        call(&mut lowering, "zero_", "", &[(None, view)]).unwrap();
        let graph = lowering.finish(&[]).unwrap().graph;
        assert_eq!(graph.sinks.len(), 1, "the buffer's row is written: {graph}");
    }

    /// What was a view before is one after.
    #[test]
    fn views_of_what_is_turned_stay() {
        let mut lowering = Lowering::new(&[], &[], Mode::Train, Limits::default(), &ReadLimits::default());
        let x = lowering.input(0, [2, 3].into(), DType::F32).unwrap();
        let row = call(
            &mut lowering,
            "select",
            "",
            &[(None, x.clone()), (None, Value::int(0)), (None, Value::int(1))],
        );
        let row = row.unwrap();
        call(&mut lowering, "t_", "", &[(None, x.clone())]).unwrap();
        assert_eq!(lowering.info(&x).map(|(shape, _)| shape), Some([3, 2].into()));
        assert_eq!(lowering.info(&row).map(|(shape, _)| shape), Some([3].into()));
        let before = lowering.materialise(&row).unwrap();
        call(&mut lowering, "zero_", "", &[(None, x)]).unwrap();
        assert_ne!(lowering.materialise(&row).unwrap(), before, "it sees the write");
    }
}
