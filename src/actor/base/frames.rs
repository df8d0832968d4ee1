//! Frames over a tokio socket, with file descriptors beside them.

use std::os::fd::{AsFd, BorrowedFd};

use tokio::{
    io::{AsyncReadExt as _, Interest},
    net::UnixStream,
};

use crate::{
    failpoint::{self, Failpoint},
    wire::{FrameBuffer, FrameKind, WireError, try_send},
};

/// Bytes read at a time.
const CHUNK: usize = 4096;

/// The daemon's side of a control connection.
///
/// Descriptors that a client sends along are not taken: plain reads leave them to the system to close.
#[derive(Debug)]
pub struct Frames {
    stream: UnixStream,
    buffer: FrameBuffer,
}

impl Frames {
    /// Frames over a connected socket.
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, buffer: FrameBuffer::new() }
    }

    /// The payload of the next request; `None` at the end of the stream.
    ///
    /// Cancel safety: what was read stays for the next call.
    ///
    /// # Errors
    /// [`WireError`]; the connection is of no use after it.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, WireError> {
        loop {
            if let Some((header, payload)) = self.buffer.next_frame()? {
                if header.kind != FrameKind::Request {
                    return Err(WireError::Frame { reason: "a client sends requests alone".to_owned() });
                }
                return Ok(Some(payload));
            }
            let mut chunk = [0; CHUNK];
            match self.stream.read(&mut chunk).await {
                Ok(0) => return Ok(None),
                Ok(count) => self.buffer.push(&chunk[..count]),
                Err(_) => return Err(WireError::Closed),
            }
        }
    }

    /// Sends a whole frame, the descriptors with its first byte.
    ///
    /// # Errors
    /// [`WireError::Closed`] when the client is gone.
    pub async fn send(&mut self, frame: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<(), WireError> {
        // Who may die in the middle of a frame sends it in two.
        let half = if failpoint::is_armed(Failpoint::ReplyHalfSent) { frame.len() / 2 } else { frame.len() };
        let mut sent = 0;
        while sent < frame.len() {
            let with = if sent == 0 { descriptors } else { &[] };
            let end = if sent < half { half } else { frame.len() };
            let attempt = || try_send(self.stream.as_fd(), &frame[sent..end], with);
            sent += self.stream.async_io(Interest::WRITABLE, attempt).await.map_err(|_| WireError::Closed)?;
            if sent == half {
                failpoint::reached(Failpoint::ReplyHalfSent);
            }
        }
        Ok(())
    }
}
