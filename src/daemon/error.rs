//! Why the daemon cannot start or go on.

use std::{net::SocketAddr, path::PathBuf};

use crate::{
    backend::cuda::Unavailable,
    fault::{ErrorClass, Fault},
    origin::OriginError,
    record::RecordError,
};

/// What ends the daemon.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Another daemon serves this socket.
    #[error("{path} is served by another daemon: stop it, or give this one another {key}", path = path.display())]
    AlreadyServed {
        /// The setting that names the socket.
        key: &'static str,
        /// The socket.
        path: PathBuf,
    },
    /// Something that is no socket is in the way.
    #[error("{path} exists and is no socket: remove it, or set another {key}", path = path.display())]
    NotASocket {
        /// The setting that names the path.
        key: &'static str,
        /// The path.
        path: PathBuf,
    },
    /// The socket cannot be made.
    #[error("cannot listen on {path} ({key}): {source}; the folder must exist and be writable", path = path.display())]
    Listen {
        /// The setting that names the socket.
        key: &'static str,
        /// The socket.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The address for metrics cannot be listened on.
    #[error("metrics.listen: cannot listen on {address}: {source}; stop what has it, or set another")]
    MetricsListen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: std::io::Error,
    },
    /// Metrics cannot be served.
    #[error("cannot serve metrics: {source}")]
    Metrics {
        /// What the system says.
        source: std::io::Error,
    },
    /// Signals cannot be waited for.
    #[error("cannot wait for signals: {source}")]
    Signals {
        /// What the system says.
        source: std::io::Error,
    },
    /// The settings ask for a GPU, and none can be used.
    #[error("device.kind is cuda, and no GPU can be used: {}", each(refused))]
    NoGpu {
        /// Why, by number.
        refused: Vec<(u32, Unavailable)>,
    },
    /// The settings name GPUs, and not all of them can be used.
    #[error("device.kind is cuda, and device.ordinals names what cannot be used: {}", each(refused))]
    NamedGpu {
        /// Why, by number.
        refused: Vec<(u32, Unavailable)>,
    },
    /// The origin's settings name a file that cannot be used.
    #[error(transparent)]
    Origin(#[from] OriginError),
    /// Failing passes cannot be recorded.
    #[error(transparent)]
    Records(#[from] RecordError),
    /// A user who may not connect.
    #[error(
        "user {uid} may not connect here: ask the operator to list it in daemon.allow_uids or daemon.admin_uids"
    )]
    Refused {
        /// The user.
        uid: u32,
    },
    /// The GPU has failed for good.
    #[error("{reason}; only a new process can use the GPU again")]
    DeviceLost {
        /// Which device, and what failed.
        reason: String,
    },
    /// The supervisor has failed.
    #[error("the supervisor failed, and nothing is above it: start the daemon again")]
    Supervisor,
}

/// Why each of some GPUs cannot be used; a single reason where all have the same.
fn each(refused: &[(u32, Unavailable)]) -> String {
    if let [(_, first), others @ ..] = refused
        && others.iter().all(|(_, other)| other.error == first.error)
    {
        return first.to_string();
    }
    let reasons: Vec<_> = refused.iter().map(|(ordinal, error)| format!("cuda:{ordinal}: {error}")).collect();
    reasons.join("; ")
}

/// Class and code of them all: those of one that no other try helps with, if there is such.
fn worst(refused: &[(u32, Unavailable)]) -> (ErrorClass, &'static str) {
    let all = refused.iter().map(|(_, error)| (error.class(), error.code()));
    let worse = all.reduce(|one, other| if one.0 == ErrorClass::Invalid { one } else { other });
    worse.unwrap_or((ErrorClass::Invalid, "device.unavailable"))
}

impl Fault for DaemonError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::AlreadyServed { .. } | Self::NotASocket { .. } | Self::Refused { .. } => {
                ErrorClass::Invalid
            }
            Self::Listen { .. }
            | Self::MetricsListen { .. }
            | Self::Metrics { .. }
            | Self::Signals { .. }
            | Self::DeviceLost { .. } => ErrorClass::Unavailable,
            Self::NoGpu { refused } | Self::NamedGpu { refused } => worst(refused).0,
            Self::Origin(error) => error.class(),
            Self::Records(error) => error.class(),
            Self::Supervisor => ErrorClass::Bug,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::AlreadyServed { .. } => "daemon.already_served",
            Self::NotASocket { .. } | Self::Listen { .. } | Self::MetricsListen { .. } => "daemon.listen",
            Self::Metrics { .. } => "daemon.metrics",
            Self::Signals { .. } => "daemon.signals",
            Self::Refused { .. } => "session.refused",
            Self::NoGpu { refused } | Self::NamedGpu { refused } => worst(refused).1,
            Self::Origin(error) => error.code(),
            Self::Records(error) => error.code(),
            Self::DeviceLost { .. } => "device.lost",
            Self::Supervisor => "internal.bug",
        }
    }
}
