//! A seed's place in its layer.

use std::sync::Arc;

use crate::{
    backend::Backend,
    engine::{
        Alpha, EngineConfig, EngineError, LiveSeed, PlanKey, PlanSet, Role, SeedCounters,
        executor::SeedExecutor, job::Scratch,
    },
};

/// Plans a seed remembers without asking its kernel; enough for train, eval and a last smaller batch.
const REMEMBERED_PLANS: usize = 8;

/// A seed's place: its numbers stay when kernels come and go.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) counters: Arc<SeedCounters>,
    pub(super) attached: Option<Attached>,
}

/// A live seed in its place.
#[derive(Debug)]
pub(super) struct Attached {
    pub(super) live: Arc<LiveSeed>,
    pub(super) alpha: Alpha,
    pub(super) role: Role,
    /// Absent while a late job has it.
    pub(super) scratch: Option<Box<Scratch>>,
    /// Started when the layer has a second live seed.
    pub(super) executor: Option<SeedExecutor>,
    plans: Vec<(PlanKey, Arc<PlanSet>)>,
}

impl Attached {
    pub(super) fn new(live: Arc<LiveSeed>, alpha: Alpha, role: Role) -> Self {
        let scratch = Some(Box::new(Scratch::new()));
        Self { live, alpha, role, scratch, executor: None, plans: Vec::with_capacity(REMEMBERED_PLANS) }
    }

    /// The plans for a key: most of the time without a lock.
    pub(super) fn plans(
        &mut self,
        key: &PlanKey,
        backend: &dyn Backend,
        config: &EngineConfig,
    ) -> Result<Arc<PlanSet>, EngineError> {
        if let Some((_, plans)) = self.plans.iter().find(|(known, _)| known == key) {
            return Ok(plans.clone());
        }
        let plans = self.live.kernel().plans(key, backend, config)?;
        if self.plans.len() == REMEMBERED_PLANS {
            self.plans.remove(0);
        }
        self.plans.push((key.clone(), plans.clone()));
        Ok(plans)
    }
}
