//! What an actor may answer instead of what it was asked for.

use std::sync::Arc;

use super::base::AskError;
use crate::{
    artifact::RewriteError,
    cache::{CacheError, FetchBudgetSpent, LookupError, TierError},
    engine::{EngineError, QuotaSpent},
    fault::{ErrorClass, Fault},
    id::{KernelId, LayerId, SeedIndex},
    validation::ValidationError,
    wire::WireError,
};

/// Why an actor could not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ActorError {
    /// Another actor did not answer.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// The kernel's bytes could not be found.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// The kernel was refused.
    #[error(transparent)]
    Validation(#[from] ValidationError),
    /// The cache has no room.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// A tier below it could not do its part.
    #[error(transparent)]
    Tier(#[from] TierError),
    /// There was no room for its bytes.
    #[error(transparent)]
    Budget(#[from] FetchBudgetSpent),
    /// An offered artifact is longer than any may be.
    #[error(
        "the offered artifact has {bytes} bytes, {limit} are allowed: offer a smaller module or raise validator.max_artifact_bytes"
    )]
    OfferTooLarge {
        /// How long it is said to be.
        bytes: u64,
        /// The bound.
        limit: u64,
    },
    /// An offered kernel is not in memory any more, and nowhere else.
    #[error(
        "kernel {kernel} is in memory or nowhere, and it is not there any more: offer its artifact again"
    )]
    NotOffered {
        /// The kernel.
        kernel: KernelId,
    },
    /// There are no other nodes to be told.
    #[error("no other node can be told: they share nothing without a Redis, set cache.redis.url")]
    NoFleet,
    /// The data plane refused.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The system or the peer failed the connection.
    #[error("{0}")]
    Wire(Arc<WireError>),
    /// A request that needs a greeting first.
    #[error("the first request must be hello or watch, and only that: this one is {verb}")]
    Greeting {
        /// What was asked.
        verb: &'static str,
    },
    /// A client that speaks another protocol.
    #[error("the client speaks protocol {asked}, this daemon speaks {ours}: install matching versions")]
    Protocol {
        /// The client's.
        asked: u32,
        /// Ours.
        ours: u32,
    },
    /// A trainer whose tensors lie on a GPU, and a device whose memory nobody else can map.
    #[error(
        "the trainer's tensors are to lie on a GPU, and the daemon runs kernels on {devices}, whose memory no other process can map: have it run on that GPU (device.kind, device.ordinals), or connect without device="
    )]
    NotShared {
        /// What the daemon runs kernels on.
        devices: String,
    },
    /// A trainer whose tensors lie on another GPU.
    #[error(
        "the trainer's tensors lie on the GPU {asked}, and the daemon runs kernels on {ours}: train there, or have the daemon take that one too (device.ordinals)"
    )]
    OtherGpu {
        /// The trainer's.
        asked: String,
        /// The daemon's, with what it calls them.
        ours: String,
    },
    /// No such layer in this session.
    #[error("the session has no layer {layer}")]
    LayerUnknown {
        /// The number asked for.
        layer: LayerId,
    },
    /// No such seed in the layer.
    #[error("layer {layer} has {seeds} seeds, there is no seed {seed}")]
    SeedUnknown {
        /// The layer.
        layer: LayerId,
        /// The number asked for.
        seed: SeedIndex,
        /// How many there are.
        seeds: usize,
    },
    /// The seed has no kernel.
    #[error("seed {seed} of layer {layer} has no kernel: graft one first")]
    NoKernel {
        /// The layer.
        layer: LayerId,
        /// The seed.
        seed: SeedIndex,
    },
    /// The kernel was pruned from the seed a short while ago.
    #[error(
        "kernel {kernel} was pruned from seed {seed} of layer {layer} and is not taken there again for another {left_ms} ms: graft another, or wait"
    )]
    Embargoed {
        /// The kernel.
        kernel: KernelId,
        /// The layer.
        layer: LayerId,
        /// The seed.
        seed: SeedIndex,
        /// How long still.
        left_ms: u64,
    },
    /// A kernel that was to come back into its seed is not what it was.
    #[error(
        "kernel {kernel} has other parameters or buffers now than the seed has memory for: graft it anew"
    )]
    Changed {
        /// The kernel.
        kernel: KernelId,
    },
    /// A kernel that was unloaded has come back with other bytes under its name.
    #[error(
        "kernel {kernel} was unloaded, and under its name there are other bytes now than those that were grafted: take the seed's weights alone, or graft the kernel anew"
    )]
    Replaced {
        /// The kernel.
        kernel: KernelId,
    },
    /// A seed's weights cannot stand in its kernel's artifact.
    #[error("the artifact of kernel {kernel} does not take the seed's weights: {source}")]
    Export {
        /// The kernel.
        kernel: KernelId,
        /// Why.
        source: Box<RewriteError>,
    },
    /// The session holds as much as it may.
    #[error("at most {limit} {what} are allowed, this would be more: close some or raise the limit")]
    Quota {
        /// What is counted.
        what: &'static str,
        /// The bound.
        limit: u64,
    },
    /// As many watch as may, which no setting changes.
    #[error("at most {limit} {what} are allowed, this would be one more: close one")]
    Watchers {
        /// Whose.
        what: &'static str,
        /// The bound.
        limit: usize,
    },
    /// A quota that is counted in a ledger is used up.
    #[error(transparent)]
    Spent(#[from] QuotaSpent),
    /// Something changed while the kernel was being loaded.
    #[error("loading kernel {kernel} was given up, because the seed was pruned or grafted anew meanwhile")]
    Superseded {
        /// The kernel.
        kernel: KernelId,
    },
    /// It was evicted again and again while it was being loaded.
    #[error("kernel {kernel} was evicted each time it had been loaded: ask again when nobody evicts it")]
    Evicted {
        /// The kernel.
        kernel: KernelId,
    },
    /// A graft was to be finished that was not begun, or was finished already.
    #[error("no graft of seed {seed} of layer {layer} is under way: begin one first")]
    NothingLoads {
        /// The layer.
        layer: LayerId,
        /// The seed.
        seed: SeedIndex,
    },
    /// The daemon is about to leave.
    #[error("the daemon is shutting down and takes no new work: connect again once it is back")]
    Draining,
    /// A task of ours ended without a result.
    #[error("{what} ended without a result: see the daemon's log")]
    Lost {
        /// What was under way.
        what: &'static str,
    },
}

impl From<WireError> for ActorError {
    fn from(error: WireError) -> Self {
        Self::Wire(Arc::new(error))
    }
}

impl Fault for ActorError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Ask(error) => error.class(),
            Self::Lookup(error) => error.class(),
            Self::Validation(error) => error.class(),
            Self::Cache(error) => error.class(),
            Self::Tier(error) => error.class(),
            Self::Budget(error) => error.class(),
            Self::OfferTooLarge { .. } => ErrorClass::Invalid,
            Self::NotOffered { .. } => ErrorClass::NotFound,
            Self::NoFleet => ErrorClass::Invalid,
            Self::Engine(error) => error.class(),
            Self::Wire(error) => error.class(),
            Self::Greeting { .. }
            | Self::Protocol { .. }
            | Self::NotShared { .. }
            | Self::OtherGpu { .. } => ErrorClass::Invalid,
            Self::LayerUnknown { .. }
            | Self::SeedUnknown { .. }
            | Self::NoKernel { .. }
            | Self::NothingLoads { .. } => ErrorClass::NotFound,
            Self::Spent(spent) => spent.class(),
            Self::Changed { .. } | Self::Replaced { .. } => ErrorClass::Invalid,
            Self::Export { source, .. } => source.class(),
            Self::Quota { .. } | Self::Watchers { .. } | Self::Evicted { .. } | Self::Embargoed { .. } => {
                ErrorClass::Overloaded
            }
            Self::Superseded { .. } | Self::Draining => ErrorClass::Cancelled,
            Self::Lost { .. } => ErrorClass::Bug,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Ask(error) => error.code(),
            Self::Lookup(error) => error.code(),
            Self::Validation(error) => error.code(),
            Self::Cache(error) => error.code(),
            Self::Tier(error) => error.code(),
            Self::Budget(error) => error.code(),
            Self::OfferTooLarge { .. } => "kernel.rejected",
            Self::NotOffered { .. } => "kernel.not_offered",
            Self::NoFleet => "cache.no_fleet",
            Self::Engine(error) => error.code(),
            Self::Wire(error) => error.code(),
            Self::Greeting { .. } | Self::Protocol { .. } => "session.protocol",
            Self::NotShared { .. } | Self::OtherGpu { .. } => "session.device",
            Self::LayerUnknown { .. } => "layer.unknown",
            Self::SeedUnknown { .. } => "seed.unknown",
            Self::NoKernel { .. } => "seed.no_kernel",
            Self::Embargoed { .. } => "seed.embargoed",
            Self::Changed { .. } | Self::Replaced { .. } => "kernel.changed",
            Self::Export { source, .. } => source.code(),
            Self::Spent(spent) => spent.code(),
            Self::Quota { .. } | Self::Watchers { .. } => "session.quota",
            Self::Superseded { .. } => "seed.superseded",
            Self::Evicted { .. } => "kernel.evicted",
            Self::NothingLoads { .. } => "seed.not_loading",
            Self::Draining => "shutdown.draining",
            Self::Lost { .. } => "internal.bug",
        }
    }
}
