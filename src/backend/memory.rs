//! Memory that runs work on: shared with a trainer or the daemon's own.

use std::{cell::UnsafeCell, fmt, os::fd::BorrowedFd, sync::Arc};

use super::{Queue, Region, RunError};
use crate::tensor::ALIGNMENT_BYTES;

/// A block of memory that may be handed to a run, kept alive by whoever holds the owner.
///
/// A run on another thread holds an `Arc` of it, so that a run that comes late never writes to memory that
/// somebody else has been given.
pub trait Memory: Send + Sync + fmt::Debug {
    /// The whole block, aligned to [`ALIGNMENT_BYTES`].
    fn region(&self) -> Region<'_>;

    /// How many bytes.
    fn len_bytes(&self) -> usize {
        self.region().len_bytes()
    }

    /// Why there is no memory, where it was asked for and could not be had; the region is then empty.
    fn lack(&self) -> Option<&RunError> {
        None
    }

    /// What alone keeps the block mapped, where this keeps more, such as a place in a ledger: a device lets go of a mapping some
    /// time after nobody uses it any more.
    fn mapping(&self) -> Option<Arc<dyn Memory>> {
        None
    }
}

/// Memory of the daemon's own, on whatever device, freed when it is dropped.
pub type OwnMemory = Box<dyn Memory>;

/// A block of no bytes, which costs nothing to make.
pub fn nothing() -> OwnMemory {
    #[derive(Debug)]
    struct Nothing;

    impl Memory for Nothing {
        fn region(&self) -> Region<'_> {
            Region::EMPTY
        }
    }
    Box::new(Nothing)
}

/// Memory that could not be had.
#[derive(Debug)]
pub struct Lacking(pub RunError);

impl Memory for Lacking {
    fn region(&self) -> Region<'_> {
        Region::EMPTY
    }

    fn lack(&self) -> Option<&RunError> {
        Some(&self.0)
    }
}

/// Memory of a device that another process maps by its file. It lasts as long as anybody has that open or mapped.
pub trait DeviceFile: Memory {
    /// The file.
    fn file(&self) -> BorrowedFd<'_>;
}

/// Memory that a trainer maps too, and where the device has it: the same memory, or a copy of it at the same offsets.
#[derive(Debug)]
pub struct Shared {
    /// First, so that a device lets go of the other before it is unmapped.
    ours: Option<OwnMemory>,
    theirs: Arc<dyn Memory>,
    /// The host's memory beside it, where it is a device's.
    words: Option<Arc<dyn Memory>>,
}

impl Shared {
    /// Memory that the device reads and writes where it is.
    pub fn same(memory: Arc<dyn Memory>) -> Self {
        Self { ours: None, theirs: memory, words: None }
    }

    /// Memory with a copy on the device, which is as large.
    pub fn copied(theirs: Arc<dyn Memory>, ours: OwnMemory) -> Self {
        Self { ours: Some(ours), theirs, words: None }
    }

    /// Memory of the device, which the trainer maps too, and memory of the host for what this process itself reads and
    /// writes: in a block of either lies what has the same offset in the other.
    pub fn on_device(tensors: Arc<dyn Memory>, words: Arc<dyn Memory>) -> Self {
        Self { ours: None, theirs: tensors, words: Some(words) }
    }

    /// As the trainer has it, wherever that is.
    pub fn theirs(&self) -> Region<'_> {
        self.theirs.region()
    }

    /// In the host's memory, for what this process reads and writes itself.
    pub fn words(&self) -> Region<'_> {
        self.words.as_ref().unwrap_or(&self.theirs).region()
    }

    /// As the device has it.
    pub fn device(&self) -> Region<'_> {
        match &self.ours {
            Some(ours) => ours.region(),
            None => self.theirs.region(),
        }
    }

    /// Hands over the copy of a part to the device, if it has one of its own. What does not lie within is passed over:
    /// the run that wants it finds that out.
    ///
    /// # Errors
    /// As [`Queue::copy`].
    pub fn bring(&self, queue: &mut dyn Queue, offset: usize, len_bytes: usize) -> Result<(), RunError> {
        self.carry(queue, offset, len_bytes, |theirs, ours| (theirs, ours))
    }

    /// Hands over the copy of a part from the device to where the trainer has it.
    ///
    /// # Errors
    /// As [`Queue::copy`].
    pub fn send(&self, queue: &mut dyn Queue, offset: usize, len_bytes: usize) -> Result<(), RunError> {
        self.carry(queue, offset, len_bytes, |theirs, ours| (ours, theirs))
    }

    fn carry<'a>(
        &'a self,
        queue: &mut dyn Queue,
        offset: usize,
        len_bytes: usize,
        way: impl FnOnce(Region<'a>, Region<'a>) -> (Region<'a>, Region<'a>),
    ) -> Result<(), RunError> {
        let Some(ours) = &self.ours else { return Ok(()) };
        let parts = (self.theirs.region().part(offset, len_bytes), ours.region().part(offset, len_bytes));
        let (Some(theirs), Some(ours)) = parts else { return Ok(()) };
        if len_bytes == 0 {
            return Ok(());
        }
        let (from, to) = way(theirs, ours);
        queue.copy(from, to)
    }
}

/// Bytes of a large page, on x86 and on Arm with pages of 4 KiB.
const LARGE_PAGE: usize = 2 << 20;

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; ALIGNMENT_BYTES]);

/// Zeroed host memory of the daemon's own, aligned to [`ALIGNMENT_BYTES`].
pub struct HostMemory {
    lines: Box<[UnsafeCell<Line>]>,
    len_bytes: usize,
}

// SAFETY: the memory is reached through regions alone, whose users answer for races (see `Region`).
unsafe impl Sync for HostMemory {}

impl HostMemory {
    /// A block of at least `len_bytes` zeros.
    pub fn new(len_bytes: usize) -> Self {
        let lines = Box::new_zeroed_slice(len_bytes.div_ceil(ALIGNMENT_BYTES));
        // SAFETY: a line is bytes, for which zeros are a value. Zeroed by the allocator, large blocks take no
        // memory before they are written to.
        let memory = Self { lines: unsafe { lines.assume_init() }, len_bytes };
        memory.advise();
        memory
    }

    /// Has the system use large pages for the whole ones that lie in it, if it likes: activations are read from end to end.
    fn advise(&self) {
        let start = self.lines.as_ptr().addr();
        let (first, end) = (start.next_multiple_of(LARGE_PAGE), start + size_of_val(&*self.lines));
        let whole = end.saturating_sub(first) / LARGE_PAGE * LARGE_PAGE;
        if whole > 0 {
            let first = UnsafeCell::raw_get(self.lines.as_ptr()).cast::<u8>().wrapping_add(first - start);
            // SAFETY: the range lies within the lines, of which the advice changes no byte.
            let _ = unsafe { rustix::mm::madvise(first.cast(), whole, rustix::mm::Advice::LinuxHugepage) };
        }
    }

    /// How many bytes were asked for.
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }
}

impl Memory for HostMemory {
    fn region(&self) -> Region<'_> {
        if self.lines.is_empty() {
            return Region::EMPTY;
        }
        // SAFETY: the lines lie one after the other, each of 64 bytes, are at least as long as `len_bytes`
        // and live as long as the borrow; cells allow writing through a shared reference.
        unsafe { Region::from_raw(UnsafeCell::raw_get(self.lines.as_ptr()).cast(), self.len_bytes) }
    }
}

impl fmt::Debug for HostMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostMemory({} bytes)", self.len_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_aligned_zeroed_and_written_through_regions() {
        let memory = HostMemory::new(100);
        let region = memory.region();
        assert_eq!((region.start() as usize % ALIGNMENT_BYTES, region.len_bytes()), (0, 100));
        let part = region.part(64, 8).unwrap();
        assert!(part.write(&[7; 8]));
        assert!(!part.write(&[7; 9]));
        let mut all = [1; 100];
        assert!(region.read(&mut all));
        assert_eq!((all[63], all[64], all[71], all[72]), (0, 7, 7, 0));
        let other = HostMemory::new(8);
        assert!(part.copy_to(other.region()));
        part.zero();
        let mut bytes = [0; 8];
        assert!(other.region().read(&mut bytes));
        assert_eq!(bytes, [7; 8]);
        assert!(part.read(&mut bytes));
        assert_eq!(bytes, [0; 8]);
        assert_eq!(HostMemory::new(0).region().len_bytes(), 0);
    }
}
