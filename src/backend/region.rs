//! Regions: memory handed to an executable for one run.

use std::marker::PhantomData;

/// A block of memory that outlives one run: start and length, without the promise that nobody else
/// writes to it.
///
/// Shared memory can change under our feet (a trainer may write to its arena at any time), so an
/// executable reads through pointers and never derives an index or a length from what it finds there.
#[derive(Clone, Copy, Debug)]
pub struct Region<'a> {
    start: *mut u8,
    len_bytes: usize,
    is_host: bool,
    life: PhantomData<&'a ()>,
}

// SAFETY: a region is an address and a length; those who read and write through it do so in `unsafe`
// blocks of their own and answer for races there.
unsafe impl Send for Region<'_> {}
// SAFETY: as above; sharing the address shares nothing by itself.
unsafe impl Sync for Region<'_> {}

impl<'a> Region<'a> {
    /// A region of no bytes.
    pub const EMPTY: Region<'static> = Region {
        start: std::ptr::dangling_mut::<u128>().cast(),
        len_bytes: 0,
        is_host: true,
        life: PhantomData,
    };

    /// A region over memory borrowed for as long as the region lives.
    pub fn from_mut(bytes: &'a mut [u8]) -> Self {
        Self { start: bytes.as_mut_ptr(), len_bytes: bytes.len(), is_host: true, life: PhantomData }
    }

    /// A region of host memory that is not borrowed, as a mapping is.
    ///
    /// # Safety
    /// `start` must be valid for reads and writes of `len_bytes` bytes for as long as `'a` lasts.
    pub unsafe fn from_raw(start: *mut u8, len_bytes: usize) -> Self {
        Self { start, len_bytes, is_host: true, life: PhantomData }
    }

    /// A region of a device's memory, by its address there. What this process does itself (`read`, `write`, `copy_to`,
    /// `zero`) it does not do to such a region; a [`Queue`](super::Queue) of the device does.
    ///
    /// # Safety
    /// The device must be able to read and write as many bytes there for as long as `'a` lasts.
    pub unsafe fn on_device(address: u64, len_bytes: usize) -> Self {
        let start = std::ptr::with_exposed_provenance_mut(address as usize);
        Self { start, len_bytes, is_host: false, life: PhantomData }
    }

    /// Whether it lies in the host's memory.
    pub fn is_host(&self) -> bool {
        self.is_host
    }

    /// The first byte's address.
    pub fn start(&self) -> *mut u8 {
        self.start
    }

    /// How many bytes.
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// The part from `offset`, `len` bytes long; `None` where it does not lie within.
    pub fn part(&self, offset: usize, len: usize) -> Option<Region<'a>> {
        let end = offset.checked_add(len)?;
        if end > self.len_bytes {
            return None;
        }
        // The address stays within the block or at its end; a device's block is nothing that `add` knows of.
        let start = self.start.wrapping_add(offset);
        Some(Region { start, len_bytes: len, ..*self })
    }

    /// Copies the region's first bytes out; `false`, and nothing is copied, where it is shorter or a device's.
    pub fn read(&self, into: &mut [u8]) -> bool {
        let fits = into.len() <= self.len_bytes && self.is_host;
        if fits {
            // SAFETY: the region is valid for as many bytes, and a `&mut` slice overlaps no region that
            // safe code could have made. If somebody writes meanwhile, the bytes are theirs and are not
            // trusted.
            unsafe { std::ptr::copy_nonoverlapping(self.start, into.as_mut_ptr(), into.len()) };
        }
        fits
    }

    /// Copies bytes to the region's start; `false`, and nothing is copied, where it is shorter or a device's.
    pub fn write(&self, from: &[u8]) -> bool {
        let fits = from.len() <= self.len_bytes && self.is_host;
        if fits {
            // SAFETY: as in `read`; `copy` allows the two to overlap.
            unsafe { std::ptr::copy(from.as_ptr(), self.start, from.len()) };
        }
        fits
    }

    /// Copies the whole region to another one's start; `false`, and nothing is copied, where that is
    /// shorter, or where one of them is a device's.
    pub fn copy_to(&self, target: Region<'_>) -> bool {
        let fits = self.len_bytes <= target.len_bytes && self.is_host && target.is_host;
        if fits {
            // SAFETY: both regions are valid for as many bytes; `copy` allows them to overlap.
            unsafe { std::ptr::copy(self.start, target.start, self.len_bytes) };
        }
        fits
    }

    /// Fills the region with zeros; `false`, and nothing is written, where it is a device's.
    pub fn zero(&self) -> bool {
        if self.is_host {
            // SAFETY: the region is valid for writes of its length.
            unsafe { std::ptr::write_bytes(self.start, 0, self.len_bytes) };
        }
        self.is_host
    }
}
