//! Why a record cannot be written or read.

use std::path::PathBuf;

use super::VERSION;
use crate::fault::{ErrorClass, Fault};

/// What is wrong with a folder of records, or with one of them.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The folder cannot be made or written to.
    #[error(
        "engine.record_failures: {path} cannot be written to: {source}; name a folder that the daemon may write to, such as one in its state directory, or leave it empty",
        path = path.display()
    )]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The system gives no thread to write on.
    #[error("no thread to write records on: {source}")]
    Thread {
        /// What the system says.
        source: std::io::Error,
    },
    /// A file cannot be written.
    #[error("{path} cannot be written: {reason}", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        reason: String,
    },
    /// More bytes than a record may have.
    #[error("a record has at most {limit} bytes, this file has more")]
    TooLarge {
        /// The limit.
        limit: u64,
    },
    /// The file is none, or was damaged.
    #[error(
        "no record of a failing pass, or a damaged one: {reason}: copy it again from the daemon's folder, which engine.record_failures names"
    )]
    Damaged {
        /// What is wrong with it.
        reason: String,
    },
    /// The file was written by another version.
    #[error("the record has format {found}, this kasmina reads format {VERSION}: use the one that wrote it")]
    Version {
        /// Its format.
        found: u64,
    },
}

impl RecordError {
    pub(super) fn damaged(reason: impl Into<String>) -> Self {
        Self::Damaged { reason: reason.into() }
    }
}

impl Fault for RecordError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Folder { .. } | Self::TooLarge { .. } | Self::Version { .. } => ErrorClass::Invalid,
            Self::Damaged { .. } => ErrorClass::Corrupt,
            Self::Thread { .. } => ErrorClass::Overloaded,
            Self::Write { .. } => ErrorClass::Unavailable,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Folder { .. } => "config.invalid",
            Self::Thread { .. } => "record.thread",
            Self::Write { .. } => "record.write",
            Self::TooLarge { .. } => "record.too_large",
            Self::Damaged { .. } => "record.damaged",
            Self::Version { .. } => "record.version",
        }
    }
}
