//! The forward pass of a layer.

use std::{sync::Arc, time::Instant};

use smallvec::SmallVec;

use super::{
    ForwardReport, GradientSynchronizer, Outcome, Setback, Setbacks,
    blending::Blending,
    parts::{Given, Keys, Part, Parts},
};
use crate::{
    backend::{OwnMemory, Shared, nothing},
    engine::{
        EngineError, PlanKey, Quota, Role,
        blend::{self, BlendKey, BlendPlan, Factors, Mix},
        job::{Direction, Job},
        norm::norm,
        target::{Target, readable, theirs, there},
        ticket::{Ticket, TicketSeed, blended, mask},
    },
    failpoint::{self, Failpoint},
    id::{SeedIndex, TicketId},
    tensor::ALIGNMENT_BYTES,
    wire::{self, Blend},
};

type Ran = SmallVec<[TicketSeed; 4]>;

/// A pass as its jobs see it.
pub(super) struct Pass<'a> {
    pub(super) request: &'a wire::Forward,
    pub(super) arena: &'a Arc<Shared>,
    pub(super) deadline: Instant,
    pub(super) given: Given,
    /// Whether what the only part gives is the layer's output, as it is. That part runs on this thread, so that it cannot come
    /// late, and writes it where it belongs.
    pub(super) is_whole: bool,
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
        arena: &Arc<Shared>,
        quota: &mut Quota,
    ) -> Result<ForwardReport, EngineError> {
        self.check_forward(request)?;
        let given = self.given_alphas(request, arena)?;
        if request.take_ticket {
            quota.check(0)?;
            if self.tickets.len() >= self.config.max_tickets_per_layer {
                return Err(self.too_many_tickets());
            }
        }
        self.reclaim();
        let wants = if request.take_ticket { request.wants } else { wire::Wants::default() };
        let keys = Keys::new(request, wants);
        self.note_in_use(keys.of(Role::Blended));
        let mut pass = Pass { request, arena, deadline: self.deadline(), given, is_whole: false, keys };
        let mut setbacks = Setbacks::new();
        let parts = self.parts(&pass, &mut setbacks)?;
        pass.is_whole = self.is_whole(&parts, wants);
        if request.take_ticket {
            // Before any of it is there.
            let bytes = parts.iter().map(|part| self.keeps_bytes(part, &pass) as u64);
            quota.check(bytes.sum())?;
        }
        let result = self.run(&pass, wants, parts, setbacks, quota);
        if result.is_err() {
            // What has been handed over must not come after the completion.
            let _ = self.queue.finish(None);
        }
        result
    }

    fn run(
        &mut self,
        pass: &Pass<'_>,
        wants: wire::Wants,
        parts: Parts,
        mut setbacks: Setbacks,
        quota: &mut Quota,
    ) -> Result<ForwardReport, EngineError> {
        self.bring(pass.arena, [pass.request.input])?;
        self.prepare(pass, parts);
        failpoint::reached(Failpoint::ForwardPrepared);
        self.run_jobs(pass.deadline);
        self.check_host(false)?;
        let mut ran = Ran::new();
        self.gather(pass, &mut ran, &mut setbacks);
        failpoint::reached(Failpoint::Committed);
        self.finish(pass, wants, ran, setbacks, quota)
    }

    /// Whether the layer's output is what its only part gives, as it is, and that part runs on this thread.
    fn is_whole(&self, parts: &Parts, wants: wire::Wants) -> bool {
        let [part] = parts.as_slice() else { return false };
        let is_as_it_is = part.role == Role::Blended && part.alpha == 1.0 && self.blend != Blend::Multiply;
        // The gradient of its alpha reads it.
        is_as_it_is && !wants.alphas && !self.backend.is_asynchronous()
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

    /// How much of a part's memory goes into the ticket.
    fn keeps_bytes(&self, part: &Part, pass: &Pass<'_>) -> usize {
        let whole = |bytes: usize| bytes.next_multiple_of(ALIGNMENT_BYTES);
        let saved = || whole(part.plans.saved_bytes());
        match part.role {
            _ if self.recompute && part.plans.updates.is_empty() => 0,
            _ if self.recompute => whole(part.live.buffers().len_bytes()),
            Role::Straight => saved(),
            Role::Blended if pass.is_whole => saved(),
            Role::Blended | Role::Host => whole(pass.request.output.bytes as usize) + saved(),
        }
    }

    /// Sorts what came back into those that ran and those that failed.
    fn gather(&mut self, pass: &Pass<'_>, ran: &mut Ran, setbacks: &mut Setbacks) {
        let request = pass.request;
        let mut outcomes = std::mem::take(&mut self.outcomes);
        for Outcome { slot, back, .. } in outcomes.drain(..) {
            let Some((mut done, ran_on)) = back else {
                if let Some((live, role, alpha)) = self.current(slot) {
                    let error = Self::late(&live);
                    let alpha = pass.given.get(slot).copied().flatten().unwrap_or(alpha);
                    self.witness_forward(pass, slot, (&live, role, alpha), &error);
                    setbacks.push((slot, live, error));
                }
                continue;
            };
            let committed = done.result.and_then(|()| self.commit(&mut done.job));
            if let Err(error) = committed {
                self.witness_job(slot, &mut done.job, &error, done.timing, false);
                setbacks.push((slot, done.job.live.clone(), error));
                self.give_job(slot, done.job);
                continue;
            }
            let Job { live, plans, role, alpha, saved, buffers, scratch, direction, .. } = done.job;
            let Direction::Forward { output } = direction else { continue };
            self.take_back_scratch(slot, &live, scratch);
            let counters = &self.slots[slot].counters;
            counters.succeeded(done.timing.time, ran_on);
            counters.note_pass(done.timing.time, alpha, done.norm);
            // Where a backward follows, the row of failures ends with its success.
            if !request.take_ticket || plans.backward.is_none() {
                counters.end_row();
            }
            let output = match output {
                Target::Own(output) if role != Role::Straight => output,
                output => {
                    self.give_target(output);
                    nothing()
                }
            };
            let seed = SeedIndex(slot as u16);
            ran.push(TicketSeed { seed, live, plans, role, alpha, output, saved, buffers, is_lost: false });
        }
        self.outcomes = outcomes;
    }

    /// Makes a job's buffers the seed's own, before the pass goes on.
    fn commit(&mut self, job: &mut Job) -> Result<(), EngineError> {
        let committed = job.commit();
        let ordered = self.queue.after(job.scratch.queue()).map_err(|error| job.live.failed(error));
        let result = committed.and(ordered);
        if result.is_err() {
            // Its memory is somebody else's next.
            let _ = job.scratch.queue().finish(None);
        }
        result
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
        // Where the only one has failed, the output is that of no seeds.
        let result = if pass.is_whole && !ran.is_empty() {
            self.send(pass.arena, [Some(request.output)]).map(|()| (None, nothing()))
        } else {
            self.blend(pass, wants, &ran, &mix).map(|(plan, saved)| (Some(plan), saved))
        };
        failpoint::reached(Failpoint::Blended);
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
                    sampled: None,
                    bytes: 0,
                };
                if self.recompute {
                    self.strip(&mut ticket);
                }
                let held = ticket.seeds.iter().map(TicketSeed::held_bytes).sum::<usize>();
                ticket.bytes = (held + ticket.blend_saved.len_bytes()) as u64;
                let (id, bytes) = (quota.take(ticket.bytes), ticket.bytes);
                self.tickets.insert(id, ticket);
                failpoint::reached(Failpoint::TicketKept);
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
        let is_non_finite = |(.., error): &Setback| matches!(error, EngineError::NonFinite { .. });
        // What is not finite when it comes in is not finite when it goes out.
        let is_inputs = setbacks.iter().any(is_non_finite) && !self.is_finite(pass);
        let failures =
            self.settle(setbacks, |error| !(is_inputs && matches!(error, EngineError::NonFinite { .. })));
        Ok(ForwardReport {
            ticket,
            blend_weight: blend::total_weight(&alphas) + 0.0,
            // Of none at all the sum would be −0.
            alpha_total: alphas.iter().sum::<f32>() + 0.0,
            live_mask,
            failures,
            saved_bytes,
            generation: self.generation,
            given_mask,
        })
    }

    /// Whether the input is, as far as it can be read.
    fn is_finite(&mut self, pass: &Pass<'_>) -> bool {
        let mut copy = Vec::new();
        let input = readable(&mut *self.queue, theirs(pass.arena, pass.request.input), &mut copy);
        input.is_ok_and(|input| !norm([(input, pass.request.dtype)]).is_nan())
    }

    /// Runs the blend; gives its plan and what its gradient reads.
    fn blend(
        &mut self,
        pass: &Pass<'_>,
        wants: wire::Wants,
        ran: &Ran,
        mix: &Mix,
    ) -> Result<(Arc<BlendPlan>, OwnMemory), EngineError> {
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
        let plan = self.blender.plan(key)?;
        let saved = self.pool.take(plan.forward.needs().saved.total_bytes());
        let (x, output) = (there(pass.arena, request.input), there(pass.arena, request.output));
        let blending = Blending { ran, mix, x, saved: saved.region() };
        let blended = match saved.lack() {
            Some(lack) => Err(EngineError::of_run("the blend")(lack.clone())),
            None => self.blender.run(&mut *self.queue, &plan, &blending, output),
        };
        match blended.and_then(|()| self.send(pass.arena, [Some(request.output)])) {
            Ok(()) => Ok((plan, saved)),
            Err(error) => {
                self.pool.give(saved);
                Err(error)
            }
        }
    }
}
