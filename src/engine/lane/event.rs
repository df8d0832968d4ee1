//! What a lane tells the control plane unasked.

use std::sync::Arc;

use crate::{
    engine::{Alpha, Course, EngineError},
    fault::Fault,
    id::{Generation, KernelId, LayerId, SeedIndex},
    wire::WireError,
};

/// Where a lane's events go. Called on the lane's thread between two passes, so it must not block.
pub type EventSink = Box<dyn Fn(LaneEvent) + Send>;

/// Something that happened on a lane.
#[derive(Clone, Debug)]
pub enum LaneEvent {
    /// A pass of a seed failed for the first time since its kernel was attached. Later failures are counted
    /// and kept as the seed's last error, but not told here, or a kernel that fails on every second pass
    /// would flood the control plane.
    SeedFailed {
        /// The layer.
        layer: LayerId,
        /// The slot.
        seed: SeedIndex,
        /// Which of its kernels.
        generation: Generation,
        /// The kernel's name.
        kernel: KernelId,
        /// Why.
        error: EngineError,
    },
    /// A pass of a shape that its seed had not run before has made the kernel heavier: by a plan, or by the memory
    /// that the seed runs it in. Once for each such shape.
    Planned {
        /// Which kernel.
        kernel: KernelId,
    },
    /// As many passes in a row have failed as the configuration allows: the lane has taken the kernel out.
    SeedUnloaded {
        /// The layer.
        layer: LayerId,
        /// The slot.
        seed: SeedIndex,
        /// Which of its kernels.
        generation: Generation,
        /// Why the last pass failed.
        error: EngineError,
        /// The blend factor that it had.
        alpha: Alpha,
        /// The course that this was on.
        course: Option<Course>,
    },
    /// A seed's blend factor has reached its target.
    AlphaReached {
        /// The layer.
        layer: LayerId,
        /// The slot.
        seed: SeedIndex,
        /// Which of its kernels.
        generation: Generation,
        /// The number of the course that has ended.
        number: u64,
        /// Where it has ended.
        alpha: Alpha,
    },
    /// The lane has ended and what it held is free. Always the last event, and there is always one.
    Ended(LaneEnd),
}

/// Why a lane ended.
#[derive(Clone, Debug)]
pub enum LaneEnd {
    /// It was told to.
    Stopped,
    /// The trainer is gone.
    PeerGone,
    /// The trainer broke the protocol, or the system failed the lane.
    Wire(Arc<WireError>),
    /// A request contradicts its layer or its ticket.
    Request(EngineError),
    /// The device has failed for good: what the session has there is gone, and its trainer is better served by a closed
    /// connection, behind which the next daemon takes it in, than by refusals.
    DeviceLost {
        /// What failed.
        reason: String,
    },
    /// A defect of ours.
    Panicked {
        /// The panic's message.
        message: String,
    },
}

impl LaneEnd {
    /// The stable code of the error it ended with, if it did.
    pub fn code(&self) -> Option<&'static str> {
        match self {
            Self::Stopped | Self::PeerGone => None,
            Self::Wire(error) => Some(error.code()),
            Self::Request(error) => Some(error.code()),
            Self::DeviceLost { .. } => Some("device.lost"),
            Self::Panicked { .. } => Some("internal.bug"),
        }
    }
}
