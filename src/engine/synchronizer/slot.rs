//! A seed's place in its layer.

use std::sync::Arc;

use super::witness::Late;
use crate::{
    backend::Backend,
    engine::{
        Alpha, Course, EngineConfig, EngineError, Kernel, LiveSeed, PlanKey, PlanSet, Role, SeedCounters,
        executor::SeedExecutor, recent::Recent, scratch::Scratch,
    },
};

/// Plans a seed remembers without asking its kernel, those that were used last; enough for train, eval and a last smaller batch.
pub(super) const REMEMBERED_PLANS: usize = 8;

/// A seed's place: its numbers stay when kernels come and go.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) counters: Arc<SeedCounters>,
    /// On the heap: a place without one is as small as it can be.
    pub(super) attached: Option<Box<Attached>>,
}

impl Slot {
    /// What is in it, if that is still what ran.
    pub(super) fn runs(&self, live: &Arc<LiveSeed>) -> Option<&Attached> {
        self.attached.as_deref().filter(|attached| Arc::ptr_eq(&attached.live, live))
    }
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
    /// There when the layer has a second live seed, or from the start where the device goes on by itself.
    pub(super) executor: Option<SeedExecutor>,
    /// A failing backward of it that is recorded when it has come back.
    pub(super) late: Option<Late>,
    plans: Recent<PlanKey, Arc<PlanSet>>,
    /// Whether it has asked its kernel for plans since [`take_grown`](Self::take_grown) was asked.
    asked: bool,
    /// What its kernel weighed when that last told of it.
    told_bytes: usize,
}

impl Attached {
    pub(super) fn new(live: Arc<LiveSeed>, alpha: Alpha, role: Role, scratch: Scratch) -> Self {
        let scratch = Some(Box::new(scratch));
        Self {
            live,
            alpha,
            course: None,
            role,
            scratch,
            executor: None,
            late: None,
            plans: Recent::new(REMEMBERED_PLANS),
            asked: false,
            told_bytes: 0,
        }
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

    /// The plans for a key: most of the time without a lock. Counts where somebody has to make them.
    pub(super) fn plans(
        &mut self,
        key: &PlanKey,
        backend: &dyn Backend,
        config: &EngineConfig,
        made: &mut u64,
    ) -> Result<Arc<PlanSet>, EngineError> {
        if let Some(plans) = self.plans.get(key) {
            return Ok(plans.clone());
        }
        self.asked = true;
        let kernel = self.live.kernel();
        *made += u64::from(!kernel.is_planned(key, backend));
        let plans = kernel.plans(key, backend, config)?;
        self.plans.insert(key.clone(), plans.clone());
        Ok(plans)
    }
}
