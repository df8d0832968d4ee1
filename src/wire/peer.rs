//! Who is at the other end of a Unix socket, as the kernel states it.

use std::os::fd::AsFd;

use rustix::net::sockopt::socket_peercred;

use super::WireError;

/// The other end's process, from the moment it connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its process id; 0 when it lives in a namespace that this process cannot see.
    pub pid: u32,
}

impl Peer {
    /// Asks the kernel; the peer has no say in the answer.
    ///
    /// # Errors
    /// [`WireError::System`] when the socket is no connected Unix socket.
    pub fn of(socket: impl AsFd) -> Result<Self, WireError> {
        let cred = socket_peercred(socket).map_err(WireError::system("asking who connected"))?;
        let pid = cred.pid.as_raw_nonzero().get().unsigned_abs();
        Ok(Self { uid: cred.uid.as_raw(), gid: cred.gid.as_raw(), pid })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_process_knows_itself() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let peer = Peer::of(&ours).unwrap();
        assert_eq!(peer.pid, std::process::id());
        assert_eq!(peer.uid, rustix::process::getuid().as_raw());
        assert_eq!(peer.gid, rustix::process::getgid().as_raw());
    }
}
