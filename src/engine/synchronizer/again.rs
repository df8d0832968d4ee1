//! Forward passes that are run again for their backward, in layers whose tickets keep no activations.
//!
//! The same plans run with the same dropout masks, on buffers as the forward found them; what it updated is not
//! updated again, and seeds that failed in it stay out. As long as nobody has changed the parameters between the two,
//! the gradients are those of a ticket that kept everything, bit by bit.

use super::{Assigned, GradientSynchronizer, Outcome, Setbacks, backward::Pass, blending::Blending};
use crate::{
    backend::{OwnMemory, RunContext, nothing},
    engine::{
        EngineError, Role,
        job::{Direction, Job, random_of},
        target::{Target, there},
        ticket::{Ticket, TicketSeed, blended},
    },
    failpoint::{self, Failpoint},
};

impl GradientSynchronizer {
    /// Takes from a ticket what running its forward again gives back.
    pub(super) fn strip(&mut self, ticket: &mut Ticket) {
        for seed in &mut ticket.seeds {
            self.pool.give(take(&mut seed.output));
            self.pool.give(take(&mut seed.saved));
        }
        self.pool.give(take(&mut ticket.blend_saved));
    }

    /// Gives a ticket that was stripped back what its backward reads.
    ///
    /// A seed that fails now is lost: it gives zeros, and the others get the gradients that they would have without
    /// it in the blend.
    ///
    /// # Errors
    /// [`EngineError::Host`], [`EngineError::Run`] when the blend fails.
    pub(super) fn run_again(
        &mut self,
        pass: &Pass<'_>,
        ticket: &mut Ticket,
        setbacks: &mut Setbacks,
    ) -> Result<(), EngineError> {
        if !self.recompute {
            return Ok(());
        }
        let mut spread = self.spread(ticket.seeds.iter().map(|seed| &*seed.plans));
        let (input, output_bytes) = (ticket.input, pass.request.grad_output.bytes as usize);
        for (place, seed) in ticket.seeds.iter_mut().enumerate() {
            let slot = usize::from(seed.seed.0);
            let (scratch, can_be_sent) = self.scratch_for(seed);
            let is_sent_out = spread.sends(can_be_sent, &seed.plans);
            let job = Job {
                place,
                role: seed.role,
                alpha: seed.alpha,
                live: seed.live.clone(),
                plans: seed.plans.clone(),
                arena: pass.arena.clone(),
                input,
                saved: self.pool.take(seed.plans.saved_bytes()),
                buffers: take(&mut seed.buffers),
                scratch,
                direction: Direction::Forward { output: Target::Own(self.pool.take(output_bytes)) },
                unordered: None,
                measures: false,
                config: self.config.clone(),
                context: RunContext {
                    seed: random_of(ticket.rng_seed, slot),
                    deadline: Some(pass.deadline),
                    threads: spread.threads,
                },
            };
            self.jobs.push(Assigned { job, slot, is_sent_out });
        }
        self.run_jobs(pass.deadline);
        self.check_host(true)?;
        self.gather_again(pass, ticket, output_bytes, setbacks)?;
        self.blend_again(pass, ticket, output_bytes)?;
        failpoint::reached(Failpoint::RunAgain);
        Ok(())
    }

    fn gather_again(
        &mut self,
        pass: &Pass<'_>,
        ticket: &mut Ticket,
        output_bytes: usize,
        setbacks: &mut Setbacks,
    ) -> Result<(), EngineError> {
        let mut zeroed = Ok(());
        let (input, rng_seed, blends) = (ticket.input, ticket.rng_seed, ticket.blend.is_some());
        let keeps_output = |seed: &TicketSeed| blends && seed.role != Role::Straight;
        let mut outcomes = std::mem::take(&mut self.outcomes);
        for Outcome { slot, place, back } in outcomes.drain(..) {
            let Some(seed) = ticket.seeds.get_mut(place) else { continue };
            let error = match back {
                Some((done, _)) if done.result.is_ok() => {
                    let Job { live, saved, buffers, scratch, direction, .. } = done.job;
                    self.take_back_scratch(slot, &live, scratch);
                    (seed.saved, seed.buffers) = (saved, buffers);
                    match direction {
                        Direction::Forward { output: Target::Own(output) } if keeps_output(seed) => {
                            seed.output = output;
                        }
                        Direction::Forward { output } => self.give_target(output),
                        Direction::Backward { .. } => {}
                    }
                    continue;
                }
                Some((mut done, _)) => {
                    let error = done.result.err().unwrap_or_else(|| Self::late(&seed.live));
                    self.witness_job(slot, &mut done.job, &error, done.timing, true);
                    self.give_job(slot, done.job);
                    error
                }
                None => {
                    let error = Self::late(&seed.live);
                    self.witness_late(pass, (input, rng_seed), seed, &error, true);
                    error
                }
            };
            setbacks.push((slot, seed.live.clone(), error));
            seed.is_lost = true;
            if blends && seed.role == Role::Blended {
                seed.output = self.pool.take(output_bytes);
                let result = self.queue.zero(seed.output.region());
                zeroed = zeroed.and(result.map_err(|error| seed.live.failed(error)));
            }
        }
        self.outcomes = outcomes;
        for (factor, seed) in ticket.mix.factors.iter_mut().zip(blended(&ticket.seeds)) {
            if seed.is_lost {
                *factor = 0.0;
            }
        }
        zeroed
    }

    /// Runs the blend again for what its gradient reads, into memory that nobody looks at.
    fn blend_again(
        &mut self,
        pass: &Pass<'_>,
        ticket: &mut Ticket,
        output_bytes: usize,
    ) -> Result<(), EngineError> {
        let Some(blend) = ticket.blend.clone() else { return Ok(()) };
        let bytes = blend.forward.needs().saved.total_bytes();
        if bytes == 0 {
            return Ok(());
        }
        ticket.blend_saved = self.pool.take(bytes);
        let output = self.pool.take(output_bytes);
        let Ticket { seeds, mix, blend_saved, .. } = &*ticket;
        let x = there(pass.arena, ticket.input);
        let blending = Blending { ran: seeds, mix, x, saved: blend_saved.region() };
        let result = self.blender.run(&mut *self.queue, &blend, &blending, output.region());
        self.pool.give(output);
        result
    }
}

fn take(memory: &mut OwnMemory) -> OwnMemory {
    std::mem::replace(memory, nothing())
}
