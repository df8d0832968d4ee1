//! What the control plane asks of a lane.

use std::{fmt, sync::Arc};

use crate::{
    engine::{Alpha, Course, EngineError, LayerSpec, LiveSeed, PlanKey, Role},
    id::{Generation, LayerId, SeedIndex},
    wire::ScheduleSpec,
};

/// Takes the answer to a command. It runs on the lane's thread, so it must not block; a lane that ends
/// before it comes to a command drops the answer uncalled.
pub type Answer<T> = Box<dyn FnOnce(T) + Send>;

/// What a lane's thread is asked to do between two passes.
pub enum LaneCommand {
    /// Opens a layer. A layer that is open already is an error.
    OpenLayer {
        /// Its number, its blend and its slots.
        spec: LayerSpec,
        /// Whether it is open now.
        answer: Answer<Result<(), EngineError>>,
    },
    /// Closes a layer: its seeds are detached, its tickets are released.
    CloseLayer {
        /// Its number.
        layer: LayerId,
        /// Whether there was such a layer.
        answer: Answer<Result<(), EngineError>>,
    },
    /// Puts a live seed into a slot, in place of the one that was there. Passes from now on run it; tickets
    /// taken before finish on the old one.
    Attach {
        /// The layer.
        layer: LayerId,
        /// The slot.
        seed: SeedIndex,
        /// The kernel with its memory.
        live: Arc<LiveSeed>,
        /// Its blend factor.
        alpha: Alpha,
        /// What it does in passes; in the host's slot it is the host all the same.
        role: Role,
        /// How the blend factor goes on from there, where it does; not in the host's slot.
        course: Option<Course>,
        /// Whether it runs now.
        answer: Answer<Result<(), EngineError>>,
    },
    /// Takes the kernel out of a slot; one without a kernel stays as it is.
    Detach {
        /// The layer.
        layer: LayerId,
        /// The slot.
        seed: SeedIndex,
        /// Which kernel was in it.
        answer: Answer<Result<Option<Generation>, EngineError>>,
    },
    /// Sets a slot's blend factor for the passes from now on, and ends its course.
    SetAlpha {
        /// The layer.
        layer: LayerId,
        /// The slot.
        seed: SeedIndex,
        /// The blend factor.
        alpha: Alpha,
        /// Whether there is such a slot.
        answer: Answer<Result<(), EngineError>>,
    },
    /// Has a slot's blend factor go by a schedule; a kernel that learned behind the layer goes into the blend.
    Blend {
        /// The layer.
        layer: LayerId,
        /// The slot; not the host's.
        seed: SeedIndex,
        /// How it goes.
        spec: ScheduleSpec,
        /// The number of the course.
        number: u64,
        /// Where it starts; where it is, if nothing is said.
        from: Option<Alpha>,
        /// The blend factor of the next pass.
        answer: Answer<Result<Alpha, EngineError>>,
    },
    /// Ends a slot's course where it is.
    Hold {
        /// The layer.
        layer: LayerId,
        /// The slot; not the host's.
        seed: SeedIndex,
        /// Where that is.
        answer: Answer<Result<Alpha, EngineError>>,
    },
    /// Sets what a slot's kernel does in the passes from now on.
    SetRole {
        /// The layer.
        layer: LayerId,
        /// The slot; not the host's.
        seed: SeedIndex,
        /// What it does.
        role: Role,
        /// Whether there is such a slot, and it may have that role.
        answer: Answer<Result<(), EngineError>>,
    },
    /// Tells what a layer's passes ask plans for, and what is in one of its slots.
    Upcoming {
        /// The layer.
        layer: LayerId,
        /// The slot.
        seed: SeedIndex,
        /// Both, or that there is no such slot.
        answer: Answer<Result<Upcoming, EngineError>>,
    },
    /// Tells what the lane holds.
    Snapshot {
        /// Its layers, tickets and bytes.
        answer: Answer<LaneSnapshot>,
    },
    /// From now on refuses forward passes; backward passes and releases of tickets go on.
    Drain,
    /// Ends the lane.
    Stop,
}

impl fmt::Debug for LaneCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OpenLayer { spec, .. } => write!(f, "OpenLayer({})", spec.id),
            Self::CloseLayer { layer, .. } => write!(f, "CloseLayer({layer})"),
            Self::Attach { layer, seed, live, .. } => write!(f, "Attach({layer}/{seed}, {live:?})"),
            Self::Detach { layer, seed, .. } => write!(f, "Detach({layer}/{seed})"),
            Self::SetAlpha { layer, seed, alpha, .. } => write!(f, "SetAlpha({layer}/{seed}, {alpha})"),
            Self::Blend { layer, seed, spec, .. } => write!(f, "Blend({layer}/{seed}, {spec:?})"),
            Self::Hold { layer, seed, .. } => write!(f, "Hold({layer}/{seed})"),
            Self::SetRole { layer, seed, role, .. } => write!(f, "SetRole({layer}/{seed}, {role:?})"),
            Self::Upcoming { layer, seed, .. } => write!(f, "Upcoming({layer}/{seed})"),
            Self::Snapshot { .. } => f.write_str("Snapshot"),
            Self::Drain => f.write_str("Drain"),
            Self::Stop => f.write_str("Stop"),
        }
    }
}

/// What a layer's next passes will want of a seed, as far as its latest tell.
#[derive(Clone, Debug)]
pub struct Upcoming {
    /// What the latest passes were, as a blended seed's plans depend on it, the latest first.
    pub keys: Vec<PlanKey>,
    /// What is live in the slot.
    pub live: Option<Arc<LiveSeed>>,
}

/// What a lane holds at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LaneSnapshot {
    /// By layer, in order of their numbers.
    pub layers: Vec<LayerSnapshot>,
    /// Tickets taken and not yet spent, of all layers.
    pub tickets: u64,
    /// Bytes that those tickets hold.
    pub saved_bytes: u64,
}

/// What one layer holds at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerSnapshot {
    /// Its number.
    pub layer: LayerId,
    /// Tickets taken and not yet spent.
    pub tickets: u64,
    /// Bytes that those tickets hold.
    pub saved_bytes: u64,
    /// Rises whenever a slot gets or loses a kernel.
    pub generation: u64,
}
