//! The daemon's settings: a TOML file, variables over it, defaults below it.
//!
//! A file is read into raw settings that know their line, resolved section by section into [`Config`],
//! and validated as a whole; every problem is reported at once. Each key is declared a single time, in
//! its section's file, and `config/kasmina.toml` is held equal to those declarations by a test.

mod breaker;
mod cache;
mod daemon;
mod data_plane;
mod device;
mod diff;
mod engine;
mod environment;
mod keys;
mod limits;
mod log;
mod metrics;
mod origin;
mod problem;
mod raw;
mod resolved;
mod section;
mod setting;
mod shared_tiers;
mod units;
mod validate;
mod validator;

pub use breaker::Breaker;
pub use cache::{Cache, CacheSqlite};
pub use daemon::Daemon;
pub use data_plane::DataPlane;
pub use device::{Device, DeviceKind};
pub use diff::{Changed, diff};
pub use engine::Engine;
pub use environment::{Environment, PREFIX, ProcessEnvironment};
pub use limits::Limits;
pub use log::{Log, LogFormat, LogLevel};
pub use metrics::{Metrics, MetricsAddress};
pub use origin::{Origin, OriginBlob, OriginKind, OriginRetry, OriginS3, OriginUrza};
pub use problem::{ConfigErrors, Place, Problem};
pub use resolved::Config;
pub use section::{Change, Entry};
pub use shared_tiers::{CachePostgres, CacheRedis, PostgresTls};
pub use units::{ByteSize, FileMode, UserShare};
pub use validator::Validator;
