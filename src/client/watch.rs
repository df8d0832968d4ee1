//! Events as they happen, from either socket.

use std::path::Path;

use super::{ClientError, connection::Connection};
use crate::{
    id::SessionId,
    wire::{Empty, Event, OperatorRequest},
};

/// A connection that is told what happens: on the trainers' socket, to sessions of the same user; on the operators',
/// to all. As an iterator it blocks until the next event, and ends with an error when the daemon is gone.
#[derive(Debug)]
pub struct Events {
    connection: Connection,
    is_over: bool,
}

impl Events {
    /// Watches from now on, one session or all that may be seen.
    ///
    /// # Errors
    /// [`ClientError::Connect`] when nobody answers, [`ClientError::Refused`] where too many watch already.
    pub fn watch(path: impl AsRef<Path>, session: Option<SessionId>) -> Result<Self, ClientError> {
        Self::start(Connection::open(path.as_ref())?, session)
    }

    pub(super) fn start(mut connection: Connection, session: Option<SessionId>) -> Result<Self, ClientError> {
        // Both sockets are asked with the same words.
        let (Empty {}, _none) = connection.ask(&OperatorRequest::Watch { session })?;
        Ok(Self { connection, is_over: false })
    }
}

impl Iterator for Events {
    type Item = Result<Event, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let event = self.connection.event();
        self.is_over = event.is_err();
        Some(event)
    }
}
