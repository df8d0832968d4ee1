//! Why a cache cannot take or give a kernel.

use crate::{
    fault::{ErrorClass, Fault},
    id::KernelId,
};

/// Why the device tier does not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CacheError {
    /// It would not fit an empty cache.
    #[error(
        "kernel {id} weighs {bytes} bytes, the device cache holds {max_bytes}: raise its limit or use a smaller kernel"
    )]
    TooLarge {
        /// Which kernel.
        id: KernelId,
        /// What it weighs.
        bytes: u64,
        /// What the cache may hold.
        max_bytes: u64,
    },
    /// All that could make room is in use or pinned.
    #[error(
        "no room in the device cache for kernel {id} of {bytes} bytes: {held_bytes} of {max_bytes} bytes in {held_entries} kernels (limit {max_entries}) are in use or pinned, prune a seed, unpin a kernel or raise the limit"
    )]
    NoRoom {
        /// Which kernel.
        id: KernelId,
        /// What it weighs.
        bytes: u64,
        /// What kernels in use or pinned weigh.
        held_bytes: u64,
        /// How many kernels are in use or pinned.
        held_entries: usize,
        /// The most bytes.
        max_bytes: u64,
        /// The most kernels.
        max_entries: usize,
    },
    /// Leased or pinned, so it stays.
    #[error("kernel {id} is held by {holders} users{}: prune its seeds or unpin it first", if *pinned { " and pinned" } else { "" })]
    InUse {
        /// Which kernel.
        id: KernelId,
        /// How many leases are out.
        holders: u32,
        /// Whether it is pinned.
        pinned: bool,
    },
}

impl Fault for CacheError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::TooLarge { .. } => ErrorClass::Invalid,
            Self::NoRoom { .. } | Self::InUse { .. } => ErrorClass::Overloaded,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "cache.too_large",
            Self::NoRoom { .. } => "cache.no_room",
            Self::InUse { .. } => "cache.in_use",
        }
    }
}
