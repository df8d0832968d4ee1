//! What a device is handed, in order.

use std::{any::Any, fmt, time::Instant};

use super::{Region, RunError};

/// Bytes of a note.
pub const NOTE_BYTES: usize = 4;

/// A device's work, done in the order in which it was handed over.
///
/// The CPU does everything before a method returns. Other devices only take it: what fails there is told by the next
/// call that waits for it. Memory that is dropped while a queue may still use it stays until that is done; the device
/// that it belongs to sees to it.
pub trait Queue: Any + Send + fmt::Debug {
    /// Hands over a copy of the whole of `from` to the start of `to`; either may be the host's memory or the device's.
    ///
    /// # Errors
    /// [`RunError::RegionTooSmall`] where it does not fit; [`RunError::Device`].
    fn copy(&mut self, from: Region<'_>, to: Region<'_>) -> Result<(), RunError>;

    /// Hands over the filling of a region with zeros.
    ///
    /// # Errors
    /// [`RunError::Device`].
    fn zero(&mut self, region: Region<'_>) -> Result<(), RunError>;

    /// Hands over a copy of bytes, which are read before this returns.
    ///
    /// # Errors
    /// As [`copy`](Self::copy).
    fn write(&mut self, bytes: &[u8], to: Region<'_>) -> Result<(), RunError>;

    /// Copies a region's first bytes out, once all that was handed over before is done. Blocking.
    ///
    /// # Errors
    /// As [`copy`](Self::copy).
    fn read(&mut self, from: Region<'_>, into: &mut [u8]) -> Result<(), RunError>;

    /// Hands over the copy of a region's first [`NOTE_BYTES`] to where [`noted`](Self::noted) finds them.
    ///
    /// # Errors
    /// As [`copy`](Self::copy).
    fn note(&mut self, from: Region<'_>) -> Result<(), RunError>;

    /// What was noted last. Ask it once [`finish`](Self::finish) has said that all is done.
    fn noted(&self) -> [u8; NOTE_BYTES];

    /// Has what is handed to this queue from now on wait for all that another one has been handed so far.
    ///
    /// # Errors
    /// [`RunError::Device`], also where the other is not of this device.
    fn after(&mut self, other: &mut dyn Queue) -> Result<(), RunError>;

    /// Whether all that was handed over is done, or has failed.
    fn is_done(&mut self) -> bool;

    /// Waits until all that was handed over is done. Blocking.
    ///
    /// # Errors
    /// [`RunError::Timeout`] where it is not by the deadline: the work goes on; [`RunError::Device`] where some of it
    /// has failed.
    fn finish(&mut self, deadline: Option<Instant>) -> Result<(), RunError>;
}

/// The CPU's queue: done before it returns.
#[derive(Debug, Default)]
pub struct HostQueue {
    note: [u8; NOTE_BYTES],
}

fn fits(does: bool, needed_bytes: usize, actual_bytes: usize) -> Result<(), RunError> {
    let name = || "of a copy".to_owned();
    if does { Ok(()) } else { Err(RunError::RegionTooSmall { name: name(), needed_bytes, actual_bytes }) }
}

impl Queue for HostQueue {
    fn copy(&mut self, from: Region<'_>, to: Region<'_>) -> Result<(), RunError> {
        fits(from.copy_to(to), from.len_bytes(), to.len_bytes())
    }

    fn zero(&mut self, region: Region<'_>) -> Result<(), RunError> {
        fits(region.zero(), region.len_bytes(), 0)
    }

    fn write(&mut self, bytes: &[u8], to: Region<'_>) -> Result<(), RunError> {
        fits(to.write(bytes), bytes.len(), to.len_bytes())
    }

    fn read(&mut self, from: Region<'_>, into: &mut [u8]) -> Result<(), RunError> {
        fits(from.read(into), into.len(), from.len_bytes())
    }

    fn note(&mut self, from: Region<'_>) -> Result<(), RunError> {
        fits(from.read(&mut self.note), NOTE_BYTES, from.len_bytes())
    }

    fn noted(&self) -> [u8; NOTE_BYTES] {
        self.note
    }

    fn after(&mut self, _other: &mut dyn Queue) -> Result<(), RunError> {
        Ok(())
    }

    fn is_done(&mut self) -> bool {
        true
    }

    fn finish(&mut self, _deadline: Option<Instant>) -> Result<(), RunError> {
        Ok(())
    }
}
