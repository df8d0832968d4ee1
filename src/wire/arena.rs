//! The arena: one session's shared memory, with header, rings and heap.

use std::{
    mem::offset_of,
    os::fd::{BorrowedFd, OwnedFd},
    sync::atomic::{AtomicU64, Ordering},
};

use super::{ARENA_MAGIC, ArenaHeader, ArenaLayout, Block, RING_ENTRIES, SharedMemory, WireError};
use crate::backend::{Memory, Region};

/// A session's shared memory. The daemon makes it, the client maps it.
#[derive(Debug)]
pub struct Arena {
    memory: SharedMemory,
    layout: ArenaLayout,
}

/// The words of the header that both sides use all the time.
#[derive(Clone, Copy, Debug)]
pub(super) enum Counter {
    SubmissionTail,
    SubmissionHead,
    CompletionTail,
    CompletionHead,
    DaemonSleeping,
    ClientSleeping,
}

impl Arena {
    /// A new arena of about `arena_bytes`, sealed, its header written.
    ///
    /// # Errors
    /// [`WireError::ArenaSize`], and [`WireError::System`] when the system refuses the memory.
    pub fn create(arena_bytes: u64) -> Result<Self, WireError> {
        let layout = ArenaLayout::new(arena_bytes)?;
        let arena =
            Self { memory: SharedMemory::create("kasmina-arena", layout.arena_bytes as usize)?, layout };
        for (offset, value) in arena.header() {
            arena.memory.words(offset, 1)[0].store(value, Ordering::Relaxed);
        }
        Ok(arena)
    }

    /// Maps an arena that the daemon has sent.
    ///
    /// # Errors
    /// [`WireError::Memory`] when it is not sealed, not as long as announced, or its header says otherwise
    /// than the handshake or than this build; [`WireError::System`] when it cannot be mapped.
    pub fn open(file: OwnedFd, announced: &ArenaLayout) -> Result<Self, WireError> {
        let layout = ArenaLayout::new(announced.arena_bytes)?;
        if layout != *announced {
            return Err(WireError::Memory { reason: format!("a layout of {announced:?} is not known here") });
        }
        let arena = Self { memory: SharedMemory::open(file, layout.arena_bytes)?, layout };
        for (offset, expected) in arena.header() {
            let value = arena.memory.words(offset, 1)[0].load(Ordering::Relaxed);
            if value != expected {
                let reason = format!("its header has {value:#x} at {offset}, {expected:#x} was expected");
                return Err(WireError::Memory { reason });
            }
        }
        Ok(arena)
    }

    fn header(&self) -> [(usize, u64); 8] {
        let layout = &self.layout;
        [
            (offset_of!(ArenaHeader, magic), ARENA_MAGIC),
            (offset_of!(ArenaHeader, arena_bytes), layout.arena_bytes),
            (offset_of!(ArenaHeader, submissions_offset), layout.submissions_offset),
            (offset_of!(ArenaHeader, completions_offset), layout.completions_offset),
            (offset_of!(ArenaHeader, ring_entries), layout.ring_entries),
            (offset_of!(ArenaHeader, descriptor_bytes), layout.descriptor_bytes),
            (offset_of!(ArenaHeader, heap_offset), layout.heap_offset),
            (offset_of!(ArenaHeader, heap_bytes), layout.heap_bytes),
        ]
    }

    /// Where things lie.
    pub fn layout(&self) -> &ArenaLayout {
        &self.layout
    }

    /// The memory file, to be sent to the client.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.memory.file()
    }

    /// The memory of a block.
    ///
    /// The client may write to it at any time: read it through pointers, and never derive an index or a
    /// length from what stands there.
    ///
    /// # Errors
    /// [`WireError::Block`] when it does not lie in the heap.
    pub fn region(&self, block: Block) -> Result<Region<'_>, WireError> {
        let Block { offset, bytes } = block;
        let reason = "it does not lie in the heap";
        let refused = WireError::Block { name: "region", offset, bytes, reason };
        if offset < self.layout.heap_offset {
            return Err(refused);
        }
        // On 64-bit systems, the only ones there are arenas on, every u64 within the mapping is a usize.
        self.memory.region().part(offset as usize, bytes as usize).ok_or(refused)
    }

    pub(super) fn counter(&self, counter: Counter) -> &AtomicU64 {
        let offset = match counter {
            Counter::SubmissionTail => offset_of!(ArenaHeader, submission_tail),
            Counter::SubmissionHead => offset_of!(ArenaHeader, submission_head),
            Counter::CompletionTail => offset_of!(ArenaHeader, completion_tail),
            Counter::CompletionHead => offset_of!(ArenaHeader, completion_head),
            Counter::DaemonSleeping => offset_of!(ArenaHeader, daemon_sleeping),
            Counter::ClientSleeping => offset_of!(ArenaHeader, client_sleeping),
        };
        &self.memory.words(offset, 1)[0]
    }

    /// The word that says whether what a submission reads is there, where a GPU writes that.
    pub(super) fn ready(&self, submission: u64) -> &AtomicU64 {
        self.word_of(offset_of!(ArenaHeader, ready), submission)
    }

    /// The word that says whether it is done.
    pub(super) fn done(&self, submission: u64) -> &AtomicU64 {
        self.word_of(offset_of!(ArenaHeader, done), submission)
    }

    /// The word for what of the client's own output goes into the layer's.
    pub(super) fn rest(&self, submission: u64) -> &AtomicU64 {
        self.word_of(offset_of!(ArenaHeader, rest), submission)
    }

    fn word_of(&self, offset: usize, submission: u64) -> &AtomicU64 {
        let place = submission as usize % RING_ENTRIES;
        &self.memory.words(offset + 8 * place, 1)[0]
    }

    /// How many submissions the daemon has taken.
    #[cfg(test)]
    pub(crate) fn taken(&self) -> u64 {
        self.counter(Counter::SubmissionHead).load(Ordering::Acquire)
    }

    /// Says that what a submission reads is there, as a client's stream does.
    #[cfg(test)]
    pub(crate) fn set_ready(&self, submission: u64) {
        self.ready(submission).store(submission + 1, Ordering::Release);
    }

    /// What a client's stream finds that waits for a submission.
    #[cfg(test)]
    pub(crate) fn done_and_rest(&self, submission: u64) -> (u64, f32) {
        let rest = self.rest(submission).load(Ordering::Relaxed) as u32;
        (self.done(submission).load(Ordering::Acquire), f32::from_bits(rest))
    }

    pub(super) fn words(&self, offset: usize, count: usize) -> &[AtomicU64] {
        self.memory.words(offset, count)
    }
}

/// The whole mapping, rings included: blocks are parts of it once they have been checked.
impl Memory for Arena {
    fn region(&self) -> Region<'_> {
        self.memory.region()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::MIN_ARENA_BYTES;

    fn copy(arena: &Arena) -> OwnedFd {
        arena.file().try_clone_to_owned().unwrap()
    }

    #[test]
    fn a_client_maps_what_the_daemon_made() {
        let ours = Arena::create(1 << 20).unwrap();
        let theirs = Arena::open(copy(&ours), ours.layout()).unwrap();
        assert_eq!(theirs.layout(), ours.layout());
        ours.counter(Counter::DaemonSleeping).store(1, Ordering::Relaxed);
        assert_eq!(theirs.counter(Counter::DaemonSleeping).load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_header_that_says_otherwise_is_refused() {
        let ours = Arena::create(1 << 20).unwrap();
        let other = ArenaLayout { heap_offset: 0, ..*ours.layout() };
        assert!(Arena::open(copy(&ours), &other).is_err());
        let larger = ArenaLayout::new(1 << 21).unwrap();
        assert!(Arena::open(copy(&ours), &larger).is_err());
        ours.words(0, 1)[0].store(0, Ordering::Relaxed);
        assert!(Arena::open(copy(&ours), ours.layout()).is_err());
    }

    #[test]
    fn blocks_lie_in_the_heap_or_are_refused() {
        let arena = Arena::create(MIN_ARENA_BYTES).unwrap();
        let ArenaLayout { heap_offset, heap_bytes, .. } = *arena.layout();
        let region = |offset, bytes| arena.region(Block { offset, bytes });
        assert_eq!(region(heap_offset, heap_bytes).unwrap().len_bytes(), heap_bytes as usize);
        assert!(region(heap_offset + heap_bytes, 0).is_ok());
        for (offset, bytes) in [
            (0, 8),
            (heap_offset - 64, 64),
            (heap_offset, heap_bytes + 1),
            (u64::MAX, 1),
            (heap_offset, u64::MAX),
        ] {
            assert!(region(offset, bytes).is_err(), "{offset} {bytes}");
        }
    }
}
