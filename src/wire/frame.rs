//! Frames of the control connections: eight bytes of header, then JSON, with file descriptors beside them.
//!
//! Header: u32 payload bytes, u8 kind, u8 number of file descriptors, two bytes of 0; little endian. The
//! descriptors ride on the frame's first byte.

use std::{
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    cmsg_space,
    io::Errno,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
    },
};
use serde::{Serialize, de::DeserializeOwned};

use super::WireError;

/// Bytes before a frame's payload.
pub const FRAME_HEADER_BYTES: usize = 8;
/// The longest payload.
pub const MAX_FRAME_BYTES: usize = 1 << 20;
/// The most file descriptors beside one frame.
pub const MAX_FRAME_DESCRIPTORS: usize = 4;

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// A client asks.
    Request = 1,
    /// The daemon answers.
    Reply = 2,
    /// The daemon tells unasked, on a connection that watches.
    Event = 3,
}

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Bytes of the payload that follows.
    pub payload_bytes: usize,
    /// Who speaks.
    pub kind: FrameKind,
    /// File descriptors beside it.
    pub descriptors: usize,
}

impl FrameHeader {
    /// Reads a header.
    ///
    /// # Errors
    /// [`WireError::FrameTooLong`] and [`WireError::Frame`]; the connection is of no use after either.
    pub fn parse(bytes: [u8; FRAME_HEADER_BYTES]) -> Result<Self, WireError> {
        let [a, b, c, d, kind, descriptors, zero, zero_too] = bytes;
        let payload_bytes = u32::from_le_bytes([a, b, c, d]);
        if payload_bytes as usize > MAX_FRAME_BYTES {
            let (frame_bytes, max_bytes) = (u64::from(payload_bytes), MAX_FRAME_BYTES as u64);
            return Err(WireError::FrameTooLong { frame_bytes, max_bytes });
        }
        let kind = match kind {
            1 => FrameKind::Request,
            2 => FrameKind::Reply,
            3 => FrameKind::Event,
            _ => return Err(refused(format!("kind {kind} is not known"))),
        };
        if usize::from(descriptors) > MAX_FRAME_DESCRIPTORS || zero != 0 || zero_too != 0 {
            return Err(refused(format!("{descriptors} descriptors or reserved bytes are not allowed")));
        }
        Ok(Self { payload_bytes: payload_bytes as usize, kind, descriptors: usize::from(descriptors) })
    }

    /// The header's bytes.
    pub fn to_bytes(self) -> [u8; FRAME_HEADER_BYTES] {
        let mut bytes = [0; FRAME_HEADER_BYTES];
        bytes[..4].copy_from_slice(&(self.payload_bytes as u32).to_le_bytes());
        bytes[4] = self.kind as u8;
        bytes[5] = self.descriptors as u8;
        bytes
    }
}

/// A whole frame: header and `message` as JSON.
///
/// # Errors
/// [`WireError::FrameTooLong`] when the JSON is longer than a frame may be, [`WireError::Frame`] for more
/// descriptors than one may carry.
pub fn encode(kind: FrameKind, descriptors: usize, message: &impl Serialize) -> Result<Vec<u8>, WireError> {
    let mut bytes = vec![0; FRAME_HEADER_BYTES];
    serde_json::to_writer(&mut bytes, message).map_err(|source| WireError::Payload { source })?;
    let payload_bytes = bytes.len() - FRAME_HEADER_BYTES;
    if payload_bytes > MAX_FRAME_BYTES {
        let (frame_bytes, max_bytes) = (payload_bytes as u64, MAX_FRAME_BYTES as u64);
        return Err(WireError::FrameTooLong { frame_bytes, max_bytes });
    }
    if descriptors > MAX_FRAME_DESCRIPTORS {
        return Err(refused(format!("{descriptors} descriptors do not fit one frame")));
    }
    let header = FrameHeader { payload_bytes, kind, descriptors };
    bytes[..FRAME_HEADER_BYTES].copy_from_slice(&header.to_bytes());
    Ok(bytes)
}

/// A payload as a message.
///
/// # Errors
/// [`WireError::Payload`] with the place of the first mistake.
pub fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, WireError> {
    serde_json::from_slice(payload).map_err(|source| WireError::Payload { source })
}

/// One attempt to send, for sockets that do not block: the descriptors go with the first byte, so pass none
/// once anything was taken. Returns how many bytes were taken.
///
/// Never blocks and never raises SIGPIPE; in tokio, call it within `UnixStream::try_io` or `async_io`.
///
/// # Errors
/// The system's; `WouldBlock` when the socket's buffer is full.
pub fn try_send(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> std::io::Result<usize> {
    Ok(send_once(socket, bytes, descriptors, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?)
}

/// Sends a whole frame.
///
/// Blocking: while the socket's buffer is full.
///
/// # Errors
/// [`WireError::Closed`] when the other side is gone, [`WireError::System`] otherwise.
pub fn send(socket: impl AsFd, frame: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<(), WireError> {
    let mut sent = 0;
    while sent < frame.len() {
        let with = if sent == 0 { descriptors } else { &[] };
        match send_once(socket.as_fd(), &frame[sent..], with, SendFlags::NOSIGNAL) {
            Ok(taken) => sent += taken,
            Err(Errno::INTR) => {}
            Err(Errno::PIPE | Errno::CONNRESET) => return Err(WireError::Closed),
            Err(errno) => return Err(WireError::system("sending a frame")(errno)),
        }
    }
    Ok(())
}

fn send_once(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> Result<usize, Errno> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_FRAME_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(Errno::INVAL);
    }
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags)
}

/// Receives a whole frame of the given kind, with the descriptors beside it.
///
/// Blocking: until the whole frame is there. Descriptors that the header does not announce are closed.
///
/// # Errors
/// [`WireError::Closed`] when the other side hung up, before a frame or within one; what
/// [`FrameHeader::parse`] refuses; [`WireError::Frame`] when the descriptors are not those announced.
pub fn receive(socket: impl AsFd, kind: FrameKind) -> Result<(Vec<u8>, Vec<OwnedFd>), WireError> {
    let socket = socket.as_fd();
    let mut descriptors = Vec::new();
    let mut header = [0; FRAME_HEADER_BYTES];
    fill(socket, &mut header, &mut descriptors)?;
    let header = FrameHeader::parse(header)?;
    // The length is at most a megabyte, whatever the other side says.
    let mut payload = vec![0; header.payload_bytes];
    fill(socket, &mut payload, &mut descriptors)?;
    if header.kind != kind {
        return Err(refused(format!("a {kind:?} was expected, a {:?} came", header.kind)));
    }
    if descriptors.len() != header.descriptors {
        let (said, came) = (header.descriptors, descriptors.len());
        return Err(refused(format!("{said} descriptors were announced, {came} came")));
    }
    Ok((payload, descriptors))
}

fn fill(
    socket: BorrowedFd<'_>,
    mut buffer: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> Result<(), WireError> {
    while !buffer.is_empty() {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_FRAME_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::CMSG_CLOEXEC);
        let message = match received {
            Ok(message) => message,
            Err(Errno::INTR) => continue,
            Err(Errno::CONNRESET) => return Err(WireError::Closed),
            Err(errno) => return Err(WireError::system("receiving a frame")(errno)),
        };
        for ancillary in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = ancillary {
                descriptors.extend(rights);
            }
        }
        // What did not fit the control buffer the system has closed already.
        if message.flags.contains(ReturnFlags::CTRUNC) || descriptors.len() > MAX_FRAME_DESCRIPTORS {
            return Err(refused("too many descriptors came with one frame"));
        }
        if message.bytes == 0 {
            return Err(WireError::Closed);
        }
        buffer = &mut buffer[message.bytes..];
    }
    Ok(())
}

/// Cuts frames out of bytes that arrive in pieces, for readers that do not block. Bytes read with a plain
/// `read` bring no descriptors: the system drops them, so a client cannot flood the daemon with any.
#[derive(Debug, Default)]
pub struct FrameBuffer {
    bytes: Vec<u8>,
}

impl FrameBuffer {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends what was read. Call [`next_frame`](Self::next_frame) until it has no more before reading on:
    /// it bounds what is held.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole frame, or `None` until more bytes are there.
    ///
    /// # Errors
    /// What [`FrameHeader::parse`] refuses, and it will refuse again: the connection is of no use.
    pub fn next_frame(&mut self) -> Result<Option<(FrameHeader, Vec<u8>)>, WireError> {
        let Some(header) = self.bytes.first_chunk::<FRAME_HEADER_BYTES>() else {
            return Ok(None);
        };
        let header = FrameHeader::parse(*header)?;
        let end = FRAME_HEADER_BYTES + header.payload_bytes;
        if self.bytes.len() < end {
            return Ok(None);
        }
        let payload = self.bytes[FRAME_HEADER_BYTES..end].to_vec();
        self.bytes.drain(..end);
        Ok(Some((header, payload)))
    }
}

fn refused(reason: impl Into<String>) -> WireError {
    WireError::Frame { reason: reason.into() }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::wire::{Empty, Reply};

    fn frame() -> Vec<u8> {
        encode(FrameKind::Reply, 0, &Reply::Ok(Empty {})).unwrap()
    }

    #[test]
    fn a_frame_is_eight_bytes_and_json() {
        assert_eq!(frame(), b"\x09\0\0\0\x02\0\0\0{\"ok\":{}}");
    }

    #[test]
    fn frames_are_cut_wherever_the_bytes_break() {
        let two = [frame(), frame()].concat();
        for cut in 0..two.len() {
            let mut buffer = FrameBuffer::new();
            let mut seen = 0;
            for piece in [&two[..cut], &two[cut..]] {
                buffer.push(piece);
                while let Some((header, payload)) = buffer.next_frame().unwrap() {
                    assert_eq!((header.kind, payload.as_slice()), (FrameKind::Reply, &b"{\"ok\":{}}"[..]));
                    seen += 1;
                }
            }
            assert_eq!(seen, 2, "cut at {cut}");
        }
    }

    #[test]
    fn hostile_headers_are_refused() {
        let parse = |bytes| FrameHeader::parse(bytes).is_err();
        assert!(parse([0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0]));
        assert!(parse([1, 0, 0x10, 0, 1, 0, 0, 0]), "one byte past the limit");
        assert!(parse([1, 0, 0, 0, 0, 0, 0, 0]));
        assert!(parse([1, 0, 0, 0, 4, 0, 0, 0]));
        assert!(parse([1, 0, 0, 0, 1, 5, 0, 0]));
        assert!(parse([1, 0, 0, 0, 1, 0, 0, 1]));
        let mut buffer = FrameBuffer::new();
        buffer.push(&[0xff; 8]);
        assert!(buffer.next_frame().is_err());
    }

    #[test]
    fn descriptors_travel_with_a_frame() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (ping, pong) = UnixStream::pair().unwrap();
        let frame = encode(FrameKind::Reply, 2, &Reply::Ok(Empty {})).unwrap();
        send(&ours, &frame, &[ping.as_fd(), pong.as_fd()]).unwrap();
        let (payload, descriptors) = receive(&theirs, FrameKind::Reply).unwrap();
        assert_eq!(decode::<Reply<Empty>>(&payload).unwrap(), Reply::Ok(Empty {}));
        assert_eq!(descriptors.len(), 2);
    }

    #[test]
    fn a_truncated_frame_and_a_lie_about_descriptors_are_errors() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        send(&ours, &frame()[..12], &[]).unwrap();
        drop(ours);
        assert!(matches!(receive(&theirs, FrameKind::Reply), Err(WireError::Closed)));

        let (ours, theirs) = UnixStream::pair().unwrap();
        let frame = encode(FrameKind::Reply, 2, &Reply::Ok(Empty {})).unwrap();
        send(&ours, &frame, &[ours.as_fd()]).unwrap();
        assert!(matches!(receive(&theirs, FrameKind::Reply), Err(WireError::Frame { .. })));

        let (ours, theirs) = UnixStream::pair().unwrap();
        send(&ours, &tests::frame(), &[]).unwrap();
        assert!(matches!(receive(&theirs, FrameKind::Request), Err(WireError::Frame { .. })));
    }

    #[test]
    fn a_flood_of_descriptors_is_closed() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (probe, watched) = UnixStream::pair().unwrap();
        let frame = encode(FrameKind::Reply, 1, &Reply::Ok(Empty {})).unwrap();
        for byte in &frame {
            send(&ours, &[*byte], &[watched.as_fd(), watched.as_fd()]).unwrap();
        }
        assert!(receive(&theirs, FrameKind::Reply).is_err());
        drop((watched, ours, theirs));
        // Every copy of `watched` is closed, or its other end would not see the end of the stream.
        probe.set_nonblocking(true).unwrap();
        let mut byte = [0];
        assert_eq!(std::io::Read::read(&mut &probe, &mut byte).unwrap(), 0);
    }
}
