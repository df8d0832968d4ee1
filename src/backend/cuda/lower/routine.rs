//! Which steps libraries compute, and what was planned with them.

use std::{collections::HashMap, mem::offset_of, sync::Arc};

use smallvec::SmallVec;

use super::{Lowering, Use, Uses, convolution, product::Product};
use crate::{
    backend::{
        BuildError,
        cuda::{
            device::Device,
            driver::{Access, Address, Code, Launch, PlannedRoutine, RoutineArguments, RoutineSpec, Touch},
            memory::{CudaMemory, counted},
        },
        plan::{Addmm, Step},
    },
    graph::{Op, ValueInfo},
    tensor::{DType, Layout, Shape},
};

/// The routines of a plan, open as long as this lives.
#[derive(Debug)]
pub(in crate::backend::cuda) struct Planned {
    device: Arc<Device>,
    tf32: bool,
    /// `None` for what no library has a way for that works.
    by_spec: HashMap<RoutineSpec, Option<PlannedRoutine>>,
}

impl Planned {
    /// None yet; `tf32` says whether factors may be rounded to it.
    pub(in crate::backend::cuda) fn new(device: Arc<Device>, tf32: bool) -> Self {
        Self { device, tf32, by_spec: HashMap::new() }
    }

    /// Plans an operation with the first library that computes it, if there is one.
    pub(super) fn plan(&mut self, op: &Op, inputs: &[&Layout], y: &ValueInfo) -> Option<PlannedRoutine> {
        let device = &self.device;
        asked(op, inputs, &y.shape, y.dtype, self.tf32)
            .find_map(|(spec, _)| *self.by_spec.entry(spec).or_insert_with(|| plan_and_try(device, &spec)))
    }

    /// Plans a product with its bias, if there is a library that adds it.
    pub(super) fn plan_addmm(
        &mut self,
        addmm: Addmm,
        factors: [&Layout; 2],
        y: &ValueInfo,
    ) -> Option<PlannedRoutine> {
        let (spec, _) = addmm_spec(addmm, factors, &y.shape, y.dtype, self.tf32)?;
        *self.by_spec.entry(spec).or_insert_with(|| plan_and_try(&self.device, &spec))
    }

    /// What was planned for such a step, and which of its operands is the routine's first.
    pub(super) fn of_addmm(&self, addmm: Addmm, step: &Step) -> Option<(PlannedRoutine, usize)> {
        let factors = [0, 1].map(|i| &step.inputs[i].layout);
        let y = &step.outputs[0];
        let (spec, first) = addmm_spec(addmm, factors, y.layout.shape(), y.dtype, self.tf32)?;
        Some(((*self.by_spec.get(&spec)?)?, first))
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
            self.device.driver().close_routine(planned.routine);
        }
    }
}

/// Plans a routine, of a kind that was run once on zeros: a library may suggest what it then refuses, and loads its kernels at
/// their first run, neither of which a pass should have to bear.
fn plan_and_try(device: &Arc<Device>, spec: &RoutineSpec) -> Option<PlannedRoutine> {
    let planned = device.driver().plan_routine(spec)?;
    if device.works(spec, || try_once(device, spec, planned)) {
        return Some(planned);
    }
    device.driver().close_routine(planned.routine);
    None
}

/// Whether it works; `None` where that shows only when it is needed, for want of memory or as the device itself has failed.
fn try_once(device: &Arc<Device>, spec: &RoutineSpec, planned: PlannedRoutine) -> Option<bool> {
    let bytes = |bytes: u64| usize::try_from(bytes).map_or(usize::MAX, counted);
    let [a, b, out, bias] = spec.operand_bytes().map(bytes);
    let sizes = [a, b, out, counted(planned.workspace_bytes), bias];
    let all = sizes.iter().fold(0, |all: usize, &size| all.saturating_add(size));
    let memory = CudaMemory::zeroed(device, all.max(1));
    let memory =
        memory.inspect_err(|error| tracing::debug!(%error, ?spec, "a routine is used untried")).ok()?;
    let mut next = memory.address();
    let [a, b, out, workspace, bias] = sizes.map(|size| {
        let start = next;
        next += size as Address;
        start
    });
    let arguments = RoutineArguments { a, b, out, workspace, bias };
    let touch = |at: usize, bytes: usize, access| Touch { at: at as u32, access, len_bytes: bytes as u64 };
    let touches = [
        touch(offset_of!(RoutineArguments, a), sizes[0], Access::Read),
        touch(offset_of!(RoutineArguments, b), sizes[1], Access::Read),
        touch(offset_of!(RoutineArguments, out), sizes[2], Access::Write),
        touch(offset_of!(RoutineArguments, workspace), sizes[3], Access::Write),
        touch(offset_of!(RoutineArguments, bias), sizes[4], Access::Read),
    ];
    let (code, arguments) = (Code::Routine(planned.routine), arguments.bytes());
    let ran = device.do_now(|driver, stream| {
        // SAFETY: the routine is open, and each operand has as many bytes as it is said to touch, aligned as memory of the
        // device is. It stays until the work is done.
        unsafe { driver.launch(&Launch { code, arguments: &arguments, touches: &touches }, stream) }
    });
    match ran {
        Ok(()) => Some(true),
        Err(_) if device.driver().lost().is_some() || device.stopped().is_some() => None,
        Err(error) => {
            tracing::warn!(%error, ?spec, "a library cannot do what it has planned: our own kernel does it");
            Some(false)
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

/// What the library of products is asked for where it adds the bias, and which operand is its first.
fn addmm_spec(
    addmm: Addmm,
    factors: [&Layout; 2],
    y: &Shape,
    dtype: DType,
    tf32: bool,
) -> Option<(RoutineSpec, usize)> {
    let Addmm { transpose_a, transpose_b, relu } = addmm;
    // The library's ReLU need not keep what is not a number, by which the guard knows a pass that went wrong.
    if relu {
        return None;
    }
    let product = Product::of(&Op::MatMul { transpose_a, transpose_b }, &factors, y)?;
    Some((RoutineSpec::Product(product.with_bias(dtype, tf32)?), 1 - product.left))
}

impl Lowering<'_> {
    /// A product that its library adds the bias to.
    pub(super) fn addmm(&mut self, step: &Step, addmm: Addmm) -> Result<(), BuildError> {
        let Some((planned, first)) = self.routines.of_addmm(addmm, step) else {
            let reason = "the planner has left a bias with it that no library adds";
            return Err(self.unsupported(&Op::MatMul { transpose_a: false, transpose_b: false }, reason));
        };
        let bias = Use::read(offset_of!(RoutineArguments, bias), &step.inputs[2]);
        self.hand_over(step, (planned, first), Some(bias));
        Ok(())
    }

    /// A step that a library computes.
    pub(super) fn routine(&mut self, step: &Step, planned: (PlannedRoutine, usize)) {
        self.hand_over(step, planned, None);
    }

    fn hand_over(&mut self, step: &Step, (planned, first): (PlannedRoutine, usize), bias: Option<Use>) {
        let mut uses: Uses = [
            Use::read(offset_of!(RoutineArguments, a), &step.inputs[first]),
            Use::read(offset_of!(RoutineArguments, b), &step.inputs[1 - first]),
            Use::write(offset_of!(RoutineArguments, out), &step.outputs[0]),
        ]
        .into_iter()
        .chain(bias)
        .collect();
        if planned.workspace_bytes > 0 {
            uses.push(Use::scratch(offset_of!(RoutineArguments, workspace), step.scratch, 0, Access::Write));
        }
        self.program.push(Code::Routine(planned.routine), &RoutineArguments::default(), &uses, None);
    }
}
