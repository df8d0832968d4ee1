//! What a record says in words and numbers.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    digest::Digest,
    id::{Generation, KernelId, LayerId, SeedIndex, SessionId},
    tensor::{DType, Shape},
};

/// The version of the format. A record of another one is refused.
pub const VERSION: u32 = 1;

/// Which way a pass went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// The kernel itself.
    Forward,
    /// Its gradient.
    Backward,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Forward => "forward",
            Self::Backward => "backward",
        })
    }
}

/// The daemon's settings that a pass depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// The longest a pass may take, in nanoseconds.
    pub time_limit_ns: u64,
    /// The longest a plan may take to be made, in nanoseconds.
    pub plan_time_limit_ns: u64,
    /// Whether an output that is not finite is a failure.
    pub non_finite_guard: bool,
    /// Whether passes in training mode measure their outputs for the seeds' series, which is part of their plans.
    pub series: bool,
    /// Bytes that a plan's workspace and saved values may take.
    pub max_plan_bytes: u64,
    /// Floating-point operations that a plan may need for one sample.
    pub max_flops: u64,
    /// Threads that worked on the pass.
    pub threads: u32,
    /// Whether 3×3 convolutions on the CPU went by Winograd's algorithm where that is faster; older records do not say.
    #[serde(default = "yes")]
    pub winograd: bool,
}

fn yes() -> bool {
    true
}

/// Who failed in which pass, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// [`VERSION`].
    pub format: u32,
    /// Kasmina's version.
    pub version: String,
    /// When it failed, in milliseconds since 1970.
    pub time_unix_ms: i64,
    /// What it ran on.
    pub device: String,
    /// The kernel.
    pub kernel: KernelId,
    /// SHA-256 of its artifact.
    pub digest: Digest,
    /// The session.
    pub session: SessionId,
    /// Whose session it is.
    pub uid: u32,
    /// The layer.
    pub layer: LayerId,
    /// The seed; the slot after the last one is the layer's host.
    pub seed: SeedIndex,
    /// Which of the seed's kernels it was.
    pub generation: Generation,
    /// `blended`, `straight` or `host`.
    pub role: String,
    /// The blend factor.
    pub alpha: f32,
    /// Training forwards of the layer that had gone well before.
    pub step: u64,
    /// Which way.
    pub direction: Direction,
    /// Whether it was a forward that was run again for its backward. One that has not come back (`elapsed_ns` is
    /// absent) has the buffers of the seed as they were then: those that it was to read are out with it.
    pub again: bool,
    /// Training mode.
    pub train: bool,
    /// Decides every dropout mask.
    pub rng_seed: u64,
    /// Element type of input and output.
    pub dtype: DType,
    /// The input's sizes, the batch first.
    pub input_shape: Shape,
    /// The sizes that the layer needs of the output.
    pub output_shape: Shape,
    /// Whether the plans give the gradient of the input.
    pub wants_input: bool,
    /// Whether the plans give the gradients of the parameters.
    pub wants_parameters: bool,
    /// The error's stable code.
    pub code: String,
    /// The error in words.
    pub message: String,
    /// How long it ran before it failed, in nanoseconds; absent where it was not run or has not come back.
    pub elapsed_ns: Option<u64>,
    /// How long it might run when it began, in nanoseconds: what planning and the pass's other parts had left of the
    /// time limit. Absent where it was not run or has not come back.
    pub allowed_ns: Option<u64>,
    /// The settings it ran under.
    pub settings: Settings,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_does_not_say_how_convolutions_went_had_winograds() {
        let text = r#"{"time_limit_ns": 1, "plan_time_limit_ns": 2, "non_finite_guard": true, "series": false,
            "max_plan_bytes": 3, "max_flops": 4, "threads": 5}"#;
        assert!(serde_json::from_str::<Settings>(text).unwrap().winograd);
    }
}
