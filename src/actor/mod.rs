//! The control plane: actors that may wait, and talk by typed messages.
//!
//! Decisions live in the plain structs of the folders below; an actor is their life cycle and their
//! mailbox. [`Supervisor`] starts and restarts the others; [`KernelCache`], [`UrzaFetcher`] and
//! [`Validator`] supply kernels; [`Session`] is one trainer, [`Seed`] one slot of a layer of its.

pub mod base;
mod devices;
mod error;
mod events;
mod gradient_sync;
mod kernel_cache;
mod roll;
mod seed;
mod session;
mod supervisor;
mod urza_fetcher;
mod validator;

pub use devices::{Devices, Seat};
pub use error::ActorError;
pub use events::{Events, Scope, Teller, Watcher};
pub use gradient_sync::LaneLink;
pub use kernel_cache::{
    ClearKernels, CloseCache, CondemnKernels, DoubtKernels, EvictKernel, ExplainKernel, ForgetKernel,
    GetKernel, HeldKernel, Holder, Holders, KernelCache, KernelCacheParts, KernelLease, Kernels, LoadLog,
    MeasureCache, OfferCounts, OfferKernel, PinKernel, PrefetchKernel, ReportCache, ReportSupply,
    ReweighKernel, SupplyStatus, WarmKernels, WarmPlan, WarmStart, Warming,
};
pub use roll::LaneNumbers;
pub use seed::{
    BeginGraft, BlendSeed, DescribeSeed, ExportSeed, FinishGraft, FossilizeSeed, GraftSeed, Grafted,
    HoldSeed, PruneSeed, Seed, SeedFile, SeedParts, SetSeedAlpha, UnloadSeed,
};
pub use session::{ReportSession, Session, SessionOverview, SessionParts, serve_session, serve_watcher};
pub use supervisor::{
    AdmitSession, BeginDrain, DeviceReporter, Ping, RefusedSession, ReportSeeds, ReportStatus, SessionClosed,
    Supervisor, SupervisorParts,
};
pub use urza_fetcher::{FetchEntry, FetchKernel, FetcherSource, ReportBreakers, UrzaFetcher};
pub use validator::{JudgeArtifact, Judged, Validator};
