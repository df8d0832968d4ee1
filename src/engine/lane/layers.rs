//! A session's layers, and what its requests and commands do to them. Knows no thread and no ring.

use std::{collections::BTreeMap, sync::Arc};

use super::{LaneEvent, LaneLimits, LaneSnapshot, LayerSnapshot};
use crate::{
    backend::{Backend, Memory},
    engine::{
        Alpha, Course, EngineConfig, EngineError, GradientSynchronizer, Holdings, LayerSpec, LiveSeed, Quota,
        Reached, Role, SeedFailure, SessionLedger, Share,
    },
    id::{Generation, LayerId, SeedIndex},
    wire::{Backward, Completion, Forward, MAX_SEEDS, Release, ScheduleSpec},
};

/// All layers that one session has open.
#[derive(Debug)]
pub(super) struct Layers {
    open: BTreeMap<LayerId, Layer>,
    quota: Quota,
    ledger: Arc<SessionLedger>,
    backend: Arc<dyn Backend>,
    config: Arc<EngineConfig>,
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
    pub(super) fn new(backend: Arc<dyn Backend>, config: Arc<EngineConfig>, limits: &LaneLimits) -> Self {
        Self {
            open: BTreeMap::new(),
            quota: Quota::of(limits.ledger.clone()),
            ledger: limits.ledger.clone(),
            backend,
            config,
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
        let synchronizer = GradientSynchronizer::new(spec, self.backend.clone(), self.config.clone());
        self.open.insert(id, Layer { synchronizer, _entered: entered, told: 0, steps: 0 });
        Ok(())
    }

    pub(super) fn close(&mut self, layer: LayerId) -> Result<(), EngineError> {
        let mut closed = self.open.remove(&layer).ok_or(EngineError::LayerUnknown { layer })?;
        closed.synchronizer.release_all(&mut self.quota);
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
        find(&mut self.open, layer)?.synchronizer.schedule(seed, spec, number, from)
    }

    pub(super) fn hold(&mut self, layer: LayerId, seed: SeedIndex) -> Result<Alpha, EngineError> {
        find(&mut self.open, layer)?.synchronizer.hold(seed)
    }

    pub(super) fn detach(
        &mut self,
        layer: LayerId,
        seed: SeedIndex,
    ) -> Result<Option<Generation>, EngineError> {
        let layer = find(&mut self.open, layer)?;
        Ok(layer.synchronizer.detach(seed)?.map(|live| live.generation()))
    }

    pub(super) fn set_alpha(
        &mut self,
        layer: LayerId,
        seed: SeedIndex,
        alpha: Alpha,
    ) -> Result<(), EngineError> {
        find(&mut self.open, layer)?.synchronizer.set_alpha(seed, alpha)
    }

    pub(super) fn set_role(
        &mut self,
        layer: LayerId,
        seed: SeedIndex,
        role: Role,
    ) -> Result<(), EngineError> {
        find(&mut self.open, layer)?.synchronizer.set_role(seed, role)
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

    /// Runs a forward pass; what there is to say of its result goes into the completion.
    pub(super) fn forward(
        &mut self,
        request: &Forward,
        arena: &Arc<dyn Memory>,
        completion: &mut Completion,
        tell: &dyn Fn(LaneEvent),
    ) -> Result<(), EngineError> {
        let layer = find(&mut self.open, request.layer)?;
        let report = layer.synchronizer.forward(request, arena, &mut self.quota);
        self.quota.settle();
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
            if layer.steps.is_multiple_of(self.config.series_every.into()) {
                layer.synchronizer.sample(layer.steps, report.live_mask);
            }
            layer.synchronizer.advance(report.given_mask, |reached| {
                let Reached { seed, generation, number, alpha } = reached;
                tell(LaneEvent::AlphaReached { layer: request.layer, seed, generation, number, alpha });
            });
        }
        Ok(())
    }

    /// Runs a backward pass and spends its ticket.
    pub(super) fn backward(
        &mut self,
        request: &Backward,
        arena: &Arc<dyn Memory>,
        completion: &mut Completion,
        tell: &dyn Fn(LaneEvent),
    ) -> Result<(), EngineError> {
        let layer = find(&mut self.open, request.layer)?;
        let report = layer.synchronizer.backward(request, arena, &mut self.quota);
        let report = report.inspect_err(|error| layer.refused(request.layer, error, tell))?;
        completion.live_mask = report.live_mask;
        layer.failed(request.layer, &report.failures, completion, tell);
        Ok(())
    }

    /// Spends a ticket without a backward.
    pub(super) fn release(&mut self, request: &Release) -> Result<(), EngineError> {
        find(&mut self.open, request.layer)?.synchronizer.release(request.ticket, &mut self.quota)
    }
}

impl Layer {
    /// Tells of a host's first failure, as of a seed's.
    fn refused(&mut self, layer: LayerId, error: &EngineError, tell: &dyn Fn(LaneEvent)) {
        let EngineError::Host { error } = error else { return };
        let Some((seed, live)) = self.synchronizer.host() else { return };
        if self.told & bit(seed) == 0 {
            self.told |= bit(seed);
            let (kernel, generation) = (live.kernel().id().clone(), live.generation());
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
            let SeedFailure { seed, kernel, generation, error, unloaded, alpha, course } = failure;
            completion.set_failed(*seed, error.failure());
            if n == 0 {
                completion.set_message(&error.to_string());
            }
            let is_first = self.told & bit(*seed) == 0;
            self.told |= bit(*seed);
            let (seed, generation) = (*seed, *generation);
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
}

fn find(open: &mut BTreeMap<LayerId, Layer>, layer: LayerId) -> Result<&mut Layer, EngineError> {
    open.get_mut(&layer).ok_or(EngineError::LayerUnknown { layer })
}

fn bit(seed: SeedIndex) -> u64 {
    1u64.checked_shl(seed.0.into()).unwrap_or(0)
}
