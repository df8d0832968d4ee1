//! Plans made beside whatever runs, so that no pass has to make them: for the batches and modes that the layer's passes
//! come in.

use std::sync::Arc;

use super::SeedParts;
use crate::{
    actor::ActorError,
    engine::{Kernel, PlanKey},
    wire::GraftRole,
};

/// How often the layer is asked again, while what was planned is not all that has been run by then. A layer whose every
/// batch has another size is not waited for.
const ROUNDS: usize = 3;

impl SeedParts {
    /// Plans a kernel for what the layer's latest passes were. One that does not take all of it is none the less taken:
    /// its passes of that kind fail at once.
    pub(super) async fn plan_ahead(&self, kernel: &Arc<Kernel>, role: GraftRole) -> Result<(), ActorError> {
        for _ in 0..ROUNDS {
            let keys = self.lane.upcoming(self.layer, self.seed).await?.keys;
            let is_missing = |key: &PlanKey| !kernel.is_planned(key, &*self.backend);
            let missing: Vec<PlanKey> = wanted(keys, role).into_iter().filter(is_missing).collect();
            if missing.is_empty() {
                break;
            }
            let (kernel, backend, config) = (kernel.clone(), self.backend.clone(), self.config.clone());
            let planned = tokio::task::spawn_blocking(move || {
                for key in missing {
                    if let Err(error) = kernel.plans(&key, &*backend, &config) {
                        tracing::debug!(kernel = %kernel.id(), input = %key.input_shape, %error, "not planned");
                    }
                }
            });
            planned.await.map_err(|_| ActorError::Lost { what: "planning the kernel" })?;
        }
        Ok(())
    }

    /// The same of a kernel that learns behind the layer and is about to be blended.
    pub(super) async fn plan_for_blending(&self) -> Result<(), ActorError> {
        let live = self.lane.upcoming(self.layer, self.seed).await?.live;
        match live {
            Some(live) => self.plan_ahead(live.kernel(), GraftRole::Blend).await,
            None => Ok(()),
        }
    }
}

/// What a seed in a role is asked for in passes such as these. One that learns behind the layer is to be blended later.
fn wanted(keys: Vec<PlanKey>, role: GraftRole) -> Vec<PlanKey> {
    match role {
        GraftRole::Blend => keys,
        GraftRole::Train => {
            keys.iter().filter(|key| key.train).map(PlanKey::straight).chain(keys.clone()).collect()
        }
    }
}
