//! The forward pass of a layer.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Instant,
};

use smallvec::SmallVec;

use super::{Assigned, Failures, ForwardReport, GradientSynchronizer, Outcome};
use crate::{
    backend::{Bindings, HostMemory, Memory, Region, RunContext, RunError},
    engine::{
        EngineError, LiveSeed, PlanKey, PlanSet, Quota,
        blend::{self, BlendKey, BlendPlan, Factors},
        job::{Direction, EMPTY, Job, message_of, within},
        ticket::{Ticket, TicketSeed},
    },
    graph::ValueInfo,
    id::{SeedIndex, TicketId},
    wire::{self, Blend},
};

/// The regions of a blend: outputs, factors and x for up to four seeds without an allocation.
pub(super) type Regions<'a> = SmallVec<[Region<'a>; 9]>;

type Ran = SmallVec<[TicketSeed; 4]>;

/// A slot whose seed takes part, and what it runs.
type Part = (usize, Arc<LiveSeed>, Arc<PlanSet>);

/// A pass as its jobs see it.
struct Pass<'a> {
    request: &'a wire::Forward,
    arena: &'a Arc<dyn Memory>,
    deadline: Instant,
    key: PlanKey,
}

impl GradientSynchronizer {
    /// Runs every live seed whose α is not 0 and writes the blend of their outputs.
    ///
    /// A seed that fails is left out: its α counts as 0 for this pass and for its backward. Where none is
    /// left, the blend is that of no seeds.
    ///
    /// Blocking: until done, or until the time limit and a little more has passed. Plans for a shape that
    /// is seen for the first time are made here.
    ///
    /// # Errors
    /// [`EngineError::Quota`] when the ticket would be one too many, [`EngineError::Request`] when blocks
    /// and shapes contradict each other, [`EngineError::Run`] when the blend itself fails. No ticket is
    /// taken then, and the output is undefined.
    pub fn forward(
        &mut self,
        request: &wire::Forward,
        arena: &Arc<dyn Memory>,
        quota: &mut Quota,
    ) -> Result<ForwardReport, EngineError> {
        self.check_forward(request)?;
        if request.take_ticket {
            quota.check(0)?;
            if self.tickets.len() >= self.config.max_tickets_per_layer {
                let limit = self.config.max_tickets_per_layer as u64;
                return Err(EngineError::Quota { what: "tickets of one layer", limit });
            }
        }
        self.reclaim();
        let wants = if request.take_ticket { request.wants } else { wire::Wants::default() };
        let key = PlanKey {
            input_shape: request.input_shape.clone(),
            dtype: request.dtype,
            train: request.train,
            wants_input: wants.input,
            wants_parameters: wants.parameters,
        };
        let pass = Pass { request, arena, deadline: self.deadline(), key };
        let mut failures = Failures::new();
        self.prepare(&pass, &mut failures);
        if request.take_ticket {
            let bytes = self.jobs.iter().map(|assigned| assigned.job.lent_bytes() as u64).sum();
            if let Err(error) = quota.check(bytes) {
                self.drop_jobs();
                return Err(error);
            }
        }
        self.run_jobs(pass.deadline);
        let mut ran = Ran::new();
        self.gather(request, &mut ran, &mut failures);
        self.finish(&pass, wants, ran, failures, quota)
    }

    fn check_forward(&self, request: &wire::Forward) -> Result<(), EngineError> {
        let refuse = |reason: String| Err(EngineError::Request { reason });
        let bytes =
            |shape: &crate::tensor::Shape| shape.elements().saturating_mul(request.dtype.size_bytes()) as u64;
        if request.alphas.is_some() {
            return refuse("this version takes no alphas with a pass: set them by set_alpha".to_owned());
        }
        if request.input.bytes != bytes(&request.input_shape) {
            return refuse(format!("the input's block is not as large as {}", request.input_shape));
        }
        if request.output.bytes != bytes(&request.output_shape) {
            return refuse(format!("the output's block is not as large as {}", request.output_shape));
        }
        if self.blend == Blend::Multiply && request.input_shape != request.output_shape {
            let (input, output) = (&request.input_shape, &request.output_shape);
            return refuse(format!(
                "multiply needs equal shapes of input and output, not {input} and {output}"
            ));
        }
        Ok(())
    }

    /// Makes a job for each seed that takes part.
    fn prepare(&mut self, pass: &Pass<'_>, failures: &mut Failures) {
        let mut taking_part: SmallVec<[Part; 4]> = SmallVec::new();
        for slot in 0..self.slots.len() {
            let Some(attached) = &mut self.slots[slot].attached else { continue };
            if attached.alpha.get() == 0.0 {
                continue;
            }
            let live = attached.live.clone();
            let plans = if attached.scratch.is_none() {
                Err(EngineError::Busy { kernel: live.kernel().id().clone() })
            } else {
                let made = || attached.plans(&pass.key, &*self.backend, &self.config);
                let plans = catch_unwind(AssertUnwindSafe(made)).unwrap_or_else(|panic| {
                    let kernel = live.kernel().id().clone();
                    Err(EngineError::Panicked { kernel, message: message_of(&*panic) })
                });
                plans.and_then(|plans| fits(&live, &plans, pass.request).map(|()| plans))
            };
            match plans {
                Ok(plans) => taking_part.push((slot, live, plans)),
                Err(error) => self.fail(slot, &live, error, failures),
            }
        }
        let heavy = self.heavy(taking_part.iter().map(|(_, _, plans)| &**plans));
        let mut left_to_send = heavy.saturating_sub(1);
        let threads = self.threads(heavy);
        for (place, (slot, live, plans)) in taking_part.into_iter().enumerate() {
            let is_sent_out = left_to_send > 0 && self.is_heavy(&plans);
            left_to_send -= usize::from(is_sent_out);
            let output_bytes = pass.request.output.bytes as usize;
            let (output, saved) = (self.pool.take(output_bytes), self.pool.take(plans.saved_bytes()));
            let attached = self.slots[slot].attached.as_mut().expect("it took part a moment ago");
            let mut scratch = attached.scratch.take().expect("it was there a moment ago");
            scratch.fit(&live, &plans);
            let job = Job {
                place,
                live,
                plans,
                arena: pass.arena.clone(),
                input: pass.request.input,
                saved,
                scratch,
                direction: Direction::Forward { output },
                config: self.config.clone(),
                context: RunContext { seed: pass.request.rng_seed, deadline: Some(pass.deadline), threads },
            };
            self.jobs.push(Assigned { job, slot, is_sent_out });
        }
    }

    /// Undoes [`prepare`](Self::prepare).
    fn drop_jobs(&mut self) {
        let mut jobs = std::mem::take(&mut self.jobs);
        for Assigned { job, slot, .. } in jobs.drain(..) {
            self.take_back_scratch(slot, &job.live, job.scratch);
            self.pool.give(job.saved);
            if let Direction::Forward { output } = job.direction {
                self.pool.give(output);
            }
        }
        self.jobs = jobs;
    }

    /// Sorts what came back into those that go into the blend and those that failed.
    fn gather(&mut self, request: &wire::Forward, ran: &mut Ran, failures: &mut Failures) {
        let mut outcomes = std::mem::take(&mut self.outcomes);
        for Outcome { slot, back, .. } in outcomes.drain(..) {
            let Some((done, ran_on)) = back else {
                self.late(slot, failures);
                continue;
            };
            if done.result.is_ok() {
                done.job.commit();
            }
            let Job { live, plans, saved, scratch, direction, .. } = done.job;
            let Direction::Forward { output } = direction else { continue };
            self.take_back_scratch(slot, &live, scratch);
            match done.result {
                Ok(()) => {
                    let counters = &self.slots[slot].counters;
                    counters.succeeded(done.time, ran_on);
                    // Where a backward follows, the row of failures ends with its success.
                    if !request.take_ticket || plans.backward.is_none() {
                        counters.end_row();
                    }
                    let alpha = self.slots[slot].attached.as_ref().map_or(0.0, |a| a.alpha.get());
                    ran.push(TicketSeed { seed: SeedIndex(slot as u16), live, plans, alpha, output, saved });
                }
                Err(error) => {
                    self.pool.give(output);
                    self.pool.give(saved);
                    self.fail(slot, &live, error, failures);
                }
            }
        }
        self.outcomes = outcomes;
    }

    /// A seed whose thread has not come back in time.
    pub(super) fn late(&mut self, slot: usize, failures: &mut Failures) {
        let Some(live) = self.slots[slot].attached.as_ref().map(|a| a.live.clone()) else { return };
        let what = format!("kernel {}", live.kernel().id());
        let source = RunError::Timeout { done: 0, total: 0 };
        self.fail(slot, &live, EngineError::Run { what, source }, failures);
    }

    /// Blends and takes the ticket.
    fn finish(
        &mut self,
        pass: &Pass<'_>,
        wants: wire::Wants,
        ran: Ran,
        failures: Failures,
        quota: &mut Quota,
    ) -> Result<ForwardReport, EngineError> {
        let request = pass.request;
        let alphas: Factors = ran.iter().map(|seed| seed.alpha).collect();
        let factors = blend::weights(self.blend, &alphas);
        let key = BlendKey {
            blend: self.blend,
            count: ran.len(),
            shape: request.output_shape.clone(),
            dtype: request.dtype,
            wants_outputs: wants.input || wants.parameters,
            wants_factors: wants.alphas,
            wants_input: wants.input,
        };
        let blended = self.blend_plan(key).and_then(|plan| {
            let saved = self.pool.take(plan.forward.needs().saved.total_bytes());
            match self.run_blend(pass, &plan, &ran, &factors, &saved) {
                Ok(()) => Ok((plan, saved)),
                Err(error) => {
                    self.pool.give(saved);
                    Err(error)
                }
            }
        });
        let live_mask = mask(&ran);
        let (ticket, saved_bytes) = match blended {
            Ok((blend, blend_saved)) if request.take_ticket => {
                let bytes =
                    ran.iter().map(|seed| seed.output.len_bytes() + seed.saved.len_bytes()).sum::<usize>()
                        + blend_saved.len_bytes();
                let id = quota.take(bytes as u64);
                let ticket = Ticket {
                    seeds: ran,
                    factors,
                    blend,
                    blend_saved,
                    input: request.input,
                    input_shape: request.input_shape.clone(),
                    output_shape: request.output_shape.clone(),
                    dtype: request.dtype,
                    wants,
                    rng_seed: request.rng_seed,
                    bytes: bytes as u64,
                };
                self.tickets.insert(id, ticket);
                (id, bytes as u64)
            }
            result => {
                for seed in ran {
                    self.pool.give(seed.output);
                    self.pool.give(seed.saved);
                }
                let (_, blend_saved) = result?;
                self.pool.give(blend_saved);
                (TicketId(0), 0)
            }
        };
        let blend_weight = blend::total_weight(&alphas);
        Ok(ForwardReport {
            ticket,
            blend_weight,
            alpha_total: alphas.iter().sum(),
            live_mask,
            failures,
            saved_bytes,
            generation: self.generation,
        })
    }

    fn run_blend(
        &self,
        pass: &Pass<'_>,
        plan: &BlendPlan,
        ran: &Ran,
        factors: &Factors,
        saved: &HostMemory,
    ) -> Result<(), EngineError> {
        self.write_factors(factors);
        let mut inputs: Regions<'_> = ran.iter().map(|seed| seed.output.region()).collect();
        inputs.extend((0..factors.len()).map(|n| self.scalar(n)));
        inputs.push(within(&**pass.arena, pass.request.input));
        let outputs = [within(&**pass.arena, pass.request.output)];
        let bindings = Bindings {
            inputs: &inputs,
            outputs: &outputs,
            saved: saved.region(),
            workspace: self.blend_workspace.region(),
            ..EMPTY
        };
        // The seeds have had their time; the blend is short and is not given up.
        let context = RunContext { seed: 0, deadline: None, threads: self.threads(1) };
        let failed = |source| EngineError::Run { what: "the blend".to_owned(), source };
        plan.forward.run(&bindings, &context).map_err(failed)
    }
}

fn mask(ran: &Ran) -> u64 {
    ran.iter().fold(0, |mask, seed| mask | 1u64.checked_shl(seed.seed.0.into()).unwrap_or(0))
}

/// Whether what a kernel gives is what the layer needs.
fn fits(live: &LiveSeed, plans: &PlanSet, request: &wire::Forward) -> Result<(), EngineError> {
    let ValueInfo { shape, dtype } = &plans.output;
    if *shape == request.output_shape && *dtype == request.dtype {
        return Ok(());
    }
    Err(EngineError::Output {
        kernel: live.kernel().id().clone(),
        expected: request.output_shape.clone(),
        expected_dtype: request.dtype,
        actual: shape.clone(),
        actual_dtype: *dtype,
    })
}
