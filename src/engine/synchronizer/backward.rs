//! The backward pass of a ticket.

use std::{sync::Arc, time::Instant};

use smallvec::SmallVec;

use super::{
    Assigned, BackwardReport, Failures, GradientSynchronizer, Outcome, Setbacks,
    blending::{Blending, OfOutputs},
};
use crate::{
    backend::{Executable, OwnMemory, RunContext, Shared, nothing},
    engine::{
        EngineError, Quota, Role,
        blend::{self, Factors},
        job::{Direction, Job, random_of},
        scratch::Scratch,
        target::{Target, there, words},
        ticket::{Ticket, TicketSeed, blended, mask},
    },
    failpoint::{self, Failpoint},
    tensor::{ALIGNMENT_BYTES, Shape},
    wire::{self, Blend, Block, Wants},
};

/// Gradients of x, in the order of the slots; the blend's own first.
#[derive(Default)]
struct OfInput {
    summands: SmallVec<[OwnMemory; 4]>,
    /// A single kernel has written straight to where it belongs.
    is_written: bool,
}

/// A backward pass as its jobs see it.
pub(super) struct Pass<'a> {
    pub(super) request: &'a wire::Backward,
    pub(super) arena: &'a Arc<Shared>,
    pub(super) deadline: Instant,
}

impl GradientSynchronizer {
    /// Runs the backward of a ticket and spends it.
    ///
    /// The kernels that ran forward run, with the α they had; where the layer's tickets keep no activations, their
    /// forward first. A seed that fails gives zeros and is named in the report. Gradients of x are added up in the
    /// order of the slots.
    ///
    /// Blocking: as [`forward`](Self::forward).
    ///
    /// # Errors
    /// [`EngineError::TicketUnknown`], [`EngineError::TicketSpent`]; [`EngineError::Request`] when the
    /// request does not fit the ticket, which then stays; [`EngineError::Host`] when the host fails and
    /// [`EngineError::Run`] when the blend's gradient does, after which gradients are undefined and the ticket is
    /// spent.
    pub fn backward(
        &mut self,
        request: &wire::Backward,
        arena: &Arc<Shared>,
        quota: &mut Quota,
    ) -> Result<BackwardReport, EngineError> {
        let known = self.tickets.get(&request.ticket).ok_or_else(|| quota.missing(request.ticket))?;
        check(request, known, self.seeds())?;
        parameter_blocks(request, known, arena, self.slots.len(), &mut self.blocks)?;
        failpoint::reached(Failpoint::BackwardFound);
        let mut ticket = self.tickets.remove(&request.ticket).expect("it was there a moment ago");
        failpoint::reached(Failpoint::BackwardSpent);
        self.reclaim();
        let pass = Pass { request, arena, deadline: self.deadline() };
        let live_mask = mask(&ticket.seeds);
        let failures = self.backward_of(&pass, &mut ticket);
        failpoint::reached(Failpoint::BackwardDone);
        self.recycle(ticket, quota);
        Ok(BackwardReport { live_mask, failures: failures? })
    }

    fn backward_of(&mut self, pass: &Pass<'_>, ticket: &mut Ticket) -> Result<Failures, EngineError> {
        let wire::Backward { grad_input, grad_parameters, grad_alphas, .. } = *pass.request;
        if let Some(block) = grad_alphas {
            // These are the host's to write.
            words(pass.arena, block).zero();
        }
        let (mut setbacks, mut of_input) = (Setbacks::new(), OfInput::default());
        if [grad_input, grad_parameters, grad_alphas].iter().any(Option::is_some) {
            let result = self
                .prepare_blocks(pass)
                .and_then(|()| self.run_again(pass, ticket, &mut setbacks))
                .and_then(|()| self.gradients(pass, ticket, &mut of_input, &mut setbacks))
                .and_then(|()| self.write_grad_input(pass, ticket, &of_input));
            // Whatever came of it: nothing that was handed over must come after the completion.
            let sent = self.send(pass.arena, [grad_input, grad_parameters]);
            let result = result.and(sent);
            of_input.summands.into_iter().for_each(|memory| self.pool.give(memory));
            result?;
        }
        Ok(self.settle(setbacks, |_| true))
    }

    /// Has the device see what the backward is given, and zeros where a gradient of parameters may not come.
    fn prepare_blocks(&mut self, pass: &Pass<'_>) -> Result<(), EngineError> {
        let wire::Backward { grad_output, straight, grad_parameters, .. } = *pass.request;
        self.bring(pass.arena, std::iter::once(grad_output).chain(straight))?;
        let Some(block) = grad_parameters else { return Ok(()) };
        let failed = EngineError::of_run("the gradients of parameters");
        self.queue.zero(there(pass.arena, block)).map_err(failed)
    }

    /// All gradients but the sum of those of x.
    fn gradients(
        &mut self,
        pass: &Pass<'_>,
        ticket: &mut Ticket,
        of_input: &mut OfInput,
        setbacks: &mut Setbacks,
    ) -> Result<(), EngineError> {
        let plan = ticket.blend.clone();
        let plan = plan.as_ref().and_then(|plan| plan.backward.as_deref());
        let mut of_outputs = self.of_outputs(pass, ticket, plan)?;
        of_input.summands.extend(of_outputs.input.take());
        if plan.is_some() {
            self.write_grad_alphas(pass, ticket)?;
            failpoint::reached(Failpoint::AlphasWritten);
        }
        if pass.request.grad_input.is_none() && pass.request.grad_parameters.is_none() {
            self.give_of_outputs(of_outputs);
            ticket.seeds.iter().for_each(|seed| self.end_row(usize::from(seed.seed.0), &seed.live));
            return Ok(());
        }
        self.prepare_backward(pass, ticket, of_outputs, of_input.summands.is_empty());
        self.run_jobs(pass.deadline);
        self.check_host(false)?;
        self.gather_backward(pass, ticket, of_input, setbacks);
        Ok(())
    }

    /// Runs the blend's gradient, if it has one.
    fn of_outputs(
        &mut self,
        pass: &Pass<'_>,
        ticket: &Ticket,
        plan: Option<&dyn Executable>,
    ) -> Result<OfOutputs, EngineError> {
        let mut of = OfOutputs::default();
        let Some(plan) = plan else { return Ok(of) };
        let (count, bytes) = (ticket.mix.factors.len(), pass.request.grad_output.bytes as usize);
        let wants_outputs = ticket.wants.input || ticket.wants.parameters;
        of.seeds = (0..count).map(|_| self.pool.take(if wants_outputs { bytes } else { 0 })).collect();
        if wants_outputs && self.host.is_some() {
            of.host = Some(self.pool.take(bytes));
        }
        if self.blend == Blend::Multiply && count > 0 && ticket.wants.input {
            of.input = Some(self.pool.take(bytes));
        }
        let (x, saved) = (there(pass.arena, ticket.input), ticket.blend_saved.region());
        let blending = Blending { ran: &ticket.seeds, mix: &ticket.mix, x, saved };
        let grad_output = there(pass.arena, pass.request.grad_output);
        let result = self.blender.run_backward(&mut *self.queue, plan, &blending, grad_output, &of);
        if result.is_err() || pass.request.grad_input.is_none() {
            of.input.take().into_iter().for_each(|memory| self.pool.give(memory));
        }
        match result {
            Ok(()) => Ok(of),
            Err(error) => {
                self.give_of_outputs(of);
                Err(error)
            }
        }
    }

    fn give_of_outputs(&mut self, of: OfOutputs) {
        of.seeds.into_iter().chain(of.host).chain(of.input).for_each(|memory| self.pool.give(memory));
    }

    fn write_grad_alphas(&mut self, pass: &Pass<'_>, ticket: &Ticket) -> Result<(), EngineError> {
        let Some(block) = pass.request.grad_alphas else { return Ok(()) };
        let alphas: Factors = blended(&ticket.seeds).map(|seed| seed.alpha).collect();
        let (of_factors, of_rest) = self.blender.of_factors(&mut *self.queue, alphas.len())?;
        let gradients = blend::alpha_gradients(self.blend, &alphas, &of_factors, of_rest);
        let region = words(pass.arena, block);
        for (seed, gradient) in blended(&ticket.seeds).zip(gradients).filter(|(seed, _)| !seed.is_lost) {
            if let Some(part) = region.part(4 * usize::from(seed.seed.0), 4) {
                part.write(&gradient.to_le_bytes());
            }
        }
        Ok(())
    }

    /// Makes a job for each slot that has a gradient to give. `is_first` says that none of x is there yet.
    fn prepare_backward(
        &mut self,
        pass: &Pass<'_>,
        ticket: &mut Ticket,
        of_outputs: OfOutputs,
        is_first: bool,
    ) {
        let mut spread = self.spread(ticket.seeds.iter().map(|seed| &*seed.plans));
        let is_alone = is_first && ticket.seeds.iter().filter(|seed| seed.gives_input()).count() == 1;
        // Its output is the layer's, and so is the gradient of it.
        let is_whole = ticket.blend.is_none();
        let (mut of_seeds, mut of_host) = (of_outputs.seeds.into_iter(), of_outputs.host);
        for (place, seed) in ticket.seeds.iter_mut().enumerate() {
            let grad_output = match seed.role {
                Role::Blended if is_whole => Target::Arena(pass.request.grad_output),
                Role::Blended => of_seeds.next().map_or(Target::Nowhere, Target::Own),
                Role::Host => of_host.take().map_or(Target::Nowhere, Target::Own),
                // As if α were 1: the gradient of the layer's output is that of the seed's.
                Role::Straight => Target::Arena(pass.request.straight.unwrap_or(pass.request.grad_output)),
            };
            let Some(backward) = seed.plans.backward.as_ref().filter(|_| !seed.is_lost) else {
                self.give_target(grad_output);
                continue;
            };
            let slot = usize::from(seed.seed.0);
            let (scratch, can_be_sent) = self.scratch_for(seed);
            let is_sent_out = spread.sends(can_be_sent, &seed.plans);
            let grad_input = match pass.request.grad_input {
                _ if !backward.gives_input => Target::Nowhere,
                Some(block) if is_alone && !is_sent_out => Target::Arena(block),
                _ => Target::Own(self.pool.take(ticket.input.bytes as usize)),
            };
            let grad_parameters = match self.blocks.get(place).copied().flatten() {
                // Not announced: its plans have no such gradients.
                _ if !ticket.wants.parameters => Target::Nowhere,
                _ if seed.live.kernel().parameter_layout().total_bytes() == 0 => Target::Nowhere,
                Some(block) if !is_sent_out => Target::Arena(block),
                _ => Target::Own(self.pool.take(seed.live.kernel().parameter_layout().total_bytes())),
            };
            let job = Job {
                place,
                role: seed.role,
                alpha: seed.alpha,
                live: seed.live.clone(),
                plans: seed.plans.clone(),
                arena: pass.arena.clone(),
                input: ticket.input,
                saved: std::mem::replace(&mut seed.saved, nothing()),
                buffers: std::mem::replace(&mut seed.buffers, nothing()),
                scratch,
                direction: Direction::Backward { grad_output, grad_input, grad_parameters },
                unordered: None,
                measures: ticket.sampled.is_some() && pass.request.grad_parameters.is_some(),
                config: self.config.clone(),
                context: RunContext {
                    seed: random_of(ticket.rng_seed, slot),
                    deadline: Some(pass.deadline),
                    threads: spread.threads,
                },
            };
            self.jobs.push(Assigned { job, slot, is_sent_out });
        }
    }

    /// Memory to run a ticket's kernel on, and whether a thread of its own can do it.
    ///
    /// A kernel that has left its place runs on memory of its own, on the thread that holds the request.
    pub(super) fn scratch_for(&mut self, seed: &TicketSeed) -> (Box<Scratch>, bool) {
        let attached = self.slots[usize::from(seed.seed.0)].attached.as_mut();
        let current = attached.filter(|attached| Arc::ptr_eq(&attached.live, &seed.live));
        let can_be_sent = current.as_ref().is_some_and(|attached| attached.executor.is_some());
        let scratch = current.and_then(|attached| attached.scratch.take());
        let mut scratch = scratch.unwrap_or_else(|| Box::new(Scratch::new(&*self.backend)));
        scratch.fit(&*self.backend, &seed.live, &seed.plans);
        (scratch, can_be_sent)
    }

    fn gather_backward(
        &mut self,
        pass: &Pass<'_>,
        ticket: &Ticket,
        of_input: &mut OfInput,
        setbacks: &mut Setbacks,
    ) {
        let sampled = ticket.sampled;
        let mut outcomes = std::mem::take(&mut self.outcomes);
        for Outcome { slot, place, back } in outcomes.drain(..) {
            let Some((done, _)) = back else {
                if let Some(seed) = ticket.seeds.get(place) {
                    let error = Self::late(&seed.live);
                    self.witness_late(pass, (ticket.input, ticket.rng_seed), seed, &error, false);
                    setbacks.push((slot, seed.live.clone(), error));
                }
                continue;
            };
            let mut job = done.job;
            let Direction::Backward { grad_input, grad_parameters, .. } = &mut job.direction else {
                continue;
            };
            let block = self.blocks.get(place).copied().flatten();
            let to = block.map(|block| there(pass.arena, block));
            let given = match (&done.result, &*grad_parameters, to) {
                (Ok(()), Target::Own(memory), Some(to)) => {
                    memory.region().part(0, to.len_bytes()).map_or(Ok(()), |part| self.queue.copy(part, to))
                }
                (Err(_), Target::Arena(_), Some(to)) => self.queue.zero(to),
                _ => Ok(()),
            };
            match done.result.and(given.map_err(|error| job.live.failed(error))) {
                Ok(()) => {
                    self.end_row(slot, &job.live);
                    if let Some(step) = sampled {
                        self.slots[slot].counters.note_gradient(step, done.norm);
                    }
                    match std::mem::replace(grad_input, Target::Nowhere) {
                        Target::Own(memory) if pass.request.grad_input.is_some() => {
                            of_input.summands.push(memory);
                        }
                        Target::Arena(_) => of_input.is_written = true,
                        target => *grad_input = target,
                    }
                }
                Err(error) => {
                    self.witness_job(slot, &mut job, &error, done.timing, false);
                    setbacks.push((slot, job.live.clone(), error));
                }
            }
            self.give_job(slot, job);
            failpoint::reached(Failpoint::GradientHalf);
        }
        self.outcomes = outcomes;
        failpoint::reached(Failpoint::GradientWritten);
    }

    /// Adds the gradients of x up where they belong.
    fn write_grad_input(
        &mut self,
        pass: &Pass<'_>,
        ticket: &Ticket,
        of_input: &OfInput,
    ) -> Result<(), EngineError> {
        let Some(block) = pass.request.grad_input else { return Ok(()) };
        let to = there(pass.arena, block);
        let failed = EngineError::of_run("the gradient of x");
        match of_input.summands.as_slice() {
            [] if of_input.is_written => Ok(()),
            [] => self.queue.zero(to).map_err(failed),
            [one] => one
                .region()
                .part(0, to.len_bytes())
                .map_or(Ok(()), |part| self.queue.copy(part, to).map_err(failed)),
            several => {
                let of = (&ticket.input_shape, ticket.dtype);
                self.blender.run_sum(&mut *self.queue, several, of, to)
            }
        }
    }
}

/// Notes where each gradient of parameters belongs, in the order of the ticket's seeds: one after the other, or where the
/// request says for each slot.
fn parameter_blocks(
    request: &wire::Backward,
    ticket: &Ticket,
    arena: &Shared,
    slots: usize,
    blocks: &mut Vec<Option<Block>>,
) -> Result<(), EngineError> {
    blocks.clear();
    let refuse = |reason: String| Err(EngineError::Request { reason });
    let Some(whole) = request.grad_parameters else {
        blocks.resize(ticket.seeds.len(), None);
        return Ok(());
    };
    if let Some(places) = request.places
        && places.bytes != 8 * slots as u64
    {
        return refuse(format!("places take {} bytes, the block has {}", 8 * slots, places.bytes));
    }
    let mut end = 0;
    for TicketSeed { seed, live, .. } in &ticket.seeds {
        let bytes = live.kernel().parameter_layout().total_bytes() as u64;
        let begin = match request.places {
            None => end,
            Some(places) => {
                let mut word = [0; 8];
                let part = words(arena, places).part(8 * usize::from(seed.0), 8);
                let is_read = part.is_some_and(|part| part.read(&mut word));
                debug_assert!(is_read, "its length was looked at");
                u64::from_le_bytes(word)
            }
        };
        if begin == u64::MAX {
            blocks.push(None);
            continue;
        }
        let fits = begin.checked_add(bytes).is_some_and(|end| end <= whole.bytes);
        if begin < end || !begin.is_multiple_of(ALIGNMENT_BYTES as u64) || !fits {
            return refuse(format!(
                "the gradients of seed {seed} take {bytes} bytes and were to begin at {begin} of {}, where {end} are taken",
                whole.bytes
            ));
        }
        end = begin + bytes;
        blocks.push(Some(Block { offset: whole.offset + begin, bytes }));
    }
    Ok(())
}

/// Whether a request fits its ticket.
fn check(request: &wire::Backward, ticket: &Ticket, seeds: usize) -> Result<(), EngineError> {
    let bytes = |shape: &Shape| shape.elements().saturating_mul(ticket.dtype.size_bytes()) as u64;
    let Wants { input, parameters, alphas } = ticket.wants;
    // With places for each it may be larger.
    let followed = request.places.and(request.grad_parameters).map(|block| block.bytes);
    let parameter_bytes = followed.unwrap_or(ticket.parameter_bytes() as u64);
    let wanted = [
        ("grad_input", request.grad_input, input, bytes(&ticket.input_shape)),
        ("grad_parameters", request.grad_parameters, parameters, parameter_bytes),
        ("grad_alphas", request.grad_alphas, alphas, 4 * seeds as u64),
        ("grad_output", Some(request.grad_output), true, bytes(&ticket.output_shape)),
        ("straight", request.straight, true, bytes(&ticket.output_shape)),
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
        if name.starts_with("grad_") && name != "grad_output" && block.overlaps(&ticket.input) {
            let reason = format!("{name} overlaps the input of ticket {}", request.ticket);
            return Err(EngineError::Request { reason });
        }
    }
    Ok(())
}
