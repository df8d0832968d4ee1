//! The names things go by: newtypes, so that a layer's number cannot be taken for a session's.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// What the names of offered kernels begin with.
const OFFERED: &str = "offered-";

/// A kernel's name in the catalogue: 1 to 200 of `A-Z a-z 0-9 . _ - :`, not starting with a dot.
///
/// The alphabet is what may stand in a file name, a Redis key and a URL segment without escaping.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KernelId(Arc<str>);

impl KernelId {
    /// The most bytes a name may have.
    pub const MAX_BYTES: usize = 200;

    /// The name of a kernel that a trainer has brought along. It says all of the artifact's digest, so that nobody
    /// who has not the bytes can name it.
    pub fn offered(digest: &Digest) -> Self {
        Self(format!("{OFFERED}{digest}").into())
    }

    /// Whether it is such a name: then the kernel is in memory or nowhere, and no catalogue is asked for it.
    pub fn is_offered(&self) -> bool {
        self.0.strip_prefix(OFFERED).is_some_and(|rest| rest.parse::<Digest>().is_ok())
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Why a text is not a kernel's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "kernel id {text:?} is refused: use 1 to {max} of A-Z a-z 0-9 . _ - : and no leading dot",
    max = KernelId::MAX_BYTES
)]
pub struct ParseKernelIdError {
    text: String,
}

impl FromStr for KernelId {
    type Err = ParseKernelIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-:".contains(&b);
        let fits = (1..=Self::MAX_BYTES).contains(&text.len());
        if !fits || text.starts_with('.') || !text.bytes().all(allowed) {
            let text = text.chars().take(60).collect();
            return Err(ParseKernelIdError { text });
        }
        Ok(Self(text.into()))
    }
}

impl TryFrom<String> for KernelId {
    type Error = ParseKernelIdError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<KernelId> for String {
    fn from(id: KernelId) -> Self {
        id.as_str().to_owned()
    }
}

impl fmt::Display for KernelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for KernelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

macro_rules! numbers {
    ($($(#[$doc:meta])* $name:ident($inner:ty);)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}

numbers! {
    /// A trainer's connection, numbered from 1 since the daemon started.
    SessionId(u64);
    /// A layer within its session.
    LayerId(u32);
    /// A seed within its layer, from 0.
    SeedIndex(u16);
    /// A forward pass awaiting its backward, within its session; 0 means "no ticket was taken".
    TicketId(u64);
    /// Counts the kernels a seed has had; a ticket names the one it ran.
    Generation(u64);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_ids_are_safe_as_file_names() {
        for good in ["conv3x3-bn-relu", "a", "v1.2:trained_3"] {
            assert_eq!(good.parse::<KernelId>().unwrap().as_str(), good);
        }
        for bad in ["", ".", "../etc/passwd", "a/b", "ä", "a b", &"x".repeat(201)] {
            assert!(bad.parse::<KernelId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn names_of_offered_kernels_say_the_whole_digest() {
        let id = KernelId::offered(&Digest::of(b"artifact"));
        assert_eq!(id.as_str().parse::<KernelId>().unwrap(), id);
        assert!(id.is_offered());
        for other in ["offered", "offered-", "offered-once", &id.as_str()[..71], "mlp"] {
            assert!(!other.parse::<KernelId>().unwrap().is_offered(), "{other}");
        }
    }
}
