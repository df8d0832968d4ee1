//! The operator's client: one question at a time on the control socket.

use std::path::Path;

use super::{ClientError, connection::Connection};
use crate::{
    id::KernelId,
    wire::{
        CacheReport, Empty, EvictReport, OperatorRequest, SeedsReport, StatusReport, ValidationReport,
        WarmReport, WhyReport,
    },
};

/// A connection to the daemon's control socket. Every call blocks until the daemon has answered, and fails
/// with [`ClientError::Refused`] when it refuses, with [`ClientError::Wire`] when it is gone.
#[derive(Debug)]
pub struct Operator {
    connection: Connection,
}

impl Operator {
    /// Connects.
    ///
    /// # Errors
    /// [`ClientError::Connect`] when nobody answers.
    pub fn connect(path: impl AsRef<Path>) -> Result<Self, ClientError> {
        Ok(Self { connection: Connection::open(path.as_ref())? })
    }

    /// How the daemon does.
    ///
    /// # Errors
    /// See [`Operator`].
    pub fn status(&mut self) -> Result<StatusReport, ClientError> {
        self.ask(&OperatorRequest::Status {})
    }

    /// Every seed of every session.
    ///
    /// # Errors
    /// See [`Operator`].
    pub fn seeds(&mut self) -> Result<SeedsReport, ClientError> {
        self.ask(&OperatorRequest::Seeds {})
    }

    /// What is resident and how the tiers did.
    ///
    /// # Errors
    /// See [`Operator`].
    pub fn cache(&mut self) -> Result<CacheReport, ClientError> {
        self.ask(&OperatorRequest::Cache {})
    }

    /// Drops one kernel from memory and the tiers unless a seed uses it; with `fleet` on every node.
    ///
    /// # Errors
    /// See [`Operator`].
    pub fn evict(&mut self, kernel: KernelId, fleet: bool) -> Result<EvictReport, ClientError> {
        self.ask(&OperatorRequest::Evict { kernel, fleet })
    }

    /// Drops every kernel from memory that no seed uses, and with `tiers` empties the tiers too.
    ///
    /// # Errors
    /// See [`Operator`].
    pub fn clear(&mut self, tiers: bool) -> Result<EvictReport, ClientError> {
        self.ask(&OperatorRequest::Clear { tiers })
    }

    /// Begins to load kernels, and says how far that and earlier warming is.
    ///
    /// # Errors
    /// See [`Operator`].
    pub fn warm(&mut self, kernels: Vec<KernelId>) -> Result<WarmReport, ClientError> {
        self.ask(&OperatorRequest::Warm { kernels })
    }

    /// Loads a kernel and keeps it in memory until it is unpinned or the daemon ends.
    ///
    /// # Errors
    /// See [`Operator`].
    pub fn pin(&mut self, kernel: KernelId) -> Result<(), ClientError> {
        self.ask::<Empty>(&OperatorRequest::Pin { kernel }).map(|Empty {}| ())
    }

    /// Lets a pinned kernel go again.
    ///
    /// # Errors
    /// See [`Operator`].
    pub fn unpin(&mut self, kernel: KernelId) -> Result<(), ClientError> {
        self.ask::<Empty>(&OperatorRequest::Unpin { kernel }).map(|Empty {}| ())
    }

    /// All that is known of a kernel, or of the kernel of a seed, written `session/layer/seed`.
    ///
    /// # Errors
    /// See [`Operator`].
    pub fn why(&mut self, subject: &str) -> Result<WhyReport, ClientError> {
        self.ask(&OperatorRequest::Why { subject: subject.to_owned() })
    }

    /// Judges a file that the daemon can read.
    ///
    /// # Errors
    /// See [`Operator`].
    pub fn validate(&mut self, path: &str) -> Result<ValidationReport, ClientError> {
        self.ask(&OperatorRequest::Validate { path: path.to_owned() })
    }

    /// Drains and ends the daemon.
    ///
    /// # Errors
    /// See [`Operator`].
    pub fn shutdown(&mut self) -> Result<(), ClientError> {
        self.ask::<Empty>(&OperatorRequest::Shutdown {}).map(|Empty {}| ())
    }

    fn ask<T: serde::de::DeserializeOwned>(&mut self, request: &OperatorRequest) -> Result<T, ClientError> {
        let (reply, _none) = self.connection.ask(request)?;
        Ok(reply)
    }
}
