//! Blends as they run: factors in, the layer's output out, and their gradients back.

use std::sync::Arc;

use smallvec::SmallVec;

use super::{GradientSynchronizer, SumKey};
use crate::{
    backend::{Bindings, Executable, HostMemory, Memory as _, Region, RunContext},
    engine::{
        EngineError, Role,
        blend::{self, BlendKey, BlendPlan, Mix},
        job::EMPTY,
        ticket::{TicketSeed, blended},
    },
    tensor::{ALIGNMENT_BYTES, DType, Shape},
};

/// Plans of blends and sums that a layer remembers.
const REMEMBERED_BLENDS: usize = 16;

/// The regions of a blend: outputs and factors of up to four seeds, x, h and 1 − A without an allocation.
pub(super) type Regions<'a> = SmallVec<[Region<'a>; 11]>;

/// What a blend reads in either direction.
pub(super) struct Blending<'a> {
    /// What ran, of which the seeds in training are passed over.
    pub(super) ran: &'a [TicketSeed],
    pub(super) mix: &'a Mix,
    pub(super) x: Region<'a>,
    pub(super) saved: Region<'a>,
}

/// Gradients of what went into a blend.
#[derive(Default)]
pub(super) struct OfOutputs {
    /// By seed that was blended.
    pub(super) seeds: SmallVec<[HostMemory; 4]>,
    pub(super) host: Option<HostMemory>,
    /// Of x, where the blend itself reads it.
    pub(super) input: Option<HostMemory>,
}

impl GradientSynchronizer {
    /// The plan of a blend: most of the time remembered.
    pub(super) fn blend_plan(&mut self, key: BlendKey) -> Result<Arc<BlendPlan>, EngineError> {
        if let Some((_, plan)) = self.blends.iter().find(|(known, _)| *known == key) {
            return Ok(plan.clone());
        }
        let plan = Arc::new(BlendPlan::build(&key, &*self.backend, &self.config)?);
        let backward = plan.backward.as_ref().map_or(0, |b| b.needs().workspace_bytes);
        self.fit_workspace(plan.forward.needs().workspace_bytes.max(backward));
        if self.blends.len() == REMEMBERED_BLENDS {
            self.blends.remove(0);
        }
        self.blends.push((key, plan.clone()));
        Ok(plan)
    }

    /// The plan of a sum: most of the time remembered.
    fn sum_plan(
        &mut self,
        count: usize,
        shape: &Shape,
        dtype: DType,
    ) -> Result<Arc<dyn Executable>, EngineError> {
        let is_it = |known: &SumKey| known.0 == count && known.1 == *shape && known.2 == dtype;
        if let Some((_, plan)) = self.sums.iter().find(|(known, _)| is_it(known)) {
            return Ok(plan.clone());
        }
        let plan = blend::sum_plan(count, shape, dtype, &*self.backend, &self.config)?;
        self.fit_workspace(plan.needs().workspace_bytes);
        if self.sums.len() == REMEMBERED_BLENDS {
            self.sums.remove(0);
        }
        self.sums.push(((count, shape.clone(), dtype), plan.clone()));
        Ok(plan)
    }

    fn fit_workspace(&mut self, bytes: usize) {
        if self.blend_workspace.len_bytes() < bytes {
            self.blend_workspace = HostMemory::new(bytes);
        }
    }

    /// Blends what ran.
    pub(super) fn run_blend(
        &self,
        plan: &BlendPlan,
        blending: &Blending<'_>,
        output: Region<'_>,
    ) -> Result<(), EngineError> {
        let inputs = self.blend_inputs(blending);
        let bindings = Bindings {
            inputs: &inputs,
            outputs: &[output],
            saved: blending.saved,
            workspace: self.blend_workspace.region(),
            ..EMPTY
        };
        let failed = |source| EngineError::Run { what: "the blend".to_owned(), source };
        plan.forward.run(&bindings, &self.brief()).map_err(failed)
    }

    /// From the gradient of the blend to those of the outputs, of the factors, and of x where the blend reads it.
    /// Those of the factors are left for [`of_factors`](Self::of_factors).
    pub(super) fn run_blend_backward(
        &self,
        plan: &dyn Executable,
        blending: &Blending<'_>,
        grad_output: Region<'_>,
        of: &OfOutputs,
    ) -> Result<(), EngineError> {
        let inputs = self.blend_inputs(blending);
        // A blend that reads no 1 − A has no gradient of it either.
        self.of_scalar(self.slots.len()).zero();
        let count = blending.mix.factors.len();
        let mut grad_inputs: Regions<'_> = of.seeds.iter().map(|memory| memory.region()).collect();
        grad_inputs.extend((0..count).map(|n| self.of_scalar(n)));
        for memory in [&of.input, &of.host] {
            grad_inputs.push(memory.as_ref().map_or(Region::EMPTY, |memory| memory.region()));
        }
        grad_inputs.push(self.of_scalar(self.slots.len()));
        let bindings = Bindings {
            inputs: &inputs,
            grad_outputs: &[grad_output],
            grad_inputs: &grad_inputs,
            saved: blending.saved,
            workspace: self.blend_workspace.region(),
            ..EMPTY
        };
        let failed = |source| EngineError::Run { what: "the blend's gradient".to_owned(), source };
        plan.run(&bindings, &self.brief()).map_err(failed)
    }

    /// Adds gradients up, in order.
    pub(super) fn run_sum(
        &mut self,
        summands: &[HostMemory],
        shape: &Shape,
        dtype: DType,
        to: Region<'_>,
    ) -> Result<(), EngineError> {
        let plan = self.sum_plan(summands.len(), shape, dtype)?;
        let inputs: Regions<'_> = summands.iter().map(|memory| memory.region()).collect();
        let workspace = self.blend_workspace.region();
        let bindings = Bindings { inputs: &inputs, outputs: &[to], workspace, ..EMPTY };
        let failed = |source| EngineError::Run { what: "the sum of gradients".to_owned(), source };
        plan.run(&bindings, &self.brief()).map_err(failed)
    }

    /// The gradients of the factors that the blend's backward has left, and that of 1 − A.
    pub(super) fn of_factors(&self, count: usize) -> (blend::Factors, f32) {
        let read = |n| {
            let mut bytes = [0; 4];
            self.of_scalar(n).read(&mut bytes);
            f32::from_le_bytes(bytes)
        };
        ((0..count).map(read).collect(), read(self.slots.len()))
    }

    fn blend_inputs<'a>(&'a self, blending: &Blending<'a>) -> Regions<'a> {
        let Blending { ran, mix, x, .. } = blending;
        let rest = self.slots.len();
        for (n, factor) in mix.factors.iter().enumerate() {
            self.scalar(n).write(&factor.to_le_bytes());
        }
        self.scalar(rest).write(&mix.rest.to_le_bytes());
        let mut inputs: Regions<'_> = blended(ran).map(|seed| seed.output.region()).collect();
        inputs.extend((0..mix.factors.len()).map(|n| self.scalar(n)));
        inputs.push(*x);
        let host = ran.iter().find(|seed| seed.role == Role::Host);
        inputs.push(host.map_or(Region::EMPTY, |host| host.output.region()));
        inputs.push(self.scalar(rest));
        inputs
    }

    /// The seeds have had their time; what comes after them is short and is not given up.
    fn brief(&self) -> RunContext {
        RunContext { seed: 0, deadline: None, threads: self.threads(1) }
    }

    /// The n-th factor; after those of all slots, 1 − A.
    fn scalar(&self, n: usize) -> Region<'_> {
        self.scalars.region().part(n * ALIGNMENT_BYTES, 4).expect("there are two scalars a slot, and two")
    }

    /// Its gradient.
    fn of_scalar(&self, n: usize) -> Region<'_> {
        self.scalar(self.slots.len() + 1 + n)
    }
}
