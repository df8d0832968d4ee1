//! Who may connect: decided by the user id that the kernel states, after the socket's mode has let them.

use crate::wire::Peer;

/// The users that a socket takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Access {
    own_uid: u32,
    listed: Option<Vec<u32>>,
}

impl Access {
    /// A trainers' socket: with an empty list, whoever the socket's mode lets connect.
    pub(super) fn trainers(own_uid: u32, allow_uids: &[u32]) -> Self {
        Self { own_uid, listed: (!allow_uids.is_empty()).then(|| allow_uids.to_vec()) }
    }

    /// The operators' socket: nobody but root, the daemon's own user, and those listed.
    pub(super) fn operators(own_uid: u32, admin_uids: &[u32]) -> Self {
        Self { own_uid, listed: Some(admin_uids.to_vec()) }
    }

    /// Whether this peer may stay.
    pub(super) fn admits(&self, peer: &Peer) -> bool {
        let listed = self.listed.as_ref().is_none_or(|uids| uids.contains(&peer.uid));
        listed || peer.uid == 0 || peer.uid == self.own_uid
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_kept_to() {
        let peer = |uid| Peer { uid, gid: uid, pid: 1 };
        let open = Access::trainers(500, &[]);
        assert!(open.admits(&peer(1000)));
        let listed = Access::trainers(500, &[1000]);
        assert!(listed.admits(&peer(1000)) && listed.admits(&peer(0)) && listed.admits(&peer(500)));
        assert!(!listed.admits(&peer(1001)));
        let operators = Access::operators(500, &[]);
        assert!(operators.admits(&peer(500)) && operators.admits(&peer(0)) && !operators.admits(&peer(1000)));
    }
}
