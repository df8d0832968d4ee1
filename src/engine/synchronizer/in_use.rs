//! What a layer's passes ask plans for, so that a kernel can be planned beside them before it runs in them.

use super::GradientSynchronizer;
use crate::engine::PlanKey;

impl GradientSynchronizer {
    /// Takes note of a pass. Where it is like one of the latest, nothing is allocated.
    pub(super) fn note_in_use(&mut self, key: &PlanKey) {
        if self.in_use.get(key).is_none() {
            self.in_use.insert(key.clone(), ());
        }
    }

    /// What the latest passes were, as a blended seed's plans depend on it, the latest first.
    pub fn keys_in_use(&self) -> Vec<PlanKey> {
        self.in_use.iter().map(|(key, ())| key.clone()).collect()
    }

    /// How many plans passes have had to make or to wait for since this was last asked: those of kernels, of the blend
    /// and of sums.
    pub fn take_plans_made(&mut self) -> u64 {
        std::mem::take(&mut self.plans_made) + std::mem::take(&mut self.blender.plans_made)
    }
}
