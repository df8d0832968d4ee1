//! Who takes part in a forward pass, with which plans and which factor.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use smallvec::SmallVec;

use super::{Assigned, GradientSynchronizer, Setbacks, forward::Pass};
use crate::{
    backend::{Lacking, OwnMemory, RunContext, Shared, nothing},
    engine::{
        Alpha, EngineError, LiveSeed, PlanKey, PlanSet, Role,
        job::{Direction, Job, message_of, random_of},
        scratch::Scratch,
        target::{Target, words},
    },
    id::SeedIndex,
    wire::{self, MAX_SEEDS},
};

/// By seed: the alpha that a pass was given for it.
pub(super) type Given = SmallVec<[Option<f32>; MAX_SEEDS]>;

/// A slot that takes part, and what it runs.
pub(super) struct Part {
    slot: usize,
    pub(super) live: Arc<LiveSeed>,
    pub(super) plans: Arc<PlanSet>,
    pub(super) role: Role,
    pub(super) alpha: f32,
}

/// All that take part, in the order of the slots.
pub(super) type Parts = SmallVec<[Part; 4]>;

impl GradientSynchronizer {
    /// The alphas that a pass brings along: copied out of shared memory, then checked.
    pub(super) fn given_alphas(&self, request: &wire::Forward, arena: &Shared) -> Result<Given, EngineError> {
        let Some(block) = request.alphas else { return Ok(Given::new()) };
        let mut given = Given::new();
        for seed in 0..self.seeds() {
            let mut bytes = [0; 4];
            let part = words(arena, block).part(4 * seed, 4);
            if !part.is_some_and(|part| part.read(&mut bytes)) {
                let reason = format!("the alphas' block has no place for seed {seed}");
                return Err(EngineError::Request { reason });
            }
            let value = f32::from_le_bytes(bytes);
            if !value.is_nan() && Alpha::new(value).is_err() {
                return Err(EngineError::GivenAlpha { seed: SeedIndex(seed as u16), value });
            }
            given.push(Some(value).filter(|value| !value.is_nan()));
        }
        Ok(given)
    }

    /// Who takes part in a pass.
    ///
    /// # Errors
    /// What is in the host's way.
    pub(super) fn parts(&mut self, pass: &Pass<'_>, setbacks: &mut Setbacks) -> Result<Parts, EngineError> {
        let mut taking_part = Parts::new();
        for slot in 0..self.slots.len() {
            let Some(attached) = &self.slots[slot].attached else { continue };
            let given = pass.given.get(slot).copied().flatten();
            let (role, alpha) = (attached.role, given.unwrap_or(attached.alpha.get()));
            if !takes_part(role, alpha, given.is_some(), pass.request) {
                continue;
            }
            let live = attached.live.clone();
            match self.plans_for(slot, pass) {
                Ok(plans) => taking_part.push(Part { slot, live, plans, role, alpha }),
                Err(error) => {
                    self.witness_forward(pass, slot, (&live, role, alpha), &error);
                    if role == Role::Host {
                        return Err(self.host_failed(&live, error));
                    }
                    setbacks.push((slot, live, error));
                }
            }
        }
        Ok(taking_part)
    }

    /// Makes a job for each.
    pub(super) fn prepare(&mut self, pass: &Pass<'_>, taking_part: Parts) {
        let mut spread = self.spread(taking_part.iter().map(|part| &*part.plans));
        for (place, part) in taking_part.into_iter().enumerate() {
            let slot = part.slot;
            let can = self.slots[slot].attached.as_ref().is_some_and(|attached| attached.executor.is_some());
            let is_sent_out = spread.sends(can, &part.plans);
            debug_assert!(!(pass.is_whole && is_sent_out), "one alone stays here");
            let output = if pass.is_whole {
                Target::Arena(pass.request.output)
            } else {
                Target::Own(self.pool.take(pass.request.output.bytes as usize))
            };
            let job = self.job(pass, place, part, output, spread.threads);
            self.jobs.push(Assigned { job, slot, is_sent_out });
        }
    }

    /// The plans of a slot for a pass, if its kernel is free and fits.
    fn plans_for(&mut self, slot: usize, pass: &Pass<'_>) -> Result<Arc<PlanSet>, EngineError> {
        let attached = self.slots[slot].attached.as_mut().expect("its caller has looked");
        let live = attached.live.clone();
        if attached.scratch.is_none() {
            return Err(EngineError::Busy { kernel: live.kernel().id().clone() });
        }
        let key = pass.key(attached.role);
        let plans_made = &mut self.plans_made;
        let made = || attached.plans(key, &*self.backend, &self.config, plans_made);
        let plans = catch_unwind(AssertUnwindSafe(made)).unwrap_or_else(|panic| {
            let kernel = live.kernel().id().clone();
            Err(EngineError::Panicked { kernel, message: message_of(&*panic) })
        })?;
        let request = pass.request;
        plans.check_output(live.kernel().id(), &request.output_shape, request.dtype)?;
        Ok(plans)
    }

    fn job(&mut self, pass: &Pass<'_>, place: usize, part: Part, output: Target, threads: usize) -> Job {
        let Part { slot, live, plans, role, alpha } = part;
        let saved = self.pool.take(plans.saved_bytes());
        let attached = self.slots[slot].attached.as_mut().expect("it took part a moment ago");
        let mut scratch = attached.scratch.take().expect("it was there a moment ago");
        scratch.fit(&*self.backend, &live, &plans);
        // Where the forward is run again it has to find the buffers as this one does.
        let buffers = if self.recompute && pass.request.take_ticket && !plans.updates.is_empty() {
            self.copy_of_buffers(&live, &mut scratch)
        } else {
            nothing()
        };
        Job {
            place,
            role,
            alpha,
            live,
            plans,
            arena: pass.arena.clone(),
            input: pass.request.input,
            saved,
            buffers,
            scratch,
            direction: Direction::Forward { output },
            unordered: None,
            measures: false,
            config: self.config.clone(),
            context: RunContext {
                seed: random_of(pass.request.rng_seed, slot),
                deadline: Some(pass.deadline),
                threads,
            },
        }
    }

    fn copy_of_buffers(&mut self, live: &LiveSeed, scratch: &mut Scratch) -> OwnMemory {
        let own = live.buffers_there();
        let copy = self.pool.take(own.len_bytes());
        if copy.lack().is_some() {
            return copy;
        }
        let queue = scratch.queue();
        let copied = live.bring_buffers(queue).and_then(|()| queue.copy(own, copy.region()));
        match copied {
            Ok(()) => copy,
            Err(error) => {
                self.pool.give(copy);
                Box::new(Lacking(error))
            }
        }
    }
}

/// Whether what a slot holds runs in a pass.
///
/// An alpha of 0 costs nothing, unless it was given with a pass whose backward wants its gradient: that of what the
/// output would gain by the seed is not 0.
fn takes_part(role: Role, alpha: f32, is_given: bool, request: &wire::Forward) -> bool {
    match role {
        Role::Host => true,
        Role::Straight => request.train,
        Role::Blended => alpha != 0.0 || is_given && request.take_ticket && request.wants.alphas,
    }
}

/// The plans' keys of a pass, by role.
pub(super) struct Keys {
    whole: PlanKey,
    /// For seeds in training, which give no gradient of x.
    straight: PlanKey,
}

impl Keys {
    pub(super) fn new(request: &wire::Forward, wants: wire::Wants) -> Self {
        let whole = PlanKey {
            input_shape: request.input_shape.clone(),
            dtype: request.dtype,
            train: request.train,
            wants_input: wants.input,
            wants_parameters: wants.parameters,
        };
        Self { straight: whole.straight(), whole }
    }

    pub(super) fn of(&self, role: Role) -> &PlanKey {
        if role == Role::Straight { &self.straight } else { &self.whole }
    }
}
