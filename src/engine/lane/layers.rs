//! A session's layers, and what its requests and commands do to them. Knows no thread and no ring.

use std::{collections::BTreeMap, sync::Arc};

use super::{LaneEvent, LaneLimits, LaneSnapshot, LayerSnapshot, Upcoming};
use crate::{
    backend::{Backend, Shared},
    engine::{
        Alpha, Course, EngineConfig, EngineError, GradientSynchronizer, Holdings, LayerSpec, LiveSeed, Quota,
        Reached, Role, SeedFailure, SessionLedger, Share, Witness, pool::MAX_FREE_BYTES,
    },
    failpoint::{self, Failpoint},
    id::{Generation, LayerId, SeedIndex},
    wire::{Backward, Blend, Completion, Forward, MAX_SEEDS, Release, ScheduleSpec},
};

/// All layers that one session has open.
#[derive(Debug)]
pub(super) struct Layers {
    open: BTreeMap<LayerId, Layer>,
    quota: Quota,
    plans_made: u64,
    ledger: Arc<SessionLedger>,
    backend: Arc<dyn Backend>,
    config: Arc<EngineConfig>,
    witness: Option<Witness>,
}

#[derive(Debug)]
struct Layer {
    synchronizer: GradientSynchronizer,
    /// Its place in the session's ledger.
    _entered: Share,
    /// Slots whose present kernel has failed before.
    told: u64,
    /// Training forwards that went well.
    steps: u64,
}

impl Layers {
    pub(super) fn new(
        backend: Arc<dyn Backend>,
        config: Arc<EngineConfig>,
        limits: &LaneLimits,
        witness: Option<Witness>,
    ) -> Self {
        Self {
            open: BTreeMap::new(),
            quota: Quota::of(limits.ledger.clone()),
            plans_made: 0,
            ledger: limits.ledger.clone(),
            backend,
            config,
            witness,
        }
    }

    pub(super) fn quota(&self) -> &Quota {
        &self.quota
    }

    pub(super) fn open(&mut self, spec: LayerSpec) -> Result<(), EngineError> {
        let id = spec.id;
        if self.open.contains_key(&id) {
            return Err(EngineError::Request { reason: format!("layer {id} is open already") });
        }
        if spec.counters.len() > MAX_SEEDS {
            return Err(EngineError::Quota { what: "seeds of one layer", limit: MAX_SEEDS as u64 });
        }
        let entered = self.ledger.take(Holdings { layers: 1, ..Holdings::NONE })?;
        let mut synchronizer = GradientSynchronizer::new(spec, self.backend.clone(), self.config.clone());
        self.witness.iter().for_each(|witness| synchronizer.record_with(witness.clone()));
        self.open.insert(id, Layer { synchronizer, _entered: entered, told: 0, steps: 0 });
        failpoint::reached(Failpoint::LayerOpened);
        Ok(())
    }

    pub(super) fn close(&mut self, layer: LayerId) -> Result<(), EngineError> {
        let mut closed = self.open.remove(&layer).ok_or(EngineError::LayerUnknown { layer })?;
        closed.synchronizer.release_all(&mut self.quota);
        failpoint::reached(Failpoint::LayerClosed);
        Ok(())
    }

    pub(super) fn attach(
        &mut self,
        layer: LayerId,
        seed: SeedIndex,
        live: Arc<LiveSeed>,
        alpha: Alpha,
        role: Role,
        course: Option<Course>,
    ) -> Result<(), EngineError> {
        let layer = find(&mut self.open, layer)?;
        if course.is_some() && layer.synchronizer.is_host(seed) {
            let layer = layer.synchronizer.id();
            return Err(EngineError::Role { layer, seed, is_host: true });
        }
        layer.synchronizer.attach(seed, live, alpha, role)?;
        layer.told &= !bit(seed);
        course.map_or(Ok(()), |course| layer.synchronizer.follow(seed, course))
    }

    pub(super) fn blend(
        &mut self,
        layer: LayerId,
        seed: SeedIndex,
        spec: &ScheduleSpec,
        number: u64,
        from: Option<Alpha>,
    ) -> Result<Alpha, EngineError> {
        let scheduled = find(&mut self.open, layer)?.synchronizer.schedule(seed, spec, number, from);
        failpoint::reached(Failpoint::BlendScheduled);
        scheduled
    }

    pub(super) fn hold(&mut self, layer: LayerId, seed: SeedIndex) -> Result<Alpha, EngineError> {
        let held = find(&mut self.open, layer)?.synchronizer.hold(seed);
        failpoint::reached(Failpoint::Held);
        held
    }

    pub(super) fn detach(
        &mut self,
        layer: LayerId,
        seed: SeedIndex,
    ) -> Result<Option<Generation>, EngineError> {
        let layer = find(&mut self.open, layer)?;
        let detached = layer.synchronizer.detach(seed)?;
        failpoint::reached(Failpoint::Detached);
        Ok(detached.map(|live| live.generation()))
    }

    pub(super) fn set_alpha(
        &mut self,
        layer: LayerId,
        seed: SeedIndex,
        alpha: Alpha,
    ) -> Result<(), EngineError> {
        let set = find(&mut self.open, layer)?.synchronizer.set_alpha(seed, alpha);
        failpoint::reached(Failpoint::AlphaSet);
        set
    }

    pub(super) fn set_role(
        &mut self,
        layer: LayerId,
        seed: SeedIndex,
        role: Role,
    ) -> Result<(), EngineError> {
        find(&mut self.open, layer)?.synchronizer.set_role(seed, role)
    }

    pub(super) fn upcoming(&mut self, layer: LayerId, seed: SeedIndex) -> Result<Upcoming, EngineError> {
        let synchronizer = &find(&mut self.open, layer)?.synchronizer;
        Ok(Upcoming { keys: synchronizer.keys_in_use(), live: synchronizer.live(seed)?.cloned() })
    }

    /// Plans that passes have made or waited for since this was last asked.
    pub(super) fn take_plans_made(&mut self) -> u64 {
        std::mem::take(&mut self.plans_made)
    }

    pub(super) fn snapshot(&self) -> LaneSnapshot {
        let layers = self.open.iter().map(|(&layer, open)| LayerSnapshot {
            layer,
            tickets: open.synchronizer.tickets() as u64,
            saved_bytes: open.synchronizer.held_bytes(),
            generation: open.synchronizer.generation(),
        });
        LaneSnapshot {
            layers: layers.collect(),
            tickets: self.quota.tickets() as u64,
            saved_bytes: self.quota.saved_bytes(),
        }
    }

    /// After a pass of a layer: where all layers together keep too much for their next passes, the others let go of it.
    pub(super) fn bound_idle(&mut self, latest: LayerId) {
        let idle = self.open.values().map(|layer| layer.synchronizer.idle_bytes()).sum::<usize>();
        if idle > MAX_FREE_BYTES {
            let others = self.open.iter_mut().filter(|(id, _)| **id != latest);
            others.for_each(|(_, layer)| layer.synchronizer.free_idle());
        }
    }

    /// Runs a forward pass; what there is to say of its result goes into the completion.
    pub(super) fn forward(
        &mut self,
        request: &Forward,
        arena: &Arc<Shared>,
        completion: &mut Completion,
        tell: &dyn Fn(LaneEvent),
    ) -> Result<(), EngineError> {
        let layer = find(&mut self.open, request.layer)?;
        let report = layer.synchronizer.forward(request, arena, &mut self.quota);
        self.quota.settle();
        self.plans_made += layer.synchronizer.take_plans_made();
        // Refused or not, it may have planned.
        layer
            .synchronizer
            .take_grown()
            .for_each(|kernel| tell(LaneEvent::Planned { kernel: kernel.clone() }));
        let report = report.inspect_err(|error| layer.refused(request.layer, error, tell))?;
        completion.blend_weight = report.blend_weight;
        completion.alpha_total = report.alpha_total;
        completion.ticket = report.ticket.0;
        completion.live_mask = report.live_mask;
        completion.saved_bytes = report.saved_bytes;
        completion.generation = report.generation;
        layer.failed(request.layer, &report.failures, completion, tell);
        if request.train {
            layer.steps += 1;
            layer.synchronizer.note_step(layer.steps);
            let (every, of_gradients) =
                (u64::from(self.config.series_every), u64::from(self.config.gradient_norm_every));
            if layer.steps.is_multiple_of(every) {
                let measures = of_gradients > 0 && (layer.steps / every.max(1)).is_multiple_of(of_gradients);
                layer.synchronizer.sample(layer.steps, &report, measures);
            }
            layer.synchronizer.advance(report.given_mask, |reached| {
                failpoint::reached(Failpoint::ScheduleReached);
                let Reached { seed, generation, number, alpha } = reached;
                tell(LaneEvent::AlphaReached { layer: request.layer, seed, generation, number, alpha });
            });
            failpoint::reached(Failpoint::ScheduleAdvanced);
        }
        Ok(())
    }

    /// Runs a backward pass and spends its ticket.
    pub(super) fn backward(
        &mut self,
        request: &Backward,
        arena: &Arc<Shared>,
        completion: &mut Completion,
        tell: &dyn Fn(LaneEvent),
    ) -> Result<(), EngineError> {
        let layer = find(&mut self.open, request.layer)?;
        let report = layer.synchronizer.backward(request, arena, &mut self.quota);
        self.plans_made += layer.synchronizer.take_plans_made();
        let report = report.inspect_err(|error| layer.refused(request.layer, error, tell))?;
        completion.live_mask = report.live_mask;
        layer.failed(request.layer, &report.failures, completion, tell);
        Ok(())
    }

    /// Numbers the next ticket after so many submissions.
    pub(super) fn number_ticket_after(&mut self, submissions: u64) {
        self.quota.number_after(submissions);
    }

    /// How a layer's seeds meet its own output.
    pub(super) fn blend_rule(&self, layer: LayerId) -> Option<Blend> {
        self.open.get(&layer).map(|layer| layer.synchronizer.blend_rule())
    }

    /// Spends a ticket without a backward.
    pub(super) fn release(&mut self, request: &Release) -> Result<(), EngineError> {
        find(&mut self.open, request.layer)?.synchronizer.release(request.ticket, &mut self.quota)?;
        failpoint::reached(Failpoint::Released);
        Ok(())
    }
}

impl Layer {
    /// Tells of a host's first failure, as of a seed's.
    fn refused(&mut self, layer: LayerId, error: &EngineError, tell: &dyn Fn(LaneEvent)) {
        let EngineError::Host { error } = error else { return };
        let Some((seed, live)) = self.synchronizer.host() else { return };
        let (kernel, generation) = (live.kernel().id().clone(), live.generation());
        if self.is_first_failure(seed) {
            tell(LaneEvent::SeedFailed { layer, seed, generation, kernel, error: (**error).clone() });
        }
    }

    /// Notes who failed in a pass that went on without them.
    fn failed(
        &mut self,
        layer: LayerId,
        failures: &[SeedFailure],
        completion: &mut Completion,
        tell: &dyn Fn(LaneEvent),
    ) {
        for (n, failure) in failures.iter().enumerate() {
            let SeedFailure { seed, kernel, generation, error, unloaded, is_current, alpha, course } =
                failure;
            completion.set_failed(*seed, error.failure());
            if n == 0 {
                completion.set_message(&error.to_string());
            }
            if !is_current {
                // Of a kernel that was replaced nothing is told: the first failure of its successor is.
                continue;
            }
            let (seed, generation) = (*seed, *generation);
            let is_first = self.is_first_failure(seed);
            let error = error.clone();
            if *unloaded {
                let (alpha, course) = (*alpha, *course);
                tell(LaneEvent::SeedUnloaded { layer, seed, generation, error, alpha, course });
            } else if is_first {
                let kernel = kernel.clone();
                tell(LaneEvent::SeedFailed { layer, seed, generation, kernel, error });
            }
        }
    }

    /// Notes that a slot's present kernel has failed; whether it was for the first time.
    fn is_first_failure(&mut self, seed: SeedIndex) -> bool {
        let is_first = self.told & bit(seed) == 0;
        self.told |= bit(seed);
        is_first
    }
}

fn find(open: &mut BTreeMap<LayerId, Layer>, layer: LayerId) -> Result<&mut Layer, EngineError> {
    open.get_mut(&layer).ok_or(EngineError::LayerUnknown { layer })
}

fn bit(seed: SeedIndex) -> u64 {
    1u64.checked_shl(seed.0.into()).unwrap_or(0)
}
