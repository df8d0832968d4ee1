//! What can go wrong with a seed, a pass or a ticket.

use super::QuotaSpent;
use crate::{
    backend::{BuildError, RunError},
    fault::{ErrorClass, Fault},
    graph::GraphError,
    id::{KernelId, LayerId, SeedIndex, TicketId},
    tensor::{DType, Shape, ShapeError},
    wire::{FailureKind, SeedState},
};

/// Why the engine refuses or fails.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum EngineError {
    /// A seed cannot go from one state to another.
    #[error("a seed cannot go from {from} to {to}")]
    Transition {
        /// Where it stands.
        from: SeedState,
        /// Where it was to go.
        to: SeedState,
    },
    /// A blend factor out of range.
    #[error("alpha {value} is not in [0, 1]")]
    Alpha {
        /// What was given.
        value: f32,
    },
    /// A blend factor that a pass was given, out of range.
    #[error("alpha {value} given for seed {seed} is not in [0, 1]")]
    GivenAlpha {
        /// Whose.
        seed: SeedIndex,
        /// What was given.
        value: f32,
    },
    /// A schedule that makes no sense.
    #[error("the schedule is refused: {reason}")]
    Schedule {
        /// What is wrong with it.
        reason: String,
    },
    /// The kernel's weights do not fit the address space.
    #[error("kernel {kernel} is too large: {source}")]
    TooLarge {
        /// The kernel.
        kernel: KernelId,
        /// Why.
        source: ShapeError,
    },
    /// The program cannot be lowered for this input.
    #[error("kernel {kernel} does not take {dtype} {input}: {reason}")]
    Lower {
        /// The kernel.
        kernel: KernelId,
        /// The input's shape.
        input: Shape,
        /// The input's type.
        dtype: DType,
        /// The stable code of what lies behind.
        code: &'static str,
        /// What lies behind.
        reason: String,
    },
    /// The kernel gives no output or more than one.
    #[error("kernel {kernel} gives {count} outputs: a seed needs exactly one")]
    Outputs {
        /// The kernel.
        kernel: KernelId,
        /// How many.
        count: usize,
    },
    /// The kernel's output does not fit the layer's.
    #[error("kernel {kernel} gives {actual_dtype} {actual}, the layer needs {expected_dtype} {expected}")]
    Output {
        /// The kernel.
        kernel: KernelId,
        /// The layer's shape.
        expected: Shape,
        /// The layer's type.
        expected_dtype: DType,
        /// The kernel's shape.
        actual: Shape,
        /// The kernel's type.
        actual_dtype: DType,
    },
    /// The kernel has no backward pass.
    #[error("kernel {kernel} cannot be differentiated: {source}")]
    Gradient {
        /// The kernel.
        kernel: KernelId,
        /// Why.
        source: GraphError,
    },
    /// The device cannot run the kernel.
    #[error("kernel {kernel} cannot be planned: {source}")]
    Build {
        /// The kernel.
        kernel: KernelId,
        /// Why.
        source: BuildError,
    },
    /// A pass would compute too much.
    #[error(
        "kernel {kernel} needs {needed} floating-point operations for one sample of {input}, {limit} are allowed: use a smaller input or raise validator.max_flops"
    )]
    Flops {
        /// The kernel.
        kernel: KernelId,
        /// The input's shape, the batch first.
        input: Shape,
        /// What forward and backward need together.
        needed: u64,
        /// What is allowed.
        limit: u64,
    },
    /// A blend cannot be planned.
    #[error("the blend of the layer cannot be planned: {reason}")]
    Blend {
        /// Why.
        reason: String,
    },
    /// A run failed.
    #[error("{what} failed: {source}")]
    Run {
        /// Which kernel, or the blend.
        what: String,
        /// Why.
        source: RunError,
    },
    /// A run panicked; a defect of ours, contained in its seed.
    #[error("kernel {kernel} panicked: {message}")]
    Panicked {
        /// The kernel.
        kernel: KernelId,
        /// The panic's message.
        message: String,
    },
    /// An output holds an infinity or a NaN.
    #[error("kernel {kernel} gave an infinity or a NaN")]
    NonFinite {
        /// The kernel.
        kernel: KernelId,
    },
    /// An earlier run of the seed has not come back yet.
    #[error("kernel {kernel} has not come back from an earlier pass that passed its time limit")]
    Busy {
        /// The kernel.
        kernel: KernelId,
    },
    /// A seed's memory file is too small for its kernel.
    #[error("the memory for kernel {kernel} has {actual_bytes} bytes, {needed_bytes} are needed")]
    MemoryTooSmall {
        /// The kernel.
        kernel: KernelId,
        /// What it needs.
        needed_bytes: usize,
        /// What was given.
        actual_bytes: usize,
    },
    /// The session has no such layer.
    #[error("layer {layer} is not open in this session")]
    LayerUnknown {
        /// Which.
        layer: LayerId,
    },
    /// The layer has no such seed.
    #[error("layer {layer} has {seeds} seeds, no seed {seed}")]
    SeedUnknown {
        /// The layer.
        layer: LayerId,
        /// Which.
        seed: SeedIndex,
        /// How many there are.
        seeds: usize,
    },
    /// The host's slot has one role, and no other slot has it.
    #[error(
        "slot {seed} of layer {layer} is {}: only the slot after the seeds of a layer opened with a host is the host",
        if *is_host { "the host" } else { "a seed" }
    )]
    Role {
        /// The layer.
        layer: LayerId,
        /// Which slot.
        seed: SeedIndex,
        /// Whether it is the host's.
        is_host: bool,
    },
    /// A pass of a layer whose host the daemon runs and does not have.
    #[error("layer {layer} was opened with a host and has none: graft one first")]
    NoHost {
        /// Which.
        layer: LayerId,
    },
    /// The host failed. There is nothing to fall back to, so the pass is refused.
    #[error("the host failed: {error}")]
    Host {
        /// What happened.
        error: Box<EngineError>,
    },
    /// The seed has no kernel that runs.
    #[error("seed {seed} of layer {layer} has no kernel that runs: graft one first")]
    Vacant {
        /// The layer.
        layer: LayerId,
        /// Which seed.
        seed: SeedIndex,
    },
    /// The session never took this ticket.
    #[error("ticket {ticket} was never taken in this session")]
    TicketUnknown {
        /// Which.
        ticket: TicketId,
    },
    /// The ticket has had its backward, was released, or belongs to another layer.
    #[error("ticket {ticket} has had its backward or was released: run the forward pass again")]
    TicketSpent {
        /// Which.
        ticket: TicketId,
    },
    /// The session holds as much as it may.
    #[error("the session would hold more than {limit} {what}: spend or release tickets first")]
    Quota {
        /// What is counted.
        what: &'static str,
        /// How many are allowed.
        limit: u64,
    },
    /// A quota that is counted in the session's ledger is used up.
    #[error(transparent)]
    Spent(#[from] QuotaSpent),
    /// A request contradicts its layer or its ticket.
    #[error("the request does not fit: {reason}")]
    Request {
        /// What does not fit.
        reason: String,
    },
    /// The system gives no thread.
    #[error("no thread for {name}: {reason}")]
    Thread {
        /// The thread's name.
        name: String,
        /// What the system said.
        reason: String,
    },
    /// The lane has ended; its session is over.
    #[error("the session's lane has ended")]
    LaneGone,
}

impl EngineError {
    /// What a run is told as that failed: `what` ran.
    pub(crate) fn of_run(what: &str) -> impl Fn(RunError) -> Self + Copy {
        move |source| Self::Run { what: what.to_owned(), source }
    }

    /// The same of a kernel's run, or of what it needs on its device.
    pub fn of_kernel(kernel: &KernelId) -> impl Fn(RunError) -> Self + Copy {
        move |source| Self::Run { what: format!("kernel {kernel}"), source }
    }

    /// Whether it says something of the device and nothing of the kernel.
    pub(super) fn is_the_devices(&self) -> bool {
        matches!(self, Self::Run { source: RunError::OutOfMemory { .. } | RunError::Device { .. }, .. })
    }

    /// The kind of failure a seed's statistics count this as.
    pub fn failure(&self) -> FailureKind {
        match self {
            Self::Lower { code: "kernel.shape", .. } | Self::Output { .. } => FailureKind::Shape,
            Self::Lower { .. } | Self::Outputs { .. } | Self::Gradient { .. } => FailureKind::Deserialize,
            Self::Run { source: RunError::Timeout { .. }, .. } | Self::Busy { .. } => FailureKind::Timeout,
            Self::NonFinite { .. } => FailureKind::NonFinite,
            Self::Host { error } => error.failure(),
            _ => FailureKind::Runtime,
        }
    }
}

impl Fault for EngineError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Panicked { .. } | Self::Blend { .. } => ErrorClass::Bug,
            Self::LayerUnknown { .. }
            | Self::SeedUnknown { .. }
            | Self::Vacant { .. }
            | Self::TicketUnknown { .. } => ErrorClass::NotFound,
            Self::Quota { .. }
            | Self::Busy { .. }
            | Self::Thread { .. }
            | Self::Run { source: RunError::OutOfMemory { .. }, .. } => ErrorClass::Overloaded,
            Self::Run { source: RunError::Device { .. }, .. } => ErrorClass::Unavailable,
            Self::Spent(spent) => spent.class(),
            Self::LaneGone => ErrorClass::Cancelled,
            Self::Host { error } => error.class(),
            _ => ErrorClass::Invalid,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Transition { .. } => "seed.transition",
            Self::Alpha { .. } | Self::GivenAlpha { .. } => "seed.alpha",
            Self::Schedule { .. } => "seed.schedule",
            Self::Vacant { .. } => "seed.no_kernel",
            Self::NoHost { .. } => "layer.no_host",
            // As of a seed that failed: these alone have numbers on the wire.
            Self::Host { error } => error.failure().code(),
            Self::Lower { code, .. } => code,
            Self::Gradient { source, .. } => source.code(),
            Self::Outputs { .. } | Self::Output { .. } => "kernel.shape",
            Self::Build { source: BuildError::TooMuchMemory { .. }, .. } | Self::Quota { .. } => {
                "session.quota"
            }
            Self::Spent(spent) => spent.code(),
            Self::Build { .. } | Self::Flops { .. } | Self::TooLarge { .. } => "kernel.rejected",
            Self::Run { source: RunError::Timeout { .. }, .. } | Self::Busy { .. } => "kernel.timeout",
            Self::Run { .. } | Self::Panicked { .. } => "kernel.runtime",
            Self::NonFinite { .. } => "kernel.non_finite",
            Self::LayerUnknown { .. } => "layer.unknown",
            Self::SeedUnknown { .. } => "seed.unknown",
            Self::Role { .. } => "seed.role",
            Self::TicketUnknown { .. } => "ticket.unknown",
            Self::TicketSpent { .. } => "ticket.spent",
            Self::Request { .. } | Self::LaneGone => "session.protocol",
            Self::Blend { .. } | Self::MemoryTooSmall { .. } | Self::Thread { .. } => "internal.bug",
        }
    }
}
