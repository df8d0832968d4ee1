//! What two processes share: frames on a control connection, an arena of memory, rings of descriptors,
//! doorbells.
//!
//! A session has one Unix stream socket for control (JSON in frames, file descriptors beside them) and one
//! arena: a sealed memory file with a submission ring, a completion ring and a heap. Tensors lie in the
//! heap and never pass through a socket. Both sides may vanish at any moment, and either may lie: whoever
//! reads shared memory copies first, then checks the copy. The layout is specified in `docs/wire.md`.

mod descriptor;
mod error;
mod frame;
mod layout;
mod message;
mod operator;
mod words;

pub use descriptor::{
    Backward, Block, Command, Descriptor, FLAG_TAKE_TICKET, FLAG_TRAIN, FLAG_WANT_GRAD_ALPHAS,
    FLAG_WANT_GRAD_INPUT, FLAG_WANT_GRAD_PARAMETERS, Forward, Release, VERB_BACKWARD, VERB_FORWARD,
    VERB_RELEASE, Wants,
};
pub use error::WireError;
pub use frame::{
    FRAME_HEADER_BYTES, FrameBuffer, FrameHeader, FrameKind, MAX_FRAME_BYTES, MAX_FRAME_DESCRIPTORS, decode,
    encode, receive, send, try_send,
};
pub use layout::{
    ARENA_MAGIC, ArenaHeader, ArenaLayout, Completion, DESCRIPTOR_BYTES, Field, MAX_ARENA_BYTES, MAX_RANK,
    MAX_SEEDS, MIN_ARENA_BYTES, RING_ENTRIES, Submission, layout_json,
};
pub use message::{
    CloseLayer, Empty, ErrorReply, FailureCounts, Graft, GraftReply, Hello, HelloReply, LastErrorReply,
    LayerReply, OpenLayer, PROTOCOL, Prefetch, PrefetchReply, Reply, Request, SeedRef, SeedReply, SeedStats,
    SessionLimits, SetAlpha, TensorEntry,
};
pub use operator::{
    ActorReport, BreakerReport, CacheReport, CachedKernel, EvictReport, OperatorRequest, RuleReport,
    SeedReport, SeedsReport, SessionReport, StatusReport, TierReport, ValidationReport,
};
pub use words::{Blend, FailureKind, SeedState, Status};
