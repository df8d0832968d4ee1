//! The forward pass of a layer.

use std::{sync::Arc, time::Instant};

use smallvec::SmallVec;

use super::{
    ForwardReport, GradientSynchronizer, Outcome, Setbacks,
    blending::Blending,
    parts::{Given, Keys},
};
use crate::{
    backend::{HostMemory, Memory},
    engine::{
        EngineError, PlanKey, Quota, Role,
        blend::{self, BlendKey, BlendPlan, Factors, Mix},
        job::{Direction, Job, within},
        ticket::{Ticket, TicketSeed, blended, mask},
    },
    id::{SeedIndex, TicketId},
    wire::{self, Blend},
};

type Ran = SmallVec<[TicketSeed; 4]>;

/// A pass as its jobs see it.
pub(super) struct Pass<'a> {
    pub(super) request: &'a wire::Forward,
    pub(super) arena: &'a Arc<dyn Memory>,
    pub(super) deadline: Instant,
    pub(super) given: Given,
    keys: Keys,
}

impl Pass<'_> {
    /// What the plans of a slot in this role depend on.
    pub(super) fn key(&self, role: Role) -> &PlanKey {
        self.keys.of(role)
    }
}

impl GradientSynchronizer {
    /// Runs the host, if the layer has one here, every live seed whose α is not 0, and in training mode those
    /// that train behind the layer; and writes the blend of their outputs.
    ///
    /// A seed that fails is left out: its α counts as 0 for this pass and for its backward. Where none is
    /// left, the blend is that of no seeds.
    ///
    /// Blocking: until done, or until the time limit and a little more has passed. Plans for a shape that
    /// is seen for the first time are made here.
    ///
    /// # Errors
    /// [`EngineError::Spent`] when the ticket would be one too many, [`EngineError::Request`] when blocks
    /// and shapes contradict each other, [`EngineError::GivenAlpha`] for an alpha out of range,
    /// [`EngineError::NoHost`] and [`EngineError::Host`] when the host is not there or fails,
    /// [`EngineError::Run`] when the blend itself fails. No ticket is taken then, no seed's buffers have changed
    /// before the blend, and the output is undefined.
    pub fn forward(
        &mut self,
        request: &wire::Forward,
        arena: &Arc<dyn Memory>,
        quota: &mut Quota,
    ) -> Result<ForwardReport, EngineError> {
        self.check_forward(request)?;
        let given = self.given_alphas(request, &**arena)?;
        if request.take_ticket {
            quota.check(0)?;
            if self.tickets.len() >= self.config.max_tickets_per_layer {
                return Err(self.too_many_tickets());
            }
        }
        self.reclaim();
        let wants = if request.take_ticket { request.wants } else { wire::Wants::default() };
        let keys = Keys::new(request, wants);
        let pass = Pass { request, arena, deadline: self.deadline(), given, keys };
        let mut setbacks = Setbacks::new();
        self.prepare(&pass, &mut setbacks)?;
        if request.take_ticket {
            let bytes = self.jobs.iter().map(|assigned| self.keeps_bytes(&assigned.job) as u64).sum();
            if let Err(error) = quota.check(bytes) {
                self.drop_jobs();
                return Err(error);
            }
        }
        self.run_jobs(pass.deadline);
        self.check_host()?;
        let mut ran = Ran::new();
        self.gather(request, &mut ran, &mut setbacks);
        self.finish(&pass, wants, ran, setbacks, quota)
    }

    fn check_forward(&self, request: &wire::Forward) -> Result<(), EngineError> {
        let refuse = |reason: String| Err(EngineError::Request { reason });
        let bytes =
            |shape: &crate::tensor::Shape| shape.elements().saturating_mul(request.dtype.size_bytes()) as u64;
        if request.input.bytes != bytes(&request.input_shape) {
            return refuse(format!("the input's block is not as large as {}", request.input_shape));
        }
        if request.output.bytes != bytes(&request.output_shape) {
            return refuse(format!("the output's block is not as large as {}", request.output_shape));
        }
        let alphas_bytes = 4 * self.seeds() as u64;
        if let Some(block) = request.alphas
            && block.bytes != alphas_bytes
        {
            return refuse(format!("alphas take {alphas_bytes} bytes, the block has {}", block.bytes));
        }
        if self.blend == Blend::Multiply && request.input_shape != request.output_shape {
            let (input, output) = (&request.input_shape, &request.output_shape);
            return refuse(format!(
                "multiply needs equal shapes of input and output, not {input} and {output}"
            ));
        }
        match self.host {
            Some(host) if self.slots[host].attached.is_none() => Err(EngineError::NoHost { layer: self.id }),
            _ => Ok(()),
        }
    }

    /// How much of a job's memory goes into the ticket.
    fn keeps_bytes(&self, job: &Job) -> usize {
        let Direction::Forward { output } = &job.direction else { return 0 };
        match job.role {
            _ if self.recompute => job.buffers.len_bytes(),
            Role::Straight => job.saved.len_bytes(),
            Role::Blended | Role::Host => output.len_bytes() + job.saved.len_bytes(),
        }
    }

    /// Sorts what came back into those that ran and those that failed.
    fn gather(&mut self, request: &wire::Forward, ran: &mut Ran, setbacks: &mut Setbacks) {
        let mut outcomes = std::mem::take(&mut self.outcomes);
        for Outcome { slot, back, .. } in outcomes.drain(..) {
            let Some((done, ran_on)) = back else {
                setbacks.extend(self.current(slot).map(|live| (slot, live.clone(), Self::late(&live))));
                continue;
            };
            if let Err(error) = done.result {
                setbacks.push((slot, done.job.live.clone(), error));
                self.give_job(slot, done.job);
                continue;
            }
            done.job.commit();
            let Job { live, plans, role, alpha, saved, buffers, scratch, direction, .. } = done.job;
            let Direction::Forward { mut output } = direction else { continue };
            self.take_back_scratch(slot, &live, scratch);
            let counters = &self.slots[slot].counters;
            counters.succeeded(done.time, ran_on);
            counters.note_pass(done.time, alpha);
            // Where a backward follows, the row of failures ends with its success.
            if !request.take_ticket || plans.backward.is_none() {
                counters.end_row();
            }
            if role == Role::Straight {
                self.pool.give(std::mem::replace(&mut output, HostMemory::new(0)));
            }
            let seed = SeedIndex(slot as u16);
            ran.push(TicketSeed { seed, live, plans, role, alpha, output, saved, buffers, is_lost: false });
        }
        self.outcomes = outcomes;
    }

    /// Blends and takes the ticket.
    fn finish(
        &mut self,
        pass: &Pass<'_>,
        wants: wire::Wants,
        ran: Ran,
        setbacks: Setbacks,
        quota: &mut Quota,
    ) -> Result<ForwardReport, EngineError> {
        let request = pass.request;
        let alphas: Factors = blended(&ran).map(|seed| seed.alpha).collect();
        let (live_mask, mix) = (mask(&ran), Mix::new(self.blend, &alphas));
        let given = pass.given.iter().enumerate().filter(|(_, alpha)| alpha.is_some());
        let given_mask = given.fold(0, |mask, (seed, _)| mask | 1 << seed);
        let result = self.blend(pass, wants, &ran, &mix);
        let (ticket, saved_bytes) = match result {
            Ok((blend, blend_saved)) if request.take_ticket => {
                let mut ticket = Ticket {
                    seeds: ran,
                    mix,
                    blend,
                    blend_saved,
                    input: request.input,
                    input_shape: request.input_shape.clone(),
                    output_shape: request.output_shape.clone(),
                    dtype: request.dtype,
                    wants,
                    rng_seed: request.rng_seed,
                    bytes: 0,
                };
                if self.recompute {
                    self.strip(&mut ticket);
                }
                let held = ticket.seeds.iter().map(TicketSeed::held_bytes).sum::<usize>();
                ticket.bytes = (held + ticket.blend_saved.len_bytes()) as u64;
                let (id, bytes) = (quota.take(ticket.bytes), ticket.bytes);
                self.tickets.insert(id, ticket);
                (id, bytes)
            }
            result => {
                for seed in ran {
                    self.pool.give(seed.output);
                    self.pool.give(seed.saved);
                    self.pool.give(seed.buffers);
                }
                let (_, blend_saved) = result?;
                self.pool.give(blend_saved);
                (TicketId(0), 0)
            }
        };
        let failures = self.settle(setbacks);
        Ok(ForwardReport {
            ticket,
            blend_weight: blend::total_weight(&alphas),
            alpha_total: alphas.iter().sum(),
            live_mask,
            failures,
            saved_bytes,
            generation: self.generation,
            given_mask,
        })
    }

    /// Runs the blend; gives its plan and what its gradient reads.
    fn blend(
        &mut self,
        pass: &Pass<'_>,
        wants: wire::Wants,
        ran: &Ran,
        mix: &Mix,
    ) -> Result<(Arc<BlendPlan>, HostMemory), EngineError> {
        let request = pass.request;
        let key = BlendKey {
            blend: self.blend,
            count: mix.factors.len(),
            host: self.host.is_some(),
            shape: request.output_shape.clone(),
            dtype: request.dtype,
            wants_outputs: wants.input || wants.parameters,
            wants_factors: wants.alphas,
            wants_input: wants.input,
        };
        let plan = self.blend_plan(key)?;
        let saved = self.pool.take(plan.forward.needs().saved.total_bytes());
        let (x, output) = (within(&**pass.arena, request.input), within(&**pass.arena, request.output));
        let blending = Blending { ran, mix, x, saved: saved.region() };
        match self.run_blend(&plan, &blending, output) {
            Ok(()) => Ok((plan, saved)),
            Err(error) => {
                self.pool.give(saved);
                Err(error)
            }
        }
    }
}
