//! What can go wrong between two processes that share memory.

use crate::fault::{ErrorClass, Fault};

/// Why a connection, an arena or a descriptor is refused.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The other side has closed the connection or died.
    #[error("the other side has closed the connection")]
    Closed,
    /// A system call failed.
    #[error("{operation} failed")]
    System {
        /// What was tried.
        operation: &'static str,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// A frame longer than any may be.
    #[error("a frame of {frame_bytes} bytes was announced, at most {max_bytes} are allowed")]
    FrameTooLong {
        /// What was announced.
        frame_bytes: u64,
        /// The limit.
        max_bytes: u64,
    },
    /// A frame whose header or descriptors are not what the protocol says.
    #[error("the frame breaks the protocol: {reason}")]
    Frame {
        /// What is wrong.
        reason: String,
    },
    /// A payload that is not the JSON expected.
    #[error("the payload is not understood")]
    Payload {
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// An arena of a size that is not allowed.
    #[error("an arena of {arena_bytes} bytes is refused: ask for {min_bytes} to {max_bytes}")]
    ArenaSize {
        /// What was asked for.
        arena_bytes: u64,
        /// The smallest.
        min_bytes: u64,
        /// The largest.
        max_bytes: u64,
    },
    /// Shared memory that is not what it should be.
    #[error("the shared memory is refused: {reason}")]
    Memory {
        /// What is wrong.
        reason: String,
    },
    /// A block that does not lie in the heap.
    #[error("block {name} of {bytes} bytes at {offset} is refused: {reason}")]
    Block {
        /// Which.
        name: &'static str,
        /// Where it was said to start.
        offset: u64,
        /// How long it was said to be.
        bytes: u64,
        /// What is wrong.
        reason: &'static str,
    },
    /// A ring counter that cannot be true.
    #[error("the {ring} ring's counters are impossible: head {head}, tail {tail}")]
    Ring {
        /// Which ring.
        ring: &'static str,
        /// The consumer's counter.
        head: u64,
        /// The producer's counter.
        tail: u64,
    },
    /// A ring with no room: the other side does not consume.
    #[error("the {ring} ring is full: consume before publishing more")]
    RingFull {
        /// Which ring.
        ring: &'static str,
    },
    /// A descriptor that breaks the protocol.
    #[error("the descriptor breaks the protocol: {reason}")]
    Descriptor {
        /// What is wrong.
        reason: String,
    },
    /// A block of memory that cannot be had.
    #[error(
        "the arena has no {bytes} bytes free in one piece: {free_bytes} of {heap_bytes} are free; free tensors or connect with a larger arena"
    )]
    ArenaFull {
        /// What was asked for.
        bytes: u64,
        /// What is free altogether.
        free_bytes: u64,
        /// The size of the heap.
        heap_bytes: u64,
    },
}

impl WireError {
    pub(crate) fn system(operation: &'static str) -> impl FnOnce(rustix::io::Errno) -> Self {
        move |errno| Self::System { operation, source: errno.into() }
    }
}

impl Fault for WireError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Closed => ErrorClass::Cancelled,
            Self::System { .. } => ErrorClass::Unavailable,
            Self::RingFull { .. } | Self::ArenaFull { .. } => ErrorClass::Overloaded,
            _ => ErrorClass::Invalid,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Closed => "session.lost",
            Self::System { .. } => "session.system",
            Self::ArenaSize { .. } | Self::ArenaFull { .. } => "session.quota",
            _ => "session.protocol",
        }
    }
}
