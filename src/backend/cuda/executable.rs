//! Runs a program: launch after launch on one stream or as one replay, nothing allocated on the way.

use std::{sync::Arc, time::Instant};

use super::{
    device::Device,
    driver::{MOST_ALIGNMENT_BYTES, Stream},
    lower::{Planned, Program},
    memory::CudaMemory,
    pass::{Arguments, Pass},
    queue::CudaQueue,
    replay::Replays,
};
use crate::backend::{
    Bindings, BuildError, Executable, MemoryNeeds, Queue, RunContext, RunError,
    plan::{Bounds, Plan, block},
};

/// How many launches are worth a replay.
const LEAST_LAUNCHES: usize = 2;

/// A plan on a device.
#[derive(Debug)]
pub(super) struct CudaExecutable {
    program: Program,
    bounds: Bounds,
    needs: MemoryNeeds,
    replays: Replays,
    routines: Planned,
    constants: Option<CudaMemory>,
    device: Arc<Device>,
}

impl CudaExecutable {
    /// Puts a plan on a device. Blocking until its constants are there.
    pub(super) fn new(
        plan: Plan,
        program: Program,
        routines: Planned,
        device: &Arc<Device>,
    ) -> Result<Self, BuildError> {
        let constants = match &*plan.constants {
            [] => None,
            bytes => Some(CudaMemory::of(device, bytes).map_err(|error| device.build_error(error))?),
        };
        let (mut bounds, replays) = (Bounds::of(&plan), Replays::new(device));
        // As their libraries were promised.
        program.homes_of_routines().for_each(|home| bounds.align(home, MOST_ALIGNMENT_BYTES));
        let (needs, device) = (plan.needs, Arc::clone(device));
        Ok(Self { program, bounds, needs, replays, routines, constants, device })
    }

    /// Hands the launches of a pass over one by one.
    ///
    /// # Safety
    /// As for [`Driver::launch`](super::driver::Driver::launch) with each of them.
    unsafe fn launch_all(
        &self,
        pass: &Pass<'_>,
        deadline: Option<Instant>,
        stream: Stream,
    ) -> Result<(), RunError> {
        let mut arguments = Arguments::default();
        for nth in 0..pass.len() {
            check_time(deadline, nth, pass)?;
            // SAFETY: as the caller promises.
            unsafe { self.device.driver().launch(&pass.launch(nth, &mut arguments), stream) }
                .map_err(|error| self.device.run_error(error))?;
        }
        Ok(())
    }
}

fn check_time(deadline: Option<Instant>, done: usize, pass: &Pass<'_>) -> Result<(), RunError> {
    if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
        return Err(RunError::Timeout { done, total: pass.len() });
    }
    Ok(())
}

impl Executable for CudaExecutable {
    fn needs(&self) -> &MemoryNeeds {
        &self.needs
    }

    fn held_bytes(&self) -> usize {
        size_of::<Self>()
            + self.program.held_bytes()
            + self.bounds.held_bytes()
            + self.replays.held_bytes()
            + self.routines.held_bytes()
            + size_of_val(self.needs.saved.slots())
            + self.constants.as_ref().map_or(0, CudaMemory::len_bytes)
    }

    fn run(
        &self,
        queue: &mut dyn Queue,
        bindings: &Bindings<'_>,
        context: &RunContext,
    ) -> Result<(), RunError> {
        let queue = CudaQueue::of(&self.device, queue)?;
        self.bounds.check(self.device.name(), false, |home| block(bindings, home))?;
        let pass = Pass {
            program: &self.program,
            bindings,
            constants: self.constants.as_ref().map_or(0, CudaMemory::address),
            seed: context.seed,
        };
        if pass.len() == 0 {
            return Ok(());
        }
        check_time(context.deadline, 0, &pass)?;
        let stream = queue.hand_over();
        // SAFETY: the records are those that lowering made for their kernels, whose modules the device keeps loaded.
        // Every address but those of empty tensors, which kernels do not follow, has been held against its region or
        // is that of the constants; memory of the device, these included, is given back only once nothing uses it. That
        // nobody else uses the regions meanwhile, but in an order that queues assure, is what callers promise.
        unsafe {
            let is_worth_it = self.device.has_graphs() && pass.len() >= LEAST_LAUNCHES;
            if is_worth_it && self.replays.run(&pass, stream).map_err(|error| self.device.run_error(error))? {
                return Ok(());
            }
            self.launch_all(&pass, context.deadline, stream)
        }
    }
}
