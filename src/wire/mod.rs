//! What two processes share: frames on a control connection, an arena of memory, rings of descriptors,
//! doorbells.
//!
//! A session has one Unix stream socket for control (JSON in frames, file descriptors beside them) and one
//! arena: a sealed memory file with a submission ring, a completion ring and a heap. Tensors lie in the
//! heap and never pass through a socket. Both sides may vanish at any moment, and either may lie: whoever
//! reads shared memory copies first, then checks the copy. The layout is specified in `docs/wire.md`.

mod arena;
mod descriptor;
mod device;
mod doorbell;
mod error;
mod event;
mod export;
mod floats;
mod frame;
mod lane;
mod layout;
mod life;
mod memory;
mod message;
mod operator;
mod peer;
mod records;
mod ring;
mod spin;
mod supply;
mod turns;
mod words;

pub use arena::Arena;
pub use descriptor::{
    Backward, Block, Command, Descriptor, FLAG_TAKE_TICKET, FLAG_TRAIN, FLAG_WANT_GRAD_ALPHAS,
    FLAG_WANT_GRAD_INPUT, FLAG_WANT_GRAD_PARAMETERS, Forward, Release, VERB_BACKWARD, VERB_FORWARD,
    VERB_RELEASE, Wants,
};
pub use device::{DeviceReport, GpuReport, LibraryReport};
pub use doorbell::{Doorbell, Rung, Waker};
pub use error::WireError;
pub use event::{Event, EventKind, Watch};
pub use export::{Export, ExportReply};
pub use floats::SharedFloats;
pub use frame::{
    FRAME_HEADER_BYTES, FrameBuffer, FrameHeader, FrameKind, MAX_FRAME_BYTES, MAX_FRAME_DESCRIPTORS, decode,
    encode, receive, send, try_send,
};
pub use lane::{ClientLane, DaemonLane, Lane, Wake};
pub use layout::{
    ARENA_MAGIC, ArenaHeader, ArenaLayout, Completion, DESCRIPTOR_BYTES, Field, MAX_ARENA_BYTES, MAX_RANK,
    MAX_SEEDS, MIN_ARENA_BYTES, RING_ENTRIES, Submission, layout_json,
};
pub use life::{Fossilize, Prune, ScheduleKind, ScheduleSpec, StartBlend};
pub use memory::SharedMemory;
pub use message::{
    CloseLayer, Empty, ErrorReply, FailureCounts, Graft, GraftReply, Hello, HelloReply, LastErrorReply,
    LayerReply, Offer, OfferReply, OpenLayer, PROTOCOL, Prefetch, PrefetchReply, Reply, Request, SeedRef,
    SeedReply, SeedSeries, SeedStats, SeriesReply, SessionLimits, SetAlpha, TensorEntry,
};
pub use operator::{
    ActorReport, BreakerReport, CacheReport, CachedKernel, EventsReport, EvictReport, FetchingReport,
    FleetReport, LeavingKernel, LoadingReport, LookupReport, OffersReport, OperatorRequest, RecoveryReport,
    RuleReport, SeedReport, SeedsReport, SessionReport, StatusReport, TierReport, TotalsReport,
    TransitionReport, ValidationReport,
};
pub use peer::Peer;
pub use records::RecordsReport;
pub use spin::Spin;
pub use supply::{
    CopyReport, EvictionReport, HolderReport, LoadReport, NegativeReport, RouteReport, StepReport,
    WarmReport, WhyReport,
};
pub use turns::{RecentReport, TurnsReport, UserReport};
pub use words::{Blend, FailureKind, GraftRole, SeedState, Status};
