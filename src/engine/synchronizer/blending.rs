//! Blends as they run: factors in, the layer's output out, and their gradients back.

use std::sync::Arc;

use smallvec::SmallVec;

use super::SumKey;
use crate::{
    backend::{Backend, Bindings, Executable, OwnMemory, Queue, Region, RunContext, RunError, nothing},
    engine::{
        EngineConfig, EngineError, Role,
        blend::{self, BlendKey, BlendPlan, Mix},
        recent::Recent,
        ticket::{TicketSeed, blended},
    },
    tensor::{ALIGNMENT_BYTES, DType, Shape},
};

/// Plans of blends and of sums that a layer remembers, those that were used last.
const REMEMBERED_BLENDS: usize = 32;

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
    pub(super) seeds: SmallVec<[OwnMemory; 4]>,
    pub(super) host: Option<OwnMemory>,
    /// Of x, where the blend itself reads it.
    pub(super) input: Option<OwnMemory>,
}

impl OfOutputs {
    /// Memory among it that could not be had.
    fn lack(&self) -> Option<&RunError> {
        self.seeds.iter().chain(&self.host).chain(&self.input).find_map(|memory| memory.lack())
    }
}

/// A layer's blends and sums: their plans, and the memory they run in.
#[derive(Debug)]
pub(super) struct Blender {
    backend: Arc<dyn Backend>,
    config: Arc<EngineConfig>,
    blends: Recent<BlendKey, Arc<BlendPlan>>,
    sums: Recent<SumKey, Arc<dyn Executable>>,
    workspace: OwnMemory,
    /// Factors of the blend and 1 − A, then their gradients, a cache line each, on the device.
    scalars: OwnMemory,
    /// One half of them, as the host sees it.
    half: Vec<u8>,
    /// How many slots the layer has.
    slots: usize,
    /// Plans that were made here, until somebody asks.
    pub(super) plans_made: u64,
}

impl Blender {
    pub(super) fn new(slots: usize, backend: Arc<dyn Backend>, config: Arc<EngineConfig>) -> Self {
        let half_bytes = (slots + 1) * ALIGNMENT_BYTES;
        Self {
            blends: Recent::new(REMEMBERED_BLENDS),
            sums: Recent::new(REMEMBERED_BLENDS),
            workspace: nothing(),
            scalars: backend.allocate(2 * half_bytes),
            half: vec![0; half_bytes],
            slots,
            plans_made: 0,
            backend,
            config,
        }
    }

    /// The plan of a blend: most of the time remembered.
    pub(super) fn plan(&mut self, key: BlendKey) -> Result<Arc<BlendPlan>, EngineError> {
        if let Some(plan) = self.blends.get(&key) {
            return Ok(plan.clone());
        }
        self.plans_made += 1;
        let plan = Arc::new(BlendPlan::build(&key, &*self.backend, &self.config)?);
        self.blends.insert(key, plan.clone());
        Ok(plan)
    }

    /// The plan of a sum: most of the time remembered.
    fn sum_plan(
        &mut self,
        count: usize,
        shape: &Shape,
        dtype: DType,
    ) -> Result<Arc<dyn Executable>, EngineError> {
        let key = (count, shape.clone(), dtype);
        if let Some(plan) = self.sums.get(&key) {
            return Ok(plan.clone());
        }
        self.plans_made += 1;
        let plan = blend::sum_plan(count, shape, dtype, &*self.backend, &self.config)?;
        self.sums.insert(key, plan.clone());
        Ok(plan)
    }

    /// Grows what is too small for a plan, and asks again for what could not be had.
    fn fit(&mut self, plan: &dyn Executable) -> Result<(), RunError> {
        let bytes = plan.needs().workspace_bytes;
        if self.workspace.len_bytes() < bytes {
            self.workspace = nothing();
            self.workspace = self.backend.allocate(bytes);
        }
        if self.scalars.lack().is_some() {
            self.scalars = self.backend.allocate(2 * self.half.len());
        }
        let lack = self.workspace.lack().filter(|_| bytes > 0).or_else(|| self.scalars.lack());
        lack.map_or(Ok(()), |lack| Err(lack.clone()))
    }

    /// Blends what ran.
    pub(super) fn run(
        &mut self,
        queue: &mut dyn Queue,
        plan: &BlendPlan,
        blending: &Blending<'_>,
        output: Region<'_>,
    ) -> Result<(), EngineError> {
        let failed = EngineError::of_run("the blend");
        self.fit(&*plan.forward).and_then(|()| self.write_scalars(queue, blending.mix)).map_err(failed)?;
        let inputs = self.inputs(blending);
        let bindings = Bindings {
            inputs: &inputs,
            outputs: &[output],
            saved: blending.saved,
            workspace: self.workspace.region(),
            ..Bindings::EMPTY
        };
        plan.forward.run(queue, &bindings, &self.brief()).map_err(failed)
    }

    /// From the gradient of the blend to those of the outputs, of the factors, and of x where the blend reads it.
    /// Those of the factors are left for [`of_factors`](Self::of_factors).
    pub(super) fn run_backward(
        &mut self,
        queue: &mut dyn Queue,
        plan: &dyn Executable,
        blending: &Blending<'_>,
        grad_output: Region<'_>,
        of: &OfOutputs,
    ) -> Result<(), EngineError> {
        let failed = EngineError::of_run("the blend's gradient");
        self.fit(plan).and_then(|()| self.write_scalars(queue, blending.mix)).map_err(failed)?;
        if let Some(lack) = of.lack() {
            return Err(failed(lack.clone()));
        }
        // A blend that reads no 1 − A has no gradient of it either.
        queue.zero(self.of_scalar(self.slots)).map_err(failed)?;
        let inputs = self.inputs(blending);
        let count = blending.mix.factors.len();
        let mut grad_inputs: Regions<'_> = of.seeds.iter().map(|memory| memory.region()).collect();
        grad_inputs.extend((0..count).map(|n| self.of_scalar(n)));
        for memory in [&of.input, &of.host] {
            grad_inputs.push(memory.as_ref().map_or(Region::EMPTY, |memory| memory.region()));
        }
        grad_inputs.push(self.of_scalar(self.slots));
        let bindings = Bindings {
            inputs: &inputs,
            grad_outputs: &[grad_output],
            grad_inputs: &grad_inputs,
            saved: blending.saved,
            workspace: self.workspace.region(),
            ..Bindings::EMPTY
        };
        plan.run(queue, &bindings, &self.brief()).map_err(failed)
    }

    /// Adds gradients up, in order.
    pub(super) fn run_sum(
        &mut self,
        queue: &mut dyn Queue,
        summands: &[OwnMemory],
        (shape, dtype): (&Shape, DType),
        to: Region<'_>,
    ) -> Result<(), EngineError> {
        let failed = EngineError::of_run("the sum of gradients");
        let plan = self.sum_plan(summands.len(), shape, dtype)?;
        self.fit(&*plan).map_err(failed)?;
        let inputs: Regions<'_> = summands.iter().map(|memory| memory.region()).collect();
        let bindings = Bindings {
            inputs: &inputs,
            outputs: &[to],
            workspace: self.workspace.region(),
            ..Bindings::EMPTY
        };
        plan.run(queue, &bindings, &self.brief()).map_err(failed)
    }

    /// The gradients of the factors that the blend's backward has left, and that of 1 − A. Blocking.
    pub(super) fn of_factors(
        &mut self,
        queue: &mut dyn Queue,
        count: usize,
    ) -> Result<(blend::Factors, f32), EngineError> {
        let Self { scalars, half, slots, .. } = self;
        let there = scalars.region().part(half.len(), half.len()).unwrap_or(Region::EMPTY);
        let failed = EngineError::of_run("the blend's gradient");
        queue.read(there, half).map_err(failed)?;
        let read = |n: usize| {
            let bytes = half.get(n * ALIGNMENT_BYTES..).and_then(<[u8]>::first_chunk);
            bytes.map_or(f32::NAN, |bytes| f32::from_le_bytes(*bytes))
        };
        Ok(((0..count).map(read).collect(), read(*slots)))
    }

    /// Writes the factors to where the blend reads them.
    fn write_scalars(&mut self, queue: &mut dyn Queue, mix: &Mix) -> Result<(), RunError> {
        let Self { scalars, half, slots, .. } = self;
        let lines = half.chunks_exact_mut(ALIGNMENT_BYTES);
        let (last, factors) = (*slots, mix.factors.iter());
        for (n, line) in lines.enumerate() {
            let value = if n == last { Some(mix.rest) } else { factors.as_slice().get(n).copied() };
            if let Some(value) = value {
                line[..4].copy_from_slice(&value.to_le_bytes());
            }
        }
        queue.write(half, scalars.region())
    }

    fn inputs<'a>(&'a self, blending: &Blending<'a>) -> Regions<'a> {
        let Blending { ran, mix, x, .. } = blending;
        let mut inputs: Regions<'_> = blended(ran).map(|seed| seed.output.region()).collect();
        inputs.extend((0..mix.factors.len()).map(|n| self.scalar(n)));
        inputs.push(*x);
        let host = ran.iter().find(|seed| seed.role == Role::Host);
        inputs.push(host.map_or(Region::EMPTY, |host| host.output.region()));
        inputs.push(self.scalar(self.slots));
        inputs
    }

    /// The seeds have had their time; what comes after them is short and is not given up.
    fn brief(&self) -> RunContext {
        RunContext { seed: 0, deadline: None, threads: self.config.threads.max(1) }
    }

    /// The n-th factor; after those of all slots, 1 − A.
    fn scalar(&self, n: usize) -> Region<'_> {
        self.scalars.region().part(n * ALIGNMENT_BYTES, 4).unwrap_or(Region::EMPTY)
    }

    /// Its gradient.
    fn of_scalar(&self, n: usize) -> Region<'_> {
        self.scalar(self.slots + 1 + n)
    }
}
