//! What moves a seed along its life: schedules of its blend factor, and the verbs that begin and end them.

use serde::{Deserialize, Serialize};

use crate::id::{LayerId, SeedIndex};

/// How a blend factor goes from where it is to its target. `docs/lifecycle.md` has the formulas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// At the target from the first step to the last.
    Constant,
    /// In equal steps.
    #[default]
    Linear,
    /// Slowly at both ends, by half a wave of the cosine.
    Cosine,
    /// Slowly at both ends, by a logistic curve that is stretched to begin and end at the endpoints.
    Sigmoid,
}

/// A way for a blend factor: one step for each training forward of the layer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleSpec {
    /// Which curve.
    pub kind: ScheduleKind,
    /// How many steps, at least 1.
    pub steps: u32,
    /// Where it ends, in [0, 1].
    pub target: f32,
    /// How steep a sigmoid is in its middle, in [0.01, 100]; 12 where it is left out. The other kinds have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steepness: Option<f32>,
    /// How many steps count as done already, fewer than `steps`: for a way that began elsewhere.
    #[serde(default, skip_serializing_if = "is_none_done")]
    pub done: u32,
}

fn is_none_done(done: &u32) -> bool {
    *done == 0
}

/// Asks for a schedule from now on.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StartBlend {
    /// The layer.
    pub layer: LayerId,
    /// The seed.
    pub seed: SeedIndex,
    /// How the blend factor goes.
    pub schedule: ScheduleSpec,
    /// Where it starts, in [0, 1]; left out, where it is, and at 0 for a seed in training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f32>,
}

/// Makes a seed's kernel part of its layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fossilize {
    /// The layer.
    pub layer: LayerId,
    /// The seed.
    pub seed: SeedIndex,
    /// Whether its parameters are to be trained no more. The client sees to that; the daemon gives gradients as
    /// they are asked for.
    #[serde(default)]
    pub freeze: bool,
}

/// Takes a seed's kernel out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prune {
    /// The layer.
    pub layer: LayerId,
    /// The seed.
    pub seed: SeedIndex,
    /// For how many milliseconds the seed then refuses this kernel; left out, as long as `engine.embargo` says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub embargo_ms: Option<u64>,
}
