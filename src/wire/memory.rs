//! Memory files: shared between processes, sealed so that no peer can shrink one under our feet.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    ptr::NonNull,
    sync::atomic::AtomicU64,
};

use rustix::{
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create},
    mm::{MapFlags, ProtFlags, mmap, munmap},
};

use super::WireError;
use crate::backend::{Memory, Region};

/// A memory file, mapped for reading and writing as long as this lives.
///
/// Others may map the same file and write to it at any time; see [`Region`].
#[derive(Debug)]
pub struct SharedMemory {
    file: OwnedFd,
    start: NonNull<u8>,
    len_bytes: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread; access goes through atomics or regions.
unsafe impl Send for SharedMemory {}
// SAFETY: as above.
unsafe impl Sync for SharedMemory {}

/// What a peer cannot do to the file: shrink it (which would turn our reads into SIGBUS), grow it, or take
/// the seals off.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

impl SharedMemory {
    /// A new file of `len_bytes` zeros, sealed. `name` shows in `/proc/<pid>/maps` after `memfd:`.
    ///
    /// Memory is taken page by page as it is first touched.
    ///
    /// # Errors
    /// [`WireError::Memory`] for no bytes at all, [`WireError::System`] when the system has no more files
    /// or address space.
    pub fn create(name: &str, len_bytes: usize) -> Result<Self, WireError> {
        let file = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .map_err(WireError::system("making a memory file"))?;
        ftruncate(&file, len_bytes as u64).map_err(WireError::system("sizing a memory file"))?;
        fcntl_add_seals(&file, SEALS).map_err(WireError::system("sealing a memory file"))?;
        Self::map(file, len_bytes)
    }

    /// Maps a file that a peer has sent.
    ///
    /// # Errors
    /// [`WireError::Memory`] when the file is not sealed or not `len_bytes` long, [`WireError::System`] when
    /// it cannot be mapped.
    pub fn open(file: OwnedFd, len_bytes: u64) -> Result<Self, WireError> {
        let refused = |reason: String| Err(WireError::Memory { reason });
        match fcntl_get_seals(&file) {
            Ok(seals) if seals.contains(SEALS) => {}
            Ok(seals) => return refused(format!("it has the seals {seals:?}, {SEALS:?} are needed")),
            Err(_) => return refused("it is no memory file".to_owned()),
        }
        let stat = fstat(&file).map_err(WireError::system("looking at a memory file"))?;
        if u64::try_from(stat.st_size) != Ok(len_bytes) {
            return refused(format!("it has {} bytes, {len_bytes} were announced", stat.st_size));
        }
        let Ok(len_bytes) = usize::try_from(len_bytes) else {
            return refused(format!("{len_bytes} bytes do not fit the address space"));
        };
        Self::map(file, len_bytes)
    }

    fn map(file: OwnedFd, len_bytes: usize) -> Result<Self, WireError> {
        if len_bytes == 0 {
            return Err(WireError::Memory { reason: "it is empty".to_owned() });
        }
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the system chooses an address where nothing of ours lies.
        let start = unsafe { mmap(std::ptr::null_mut(), len_bytes, access, MapFlags::SHARED, &file, 0) }
            .map_err(WireError::system("mapping a memory file"))?;
        let start = NonNull::new(start.cast()).ok_or(WireError::Memory { reason: "mapped at 0".into() })?;
        Ok(Self { file, start, len_bytes })
    }

    /// The file, to be sent to a peer.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// How many bytes.
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// The whole of it.
    pub fn region(&self) -> Region<'_> {
        // SAFETY: the mapping is readable and writable until `self` is dropped, which the region's
        // lifetime forbids while it lives; the seals keep the file as long as the mapping.
        unsafe { Region::from_raw(self.start.as_ptr(), self.len_bytes) }
    }

    /// `count` words from `offset` on.
    ///
    /// # Panics
    /// When they are misaligned or do not lie within. Callers pass places fixed by the layout.
    pub(super) fn words(&self, offset: usize, count: usize) -> &[AtomicU64] {
        let end = count.checked_mul(8).and_then(|bytes| offset.checked_add(bytes));
        assert!(
            offset.is_multiple_of(8) && end.is_some_and(|end| end <= self.len_bytes),
            "the layout keeps every word within the arena"
        );
        // SAFETY: the range was checked just now and mappings start on a page, so the words are aligned,
        // readable and writable; that others write to them is what atomics are for.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().add(offset).cast(), count) }
    }
}

impl Memory for SharedMemory {
    fn region(&self) -> Region<'_> {
        SharedMemory::region(self)
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: the range is exactly what `map` was given; whatever borrowed from it is gone by now. That
        // unmapping a valid range could fail leaves nothing to do about it.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.len_bytes) };
    }
}

#[cfg(test)]
mod tests {
    use std::{os::fd::AsFd, sync::atomic::Ordering};

    use super::*;

    #[test]
    fn both_sides_see_the_same_bytes() {
        let ours = SharedMemory::create("test", 8192).unwrap();
        let theirs = SharedMemory::open(ours.file().try_clone_to_owned().unwrap(), 8192).unwrap();
        ours.words(4096, 1)[0].store(7, Ordering::Relaxed);
        assert_eq!(theirs.words(4096, 1)[0].load(Ordering::Relaxed), 7);
        assert_eq!(theirs.region().len_bytes(), 8192);
    }

    #[test]
    fn a_sealed_file_cannot_be_shrunk_or_grown() {
        let memory = SharedMemory::create("test", 8192).unwrap();
        assert!(ftruncate(memory.file(), 0).is_err());
        assert!(ftruncate(memory.file(), 16384).is_err());
        assert!(fcntl_add_seals(memory.file(), SealFlags::WRITE).is_err());
    }

    #[test]
    fn a_file_that_could_still_shrink_is_refused() {
        let file = memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&file, 4096).unwrap();
        assert!(matches!(SharedMemory::open(file, 4096), Err(WireError::Memory { .. })));
        let (socket, _) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(matches!(SharedMemory::open(socket.into(), 4096), Err(WireError::Memory { .. })));
    }

    #[test]
    fn a_file_of_another_size_is_refused() {
        let memory = SharedMemory::create("test", 4096).unwrap();
        let file = || memory.file().as_fd().try_clone_to_owned().unwrap();
        assert!(SharedMemory::open(file(), 8192).is_err());
        assert!(SharedMemory::open(file(), 0).is_err());
        assert!(SharedMemory::create("test", 0).is_err());
    }
}
