//! Which steps libraries compute, and what was planned with them.

use std::{collections::HashMap, mem::offset_of, sync::Arc};

use smallvec::SmallVec;

use super::{Lowering, Use, Uses, convolution, product::Product};
use crate::{
    backend::{
        cuda::driver::{Access, Code, Driver, PlannedRoutine, RoutineArguments, RoutineSpec},
        plan::Step,
    },
    graph::{Op, ValueInfo},
    tensor::{DType, Layout, Shape},
};

/// The routines of a plan, open as long as this lives.
#[derive(Debug)]
pub(in crate::backend::cuda) struct Planned {
    driver: Arc<dyn Driver>,
    tf32: bool,
    /// `None` for what no library has a way for.
    by_spec: HashMap<RoutineSpec, Option<PlannedRoutine>>,
}

impl Planned {
    /// None yet; `tf32` says whether factors may be rounded to it.
    pub(in crate::backend::cuda) fn new(driver: Arc<dyn Driver>, tf32: bool) -> Self {
        Self { driver, tf32, by_spec: HashMap::new() }
    }

    /// Plans an operation with the first library that computes it, if there is one.
    pub(super) fn plan(&mut self, op: &Op, inputs: &[&Layout], y: &ValueInfo) -> Option<PlannedRoutine> {
        let driver = &self.driver;
        asked(op, inputs, &y.shape, y.dtype, self.tf32)
            .find_map(|(spec, _)| *self.by_spec.entry(spec).or_insert_with(|| driver.plan_routine(&spec)))
    }

    /// The routine that was planned for a step, and which of the step's operands is its first.
    pub(super) fn of_step(&self, op: &Op, step: &Step) -> Option<(PlannedRoutine, usize)> {
        let inputs: SmallVec<[_; 4]> = step.inputs.iter().map(|place| &place.layout).collect();
        let y = &step.outputs[0];
        asked(op, &inputs, y.layout.shape(), y.dtype, self.tf32)
            .find_map(|(spec, first)| Some(((*self.by_spec.get(&spec)?)?, first)))
    }

    /// Bytes of memory that it takes, but for what libraries keep.
    pub(in crate::backend::cuda) fn held_bytes(&self) -> usize {
        self.by_spec.capacity() * size_of::<(RoutineSpec, Option<PlannedRoutine>)>()
    }
}

impl Drop for Planned {
    fn drop(&mut self) {
        for planned in self.by_spec.values().flatten() {
            self.driver.close_routine(planned.routine);
        }
    }
}

/// What libraries are asked for in an operation's place, the better one first; of each, which operand is its first.
///
/// A convolution that is a product goes to the library of products, which need not look for its pixels.
fn asked(
    op: &Op,
    inputs: &[&Layout],
    y: &Shape,
    dtype: DType,
    tf32: bool,
) -> impl Iterator<Item = (RoutineSpec, usize)> {
    let product = Product::of(op, inputs, y).and_then(|product| {
        // Its rows are the library's columns, and what is right of it comes first.
        Some((RoutineSpec::Product(product.spec(dtype, tf32)?), 1 - product.left))
    });
    let convolution = convolution::spec(op, inputs, y, dtype, tf32);
    product.into_iter().chain(convolution.map(|spec| (RoutineSpec::Convolution(spec), 0)))
}

impl Lowering<'_> {
    /// A step that a library computes.
    pub(super) fn routine(&mut self, step: &Step, (planned, first): (PlannedRoutine, usize)) {
        let mut uses: Uses = [
            Use::read(offset_of!(RoutineArguments, a), &step.inputs[first]),
            Use::read(offset_of!(RoutineArguments, b), &step.inputs[1 - first]),
            Use::write(offset_of!(RoutineArguments, out), &step.outputs[0]),
        ]
        .into_iter()
        .collect();
        if planned.workspace_bytes > 0 {
            uses.push(Use::scratch(offset_of!(RoutineArguments, workspace), step.scratch, 0, Access::Write));
        }
        self.program.push(Code::Routine(planned.routine), &RoutineArguments::default(), &uses, None);
    }
}
