//! What a slot's kernel does in its layer's passes.

use crate::wire::GraftRole;

/// A slot's part in the passes of its layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Role {
    /// Its output goes into the blend, with a weight by its alpha.
    #[default]
    Blended,
    /// It runs in training passes alone, beside the blend: its gradient is that of the layer's output, and it
    /// gives none of x.
    Straight,
    /// The layer's own transform. Only the slot after the seeds of a layer that was opened with a host has
    /// this role, and it has no other.
    Host,
}

impl Role {
    /// The role in one word, as records have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Blended => "blended",
            Self::Straight => "straight",
            Self::Host => "host",
        }
    }
}

impl From<GraftRole> for Role {
    fn from(role: GraftRole) -> Self {
        match role {
            GraftRole::Blend => Self::Blended,
            GraftRole::Train => Self::Straight,
        }
    }
}
