//! What ends a command, and its exit code.

use std::path::{Path, PathBuf};

use crate::{
    artifact::ArtifactError,
    backend::{BuildError, RunError},
    client::ClientError,
    engine::ReplayError,
    fault::{ErrorClass, Fault},
    graph::GraphError,
    origin::{PublishError, StandInError},
    record::RecordError,
    tensor::TensorError,
};

/// The exit codes of `kasmina`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// Done, and the answer is no: a kernel rejected, accuracy not raised.
    No = 1,
    /// A file or an argument cannot be used.
    Unusable = 2,
    /// The daemon does not answer or refused.
    Daemon = 3,
    /// A recorded pass fails, but not as it did.
    Another = 4,
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// A file cannot be read or written.
    #[error("{path}: {source}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A file of tensors is not what was expected.
    #[error("{path}: {reason}", path = path.display())]
    Tensors {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// The artifact cannot be read or lowered.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// Its graph cannot be differentiated.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// The device does not take it.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The run failed.
    #[error(transparent)]
    Run(#[from] RunError),
    /// A tensor is not of the type it should be.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// The daemon does not answer or refused.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A kernel is not published.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// The stand-in for Urza cannot be started.
    #[error(transparent)]
    StandIn(#[from] StandInError),
    /// The file is no record of a failing pass.
    #[error("{path}: {source}", path = path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: RecordError,
    },
    /// The record cannot be run.
    #[error("{path}: {source}", path = path.display())]
    Replay {
        /// The file.
        path: PathBuf,
        /// Why.
        source: ReplayError,
    },
    /// Something else about the command's use.
    #[error("{reason}")]
    Usage {
        /// What is wrong and what to do.
        reason: String,
    },
}

impl CliError {
    pub(super) fn file(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::File { path: path.to_owned(), source }
    }

    pub(super) fn usage(reason: impl Into<String>) -> Self {
        Self::Usage { reason: reason.into() }
    }

    /// The exit code that says of which kind it is.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Client(_) => Exit::Daemon,
            Self::Graph(_) | Self::Build(_) | Self::Run(_) => Exit::No,
            _ => Exit::Unusable,
        }
    }
}

impl Fault for CliError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Artifact(error) => error.class(),
            Self::Graph(error) => error.class(),
            Self::Client(error) => error.class(),
            Self::Publish(error) => error.class(),
            Self::StandIn(error) => error.class(),
            Self::Record { source, .. } => source.class(),
            Self::Replay { source, .. } => source.class(),
            _ => ErrorClass::Invalid,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Artifact(error) => error.code(),
            Self::Graph(error) => error.code(),
            Self::Client(error) => error.code(),
            Self::Publish(error) => error.code(),
            Self::StandIn(error) => error.code(),
            Self::Record { source, .. } => source.code(),
            Self::Replay { source, .. } => source.code(),
            Self::Build(_) => "kernel.rejected",
            Self::Run(_) => "kernel.runtime",
            Self::File { .. } | Self::Tensors { .. } | Self::Tensor(_) | Self::Usage { .. } => "cli.usage",
        }
    }
}
