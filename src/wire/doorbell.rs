//! Doorbells: how one side wakes the other, and how it learns that the other is gone.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    io::{Errno, read, write},
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair},
};

use super::WireError;

/// One end of a pair of stream sockets, and an event that others in the same process can raise.
///
/// A byte means "look at the ring". Bytes may be lost or doubled where nobody sleeps; the ring is the truth.
#[derive(Debug)]
pub struct Doorbell {
    socket: OwnedFd,
    waker: Waker,
}

/// Wakes a thread that waits on a [`Doorbell`], from the same process.
#[derive(Clone, Debug)]
pub struct Waker(Arc<OwnedFd>);

/// What ended a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rung {
    /// The other side rang.
    Bell,
    /// A [`Waker`] was used.
    Woken,
    /// The other side is gone.
    Gone,
    /// Nothing, for as long as was asked.
    TimedOut,
}

impl Doorbell {
    /// A doorbell, and the peer's end to be sent to it. Drop that end once it is sent: as long as any copy
    /// is open here, the peer's death goes unnoticed.
    ///
    /// # Errors
    /// [`WireError::System`] when the process has no more file descriptors.
    pub fn pair() -> Result<(Self, OwnedFd), WireError> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .map_err(WireError::system("making a doorbell"))?;
        Ok((Self::new(ours)?, theirs))
    }

    /// A doorbell over an end that a peer has sent.
    ///
    /// # Errors
    /// [`WireError::System`] when the process has no more file descriptors.
    pub fn new(socket: OwnedFd) -> Result<Self, WireError> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(WireError::system("making a waker"))?;
        Ok(Self { socket, waker: Waker(Arc::new(event)) })
    }

    /// What wakes this end from within the process.
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Wakes the other side. Never blocks: where the socket's buffer is full, the other side has been rung
    /// often enough.
    ///
    /// # Errors
    /// [`WireError::Closed`] when the other side is gone.
    pub fn ring(&self) -> Result<(), WireError> {
        loop {
            match send(&self.socket, &[1], SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(_) | Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(WireError::Closed),
                Err(errno) => return Err(WireError::system("ringing a doorbell")(errno)),
            }
        }
    }

    /// Sleeps until something happens or `timeout` passes; without one, for as long as it takes.
    ///
    /// # Errors
    /// [`WireError::System`] when the system refuses to wait.
    pub fn wait(&self, timeout: Option<Duration>) -> Result<Rung, WireError> {
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let mut fds = [
            PollFd::new(&self.socket, PollFlags::IN),
            PollFd::from_borrowed_fd(self.waker.0.as_fd(), PollFlags::IN),
        ];
        match poll(&mut fds, timeout.as_ref()) {
            Ok(0) => return Ok(Rung::TimedOut),
            // A signal may have meant something to the caller: let it look around.
            Err(Errno::INTR) => return Ok(Rung::Woken),
            Err(errno) => return Err(WireError::system("waiting at a doorbell")(errno)),
            Ok(_) => {}
        }
        let [bell, woken] = fds.map(|fd| !fd.revents().is_empty());
        if bell && self.drain()? == Rung::Gone {
            return Ok(Rung::Gone);
        }
        if woken {
            // The count does not matter, and nobody else reads it.
            let _ = read(&*self.waker.0, &mut [0; 8]);
            return Ok(Rung::Woken);
        }
        Ok(Rung::Bell)
    }

    /// Whether the other side is gone. Takes nothing from the socket: who waits at it next still hears what rang.
    pub fn is_gone(&self) -> bool {
        // An end that was closed is told of whatever is asked for.
        let mut fds = [PollFd::new(&self.socket, PollFlags::RDHUP)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let gone = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        matches!(poll(&mut fds, Some(&at_once)), Ok(1..)) && fds[0].revents().intersects(gone)
    }

    fn drain(&self) -> Result<Rung, WireError> {
        let mut buffer = [0; 64];
        match recv(&self.socket, &mut buffer, RecvFlags::DONTWAIT) {
            Ok((_, 0)) | Err(Errno::CONNRESET) => Ok(Rung::Gone),
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Ok(Rung::Bell),
            Err(errno) => Err(WireError::system("answering a doorbell")(errno)),
        }
    }
}

impl Waker {
    /// Wakes the thread that waits, or the next one to wait.
    pub fn wake(&self) {
        // It fails only when the count is at its maximum, and then the event is raised already.
        let _ = write(&*self.0, &1u64.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT_ONCE: Option<Duration> = Some(Duration::ZERO);

    #[test]
    fn a_ring_is_heard_once_however_often_it_rang() {
        let (ours, theirs) = Doorbell::pair().unwrap();
        let theirs = Doorbell::new(theirs).unwrap();
        assert_eq!(ours.wait(AT_ONCE).unwrap(), Rung::TimedOut);
        theirs.ring().unwrap();
        theirs.ring().unwrap();
        assert_eq!(ours.wait(None).unwrap(), Rung::Bell);
        assert_eq!(ours.wait(AT_ONCE).unwrap(), Rung::TimedOut);
    }

    #[test]
    fn a_full_buffer_is_no_error_and_never_blocks() {
        let (ours, theirs) = Doorbell::pair().unwrap();
        for _ in 0..100_000 {
            ours.ring().unwrap();
        }
        drop(theirs);
        assert!(matches!(ours.ring(), Err(WireError::Closed)));
    }

    #[test]
    fn a_waker_wakes_and_a_death_is_noticed() {
        let (ours, theirs) = Doorbell::pair().unwrap();
        ours.waker().wake();
        assert_eq!(ours.wait(None).unwrap(), Rung::Woken);
        assert_eq!(ours.wait(AT_ONCE).unwrap(), Rung::TimedOut);
        assert!(!ours.is_gone());
        drop(theirs);
        assert!(ours.is_gone());
        ours.waker().wake();
        assert_eq!(ours.wait(None).unwrap(), Rung::Gone);
    }
}
