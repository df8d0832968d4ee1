//! What can go wrong for a client.

use std::path::PathBuf;

use crate::{
    fault::{ErrorClass, Fault},
    wire::{ErrorReply, Status, WireError},
};

/// Why a client's call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers at the socket.
    #[error("cannot connect to {path}: is kasminad running, and may this user connect?", path = path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// The connection broke or what came over it is not understood.
    #[error("the connection to the daemon failed")]
    Wire(#[from] WireError),
    /// The daemon refused the request.
    #[error(transparent)]
    Refused(#[from] ErrorReply),
    /// The daemon refused a pass.
    #[error("the pass was refused, {code}: {message}", code = status.code())]
    Pass {
        /// Why.
        status: Status,
        /// What the daemon says.
        message: String,
    },
    /// The call itself is wrong.
    #[error("{reason}")]
    Usage {
        /// What is wrong.
        reason: String,
    },
}

impl ClientError {
    pub(super) fn usage(reason: impl Into<String>) -> Self {
        Self::Usage { reason: reason.into() }
    }

    /// The stable code, the daemon's own where it refused.
    pub fn remote_code(&self) -> &str {
        match self {
            Self::Refused(reply) => &reply.code,
            other => other.code(),
        }
    }
}

impl Fault for ClientError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Connect { .. } => ErrorClass::Unavailable,
            Self::Wire(error) => error.class(),
            Self::Refused(_) | Self::Usage { .. } => ErrorClass::Invalid,
            Self::Pass { status: Status::Quota, .. } => ErrorClass::Overloaded,
            Self::Pass { status: Status::Draining, .. } => ErrorClass::Cancelled,
            Self::Pass { status: Status::Bug, .. } => ErrorClass::Bug,
            Self::Pass { .. } => ErrorClass::Invalid,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Connect { .. } => "session.unavailable",
            Self::Wire(error) => error.code(),
            Self::Refused(_) => "session.refused",
            Self::Pass { status, .. } => status.code(),
            Self::Usage { .. } => "session.usage",
        }
    }
}
