//! A control connection: one request, one reply, in turn.

use std::{
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::Path,
};

use serde::{Serialize, de::DeserializeOwned};

use super::ClientError;
use crate::wire::{Event, FrameKind, Reply, WireError, decode, encode, receive, send};

/// The client's end of a session's control connection or of the operator's socket.
#[derive(Debug)]
pub(super) struct Connection {
    socket: UnixStream,
}

impl Connection {
    pub(super) fn open(path: &Path) -> Result<Self, ClientError> {
        let socket = UnixStream::connect(path)
            .map_err(|source| ClientError::Connect { path: path.to_owned(), source })?;
        Ok(Self { socket })
    }

    #[cfg(test)]
    pub(super) fn over(socket: UnixStream) -> Self {
        Self { socket }
    }

    /// Sends a request and waits for its reply and the descriptors beside it.
    pub(super) fn ask<T: DeserializeOwned>(
        &mut self,
        request: &impl Serialize,
    ) -> Result<(T, Vec<OwnedFd>), ClientError> {
        match send(&self.socket, &encode(FrameKind::Request, 0, request)?, &[]) {
            // Who is not let in is told why before the connection is closed, which may be before it has spoken.
            Ok(()) | Err(WireError::Closed) => {}
            Err(error) => return Err(error.into()),
        }
        let (payload, descriptors) = receive(&self.socket, FrameKind::Reply)?;
        let reply: Reply<T> = decode(&payload)?;
        Ok((reply.into_result()?, descriptors))
    }

    /// Waits for the next event, on a connection that watches.
    pub(super) fn event(&mut self) -> Result<Event, ClientError> {
        let (payload, _none) = receive(&self.socket, FrameKind::Event)?;
        Ok(decode(&payload)?)
    }
}
