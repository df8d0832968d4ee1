//! The backward pass of a ticket.

use std::{sync::Arc, time::Instant};

use smallvec::SmallVec;

use super::{Assigned, BackwardReport, Failures, GradientSynchronizer, Outcome, SumKey, forward::Regions};
use crate::{
    backend::{Bindings, Executable, HostMemory, Memory, RunContext},
    engine::{
        EngineError, Quota,
        blend::{self, Factors},
        job::{Direction, EMPTY, Job, Scratch, Target, within},
        ticket::{Ticket, TicketSeed},
    },
    tensor::{DType, Shape},
    wire::{self, Blend, Block, Wants},
};

/// Gradients of x, in seed order; the blend's own first.
#[derive(Default)]
struct OfInput {
    summands: SmallVec<[HostMemory; 4]>,
    /// A single seed has written straight to where it belongs.
    is_written: bool,
}

/// A backward pass as its jobs see it.
struct Pass<'a> {
    request: &'a wire::Backward,
    arena: &'a Arc<dyn Memory>,
    deadline: Instant,
}

impl GradientSynchronizer {
    /// Runs the backward of a ticket and spends it.
    ///
    /// The kernels that ran forward run, with the α they had. A seed whose backward fails gives zeros and is
    /// named in the report. Gradients of x are added up in seed order.
    ///
    /// Blocking: as [`forward`](Self::forward).
    ///
    /// # Errors
    /// [`EngineError::TicketUnknown`], [`EngineError::TicketSpent`]; [`EngineError::Request`] when the
    /// request does not fit the ticket, which then stays; [`EngineError::Run`] when the blend's gradient
    /// fails, after which gradients are undefined and the ticket is spent.
    pub fn backward(
        &mut self,
        request: &wire::Backward,
        arena: &Arc<dyn Memory>,
        quota: &mut Quota,
    ) -> Result<BackwardReport, EngineError> {
        let known = self.tickets.get(&request.ticket).ok_or_else(|| quota.missing(request.ticket))?;
        check(request, known, self.slots.len())?;
        let mut ticket = self.tickets.remove(&request.ticket).expect("it was there a moment ago");
        self.reclaim();
        let pass = Pass { request, arena, deadline: self.deadline() };
        let live_mask = ticket.live_mask();
        let failures = self.backward_of(&pass, &mut ticket);
        self.recycle(ticket, quota);
        Ok(BackwardReport { live_mask, failures: failures? })
    }

    fn backward_of(&mut self, pass: &Pass<'_>, ticket: &mut Ticket) -> Result<Failures, EngineError> {
        let mut failures = Failures::new();
        let request = pass.request;
        for block in [request.grad_parameters, request.grad_alphas].into_iter().flatten() {
            within(&**pass.arena, block).zero();
        }
        let mut of_input = OfInput::default();
        if let Some(plan) = ticket.blend.backward.clone() {
            let grad_outputs = self.run_blend_backward(pass, ticket, &*plan, &mut of_input)?;
            if request.grad_alphas.is_some() {
                self.write_grad_alphas(pass, ticket);
            }
            if request.grad_input.is_some() || request.grad_parameters.is_some() {
                self.prepare_backward(pass, ticket, grad_outputs);
                self.run_jobs(pass.deadline);
                self.gather_backward(pass, &mut of_input, &mut failures);
            } else {
                grad_outputs.into_iter().for_each(|memory| self.pool.give(memory));
            }
        }
        let result = self.write_grad_input(pass, ticket, &of_input);
        of_input.summands.into_iter().for_each(|memory| self.pool.give(memory));
        result.map(|()| failures)
    }

    /// From the gradient of the blend to those of the seeds' outputs, of the factors, and of x where the
    /// blend itself reads it.
    fn run_blend_backward(
        &mut self,
        pass: &Pass<'_>,
        ticket: &Ticket,
        plan: &dyn Executable,
        of_input: &mut OfInput,
    ) -> Result<SmallVec<[HostMemory; 4]>, EngineError> {
        let count = ticket.seeds.len();
        let output_bytes = pass.request.grad_output.bytes as usize;
        let wants_outputs = ticket.wants.input || ticket.wants.parameters;
        let bytes = if wants_outputs { output_bytes } else { 0 };
        let grad_outputs: SmallVec<[HostMemory; 4]> = (0..count).map(|_| self.pool.take(bytes)).collect();
        let reads_input = self.blend == Blend::Multiply && ticket.wants.input;
        let of_x = self.pool.take(if reads_input { output_bytes } else { 0 });

        self.write_factors(&ticket.factors);
        let mut inputs: Regions<'_> = ticket.seeds.iter().map(|seed| seed.output.region()).collect();
        inputs.extend((0..count).map(|n| self.scalar(n)));
        inputs.push(within(&**pass.arena, ticket.input));
        let mut grad_inputs: Regions<'_> = grad_outputs.iter().map(|memory| memory.region()).collect();
        grad_inputs.extend((0..count).map(|n| self.scalar(self.slots.len() + n)));
        grad_inputs.push(of_x.region());
        let bindings = Bindings {
            inputs: &inputs,
            grad_outputs: &[within(&**pass.arena, pass.request.grad_output)],
            grad_inputs: &grad_inputs,
            saved: ticket.blend_saved.region(),
            workspace: self.blend_workspace.region(),
            ..EMPTY
        };
        let context = RunContext { seed: 0, deadline: None, threads: self.threads(1) };
        let result = plan.run(&bindings, &context);
        drop((inputs, grad_inputs));
        if reads_input && pass.request.grad_input.is_some() && result.is_ok() {
            of_input.summands.push(of_x);
        } else {
            self.pool.give(of_x);
        }
        if let Err(source) = result {
            grad_outputs.into_iter().for_each(|memory| self.pool.give(memory));
            return Err(EngineError::Run { what: "the blend's gradient".to_owned(), source });
        }
        Ok(grad_outputs)
    }

    fn write_grad_alphas(&self, pass: &Pass<'_>, ticket: &Ticket) {
        let Some(block) = pass.request.grad_alphas else { return };
        let of_factors: Factors = (0..ticket.seeds.len())
            .map(|n| {
                let mut bytes = [0; 4];
                self.scalar(self.slots.len() + n).read(&mut bytes);
                f32::from_le_bytes(bytes)
            })
            .collect();
        let alphas: Factors = ticket.seeds.iter().map(|seed| seed.alpha).collect();
        let gradients = blend::alpha_gradients(self.blend, &alphas, &of_factors);
        let region = within(&**pass.arena, block);
        for (seed, gradient) in ticket.seeds.iter().zip(gradients) {
            if let Some(part) = region.part(4 * usize::from(seed.seed.0), 4) {
                part.write(&gradient.to_le_bytes());
            }
        }
    }

    /// Makes a job for each seed that has a gradient to give.
    fn prepare_backward(
        &mut self,
        pass: &Pass<'_>,
        ticket: &mut Ticket,
        grad_outputs: SmallVec<[HostMemory; 4]>,
    ) {
        let heavy = self.heavy(ticket.seeds.iter().map(|seed| &*seed.plans));
        let mut left_to_send = heavy.saturating_sub(1);
        let context =
            RunContext { seed: ticket.rng_seed, deadline: Some(pass.deadline), threads: self.threads(heavy) };
        let is_alone = ticket.seeds.len() == 1 && self.blend != Blend::Multiply;
        let mut parameters_offset = 0;
        for (place, (seed, grad_output)) in ticket.seeds.iter_mut().zip(grad_outputs).enumerate() {
            let parameter_bytes = seed.live.kernel().parameter_layout().total_bytes();
            let block = pass.request.grad_parameters.map(|whole| Block {
                offset: whole.offset + parameters_offset as u64,
                bytes: parameter_bytes as u64,
            });
            parameters_offset += parameter_bytes;
            let Some(backward) = &seed.plans.backward else {
                self.pool.give(grad_output);
                continue;
            };
            let slot = usize::from(seed.seed.0);
            let attached = self.slots[slot].attached.as_mut();
            let current = attached.filter(|attached| Arc::ptr_eq(&attached.live, &seed.live));
            let can_be_sent = current.as_ref().is_some_and(|attached| attached.executor.is_some());
            // A kernel that has left its place runs its last backward on scratch memory of its own.
            let mut scratch = current
                .and_then(|attached| attached.scratch.take())
                .unwrap_or_else(|| Box::new(Scratch::new()));
            scratch.fit(&seed.live, &seed.plans);
            let is_sent_out = can_be_sent && left_to_send > 0 && self.is_heavy(&seed.plans);
            left_to_send -= usize::from(is_sent_out);
            let input_bytes = ticket.input.bytes as usize;
            let grad_input = match pass.request.grad_input {
                _ if !backward.gives_input => Target::Nowhere,
                Some(block) if is_alone && !is_sent_out => Target::Arena(block),
                _ => Target::Own(self.pool.take(input_bytes)),
            };
            let grad_parameters = match block {
                _ if parameter_bytes == 0 => Target::Nowhere,
                Some(block) if !is_sent_out => Target::Arena(block),
                _ => Target::Own(self.pool.take(parameter_bytes)),
            };
            let saved = std::mem::replace(&mut seed.saved, HostMemory::new(0));
            let job = Job {
                place,
                live: seed.live.clone(),
                plans: seed.plans.clone(),
                arena: pass.arena.clone(),
                input: ticket.input,
                saved,
                scratch,
                direction: Direction::Backward { grad_output, grad_input, grad_parameters },
                config: self.config.clone(),
                context,
            };
            self.jobs.push(Assigned { job, slot, is_sent_out });
        }
        self.parameter_blocks(pass, ticket);
    }

    /// Notes where each place's gradients of parameters belong.
    fn parameter_blocks(&mut self, pass: &Pass<'_>, ticket: &Ticket) {
        self.blocks.clear();
        let mut offset = pass.request.grad_parameters.map_or(0, |whole| whole.offset);
        for TicketSeed { live, .. } in &ticket.seeds {
            let bytes = live.kernel().parameter_layout().total_bytes() as u64;
            self.blocks.push(pass.request.grad_parameters.map(|_| Block { offset, bytes }));
            offset += bytes;
        }
    }

    fn gather_backward(&mut self, pass: &Pass<'_>, of_input: &mut OfInput, failures: &mut Failures) {
        let mut outcomes = std::mem::take(&mut self.outcomes);
        for Outcome { slot, place, back } in outcomes.drain(..) {
            let Some((done, _)) = back else {
                self.late(slot, failures);
                continue;
            };
            let Job { live, saved, scratch, direction, .. } = done.job;
            self.take_back_scratch(slot, &live, scratch);
            self.pool.give(saved);
            let Direction::Backward { grad_output, grad_input, grad_parameters } = direction else {
                continue;
            };
            self.pool.give(grad_output);
            let block = self.blocks.get(place).copied().flatten();
            let to = block.map(|block| within(&**pass.arena, block));
            match (&done.result, &grad_parameters, to) {
                (Ok(()), Target::Own(memory), Some(to)) => {
                    if let Some(part) = memory.region().part(0, to.len_bytes()) {
                        part.copy_to(to);
                    }
                }
                (Err(_), Target::Arena(_), Some(to)) => to.zero(),
                _ => {}
            }
            self.give_target(grad_parameters);
            match (done.result, grad_input) {
                (Ok(()), target) => {
                    self.slots[slot].counters.end_row();
                    match target {
                        Target::Own(memory) if pass.request.grad_input.is_some() => {
                            of_input.summands.push(memory)
                        }
                        Target::Arena(_) => of_input.is_written = true,
                        target => self.give_target(target),
                    }
                }
                (Err(error), target) => {
                    self.give_target(target);
                    self.fail(slot, &live, error, failures);
                }
            }
        }
        self.outcomes = outcomes;
    }

    /// Adds the gradients of x up where they belong.
    fn write_grad_input(
        &mut self,
        pass: &Pass<'_>,
        ticket: &Ticket,
        of_input: &OfInput,
    ) -> Result<(), EngineError> {
        let Some(block) = pass.request.grad_input else { return Ok(()) };
        let to = within(&**pass.arena, block);
        match of_input.summands.as_slice() {
            [] if of_input.is_written => {}
            [] => to.zero(),
            [one] => {
                if let Some(part) = one.region().part(0, to.len_bytes()) {
                    part.copy_to(to);
                }
            }
            several => {
                let plan = self.sum(several.len(), &ticket.input_shape, ticket.dtype)?;
                let inputs: Regions<'_> = several.iter().map(|memory| memory.region()).collect();
                let workspace = self.blend_workspace.region();
                let bindings = Bindings { inputs: &inputs, outputs: &[to], workspace, ..EMPTY };
                let context = RunContext { seed: 0, deadline: None, threads: self.threads(1) };
                let failed = |source| EngineError::Run { what: "the sum of gradients".to_owned(), source };
                plan.run(&bindings, &context).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// The plan of a sum: most of the time remembered.
    fn sum(&mut self, count: usize, shape: &Shape, dtype: DType) -> Result<Arc<dyn Executable>, EngineError> {
        let is_it = |known: &SumKey| known.0 == count && known.1 == *shape && known.2 == dtype;
        if let Some((_, plan)) = self.sums.iter().find(|(known, _)| is_it(known)) {
            return Ok(plan.clone());
        }
        let plan = blend::sum_plan(count, shape, dtype, &*self.backend, &self.config)?;
        self.fit_workspace(plan.needs().workspace_bytes);
        if self.sums.len() == super::REMEMBERED_BLENDS {
            self.sums.remove(0);
        }
        self.sums.push(((count, shape.clone(), dtype), plan.clone()));
        Ok(plan)
    }
}

/// Whether a request fits its ticket.
fn check(request: &wire::Backward, ticket: &Ticket, seeds: usize) -> Result<(), EngineError> {
    let bytes = |shape: &Shape| shape.elements().saturating_mul(ticket.dtype.size_bytes()) as u64;
    let Wants { input, parameters, alphas } = ticket.wants;
    let wanted = [
        ("grad_input", request.grad_input, input, bytes(&ticket.input_shape)),
        ("grad_parameters", request.grad_parameters, parameters, ticket.parameter_bytes() as u64),
        ("grad_alphas", request.grad_alphas, alphas, 4 * seeds as u64),
        ("grad_output", Some(request.grad_output), true, bytes(&ticket.output_shape)),
    ];
    for (name, block, announced, needed) in wanted {
        let Some(block) = block else { continue };
        if !announced {
            let reason = format!("{name} was not announced when ticket {} was taken", request.ticket);
            return Err(EngineError::Request { reason });
        }
        if block.bytes != needed {
            let reason = format!("{name} takes {needed} bytes, the block has {}", block.bytes);
            return Err(EngineError::Request { reason });
        }
        // The ticket's x is read while gradients are written.
        if name != "grad_output" && block.overlaps(&ticket.input) {
            let reason = format!("{name} overlaps the input of ticket {}", request.ticket);
            return Err(EngineError::Request { reason });
        }
    }
    Ok(())
}
