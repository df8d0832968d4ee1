//! A seed's place in its layer.

use std::sync::Arc;

use crate::{
    backend::Backend,
    engine::{
        Alpha, Course, EngineConfig, EngineError, Kernel, LiveSeed, PlanKey, PlanSet, Role, SeedCounters,
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
    /// How the blend factor goes on; none where it stays.
    pub(super) course: Option<Course>,
    pub(super) role: Role,
    /// Absent while a late job has it.
    pub(super) scratch: Option<Box<Scratch>>,
    /// Started when the layer has a second live seed.
    pub(super) executor: Option<SeedExecutor>,
    plans: Vec<(PlanKey, Arc<PlanSet>)>,
    /// Whether it has asked its kernel for plans since [`take_grown`](Self::take_grown) was asked.
    asked: bool,
    /// What its kernel weighed when that last told of it.
    told_bytes: usize,
}

impl Attached {
    pub(super) fn new(live: Arc<LiveSeed>, alpha: Alpha, role: Role) -> Self {
        let scratch = Some(Box::new(Scratch::new()));
        let plans = Vec::with_capacity(REMEMBERED_PLANS);
        Self { live, alpha, course: None, role, scratch, executor: None, plans, asked: false, told_bytes: 0 }
    }

    /// The kernel, if it weighs something else since a pass of this seed asked it for plans.
    pub(super) fn take_grown(&mut self) -> Option<&Arc<Kernel>> {
        if !std::mem::take(&mut self.asked) {
            return None;
        }
        let kernel = self.live.kernel();
        let bytes = kernel.resident_bytes();
        (std::mem::replace(&mut self.told_bytes, bytes) != bytes).then_some(kernel)
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
        self.asked = true;
        let plans = self.live.kernel().plans(key, backend, config)?;
        if self.plans.len() == REMEMBERED_PLANS {
            self.plans.remove(0);
        }
        self.plans.push((key.clone(), plans.clone()));
        Ok(plans)
    }
}
