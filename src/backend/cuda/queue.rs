//! A queue of the device: a place on one of its streams.

use std::{any::Any, sync::Arc, time::Instant};

use super::{
    device::Device,
    driver::{Address, DriverError, Event, Stream},
    streams::Note,
};
use crate::backend::{NOTE_BYTES, Queue, Region, RunError};

/// Work that is done in order, on a stream that other queues may use too.
#[derive(Debug)]
pub(super) struct CudaQueue {
    device: Arc<Device>,
    lane: usize,
    /// How many things were handed over since all was last known to be done.
    handed_over: usize,
    /// The mark behind all that was handed over, where it has been set since. A mark of its own tells when this queue's
    /// work is done; the stream, which others may keep busy for ever, does not.
    mark: Option<Event>,
    note: Option<Note>,
}

impl CudaQueue {
    pub(super) fn open(device: &Arc<Device>, goes_first: bool) -> Self {
        let lane = device.streams().take(goes_first);
        Self { device: Arc::clone(device), lane, handed_over: 0, mark: None, note: None }
    }

    /// A queue as one of this device.
    ///
    /// # Errors
    /// [`RunError::Device`] when it is of another.
    pub(super) fn of<'a>(device: &Arc<Device>, queue: &'a mut dyn Queue) -> Result<&'a mut Self, RunError> {
        let queue: &mut dyn Any = queue;
        let ours = queue.downcast_mut::<Self>().filter(|queue| Arc::ptr_eq(&queue.device, device));
        ours.ok_or_else(|| device.run_error("a queue of another device was given"))
    }

    /// The stream that it is on.
    pub(super) fn stream(&self) -> Stream {
        self.device.streams().stream(self.lane)
    }

    /// The stream, for something that is handed to it now.
    pub(super) fn hand_over(&mut self) -> Stream {
        self.handed_over += 1;
        self.forget_mark();
        self.stream()
    }

    fn forget_mark(&mut self) {
        if let Some(event) = self.mark.take() {
            self.device.streams().give_event(event);
        }
    }

    fn nothing_is_left(&mut self) {
        self.handed_over = 0;
        self.forget_mark();
    }

    /// Whether all is done.
    fn ask(&mut self) -> Result<bool, DriverError> {
        if self.handed_over == 0 {
            return Ok(true);
        }
        let event = match self.mark {
            Some(event) => event,
            None => *self.mark.insert(self.device.streams().mark(self.stream())?),
        };
        let is_done = self.device.driver().reached(event)?;
        if is_done {
            self.nothing_is_left();
        }
        Ok(is_done)
    }

    fn error(&self, error: &DriverError) -> RunError {
        self.device.run_error(error)
    }

    fn done(&self, result: Result<(), DriverError>) -> Result<(), RunError> {
        result.map_err(|error| self.error(&error))
    }
}

fn check_fits(needed_bytes: usize, actual_bytes: usize) -> Result<(), RunError> {
    if needed_bytes <= actual_bytes {
        return Ok(());
    }
    Err(RunError::RegionTooSmall { name: "of a copy".into(), needed_bytes, actual_bytes })
}

/// A region's address on the device.
fn address(region: Region<'_>) -> Address {
    region.start().expose_provenance() as Address
}

// Each call of the driver below is given regions, which are valid for their length while they are borrowed. That they
// stay until the work is done: the device's own memory waits for all work before it is given back, and so does shared
// memory before it is unregistered; other host memory is read or written before the driver's call returns.
impl Queue for CudaQueue {
    fn copy(&mut self, from: Region<'_>, to: Region<'_>) -> Result<(), RunError> {
        check_fits(from.len_bytes(), to.len_bytes())?;
        let bytes = from.len_bytes();
        if bytes == 0 {
            return Ok(());
        }
        if from.is_host() && to.is_host() {
            // In its turn, as any other copy.
            self.finish(None)?;
            from.copy_to(to);
            return Ok(());
        }
        let stream = self.hand_over();
        let driver = self.device.driver();
        // SAFETY: as said above.
        let result = unsafe {
            match (from.is_host(), to.is_host()) {
                (true, _) => driver.bring(address(to), from.start(), bytes, stream),
                (_, true) => driver.send(to.start(), address(from), bytes, stream),
                _ => driver.copy(address(to), address(from), bytes, stream),
            }
        };
        self.done(result)
    }

    fn zero(&mut self, region: Region<'_>) -> Result<(), RunError> {
        if region.len_bytes() == 0 {
            return Ok(());
        }
        if region.is_host() {
            self.finish(None)?;
            region.zero();
            return Ok(());
        }
        let stream = self.hand_over();
        // SAFETY: as said above.
        let result = unsafe { self.device.driver().fill(address(region), 0, region.len_bytes(), stream) };
        self.done(result)
    }

    fn write(&mut self, bytes: &[u8], to: Region<'_>) -> Result<(), RunError> {
        check_fits(bytes.len(), to.len_bytes())?;
        if bytes.is_empty() {
            return Ok(());
        }
        if to.is_host() {
            self.finish(None)?;
            to.write(bytes);
            return Ok(());
        }
        let stream = self.hand_over();
        // SAFETY: as said above.
        let result = unsafe { self.device.driver().copy_in(address(to), bytes, stream) };
        self.done(result)
    }

    fn read(&mut self, from: Region<'_>, into: &mut [u8]) -> Result<(), RunError> {
        check_fits(into.len(), from.len_bytes())?;
        if into.is_empty() {
            return Ok(());
        }
        if from.is_host() {
            self.finish(None)?;
            from.read(into);
            return Ok(());
        }
        // The driver waits for the copy, and would not see that the device has stalled.
        self.finish(None)?;
        let stream = self.hand_over();
        // SAFETY: as said above.
        let result = unsafe { self.device.driver().copy_out(into, address(from), stream) };
        self.done(result)?;
        self.nothing_is_left();
        Ok(())
    }

    fn note(&mut self, from: Region<'_>) -> Result<(), RunError> {
        check_fits(NOTE_BYTES, from.len_bytes())?;
        let note = match self.note {
            Some(note) => note,
            None => self.device.streams().take_note(self.lane).map_err(|error| self.error(&error))?,
        };
        self.note = Some(note);
        if from.is_host() {
            self.finish(None)?;
            let mut bytes = [0; NOTE_BYTES];
            from.read(&mut bytes);
            // SAFETY: this holds the device, whose streams are open.
            unsafe { note.write(bytes) };
            return Ok(());
        }
        let stream = self.hand_over();
        // SAFETY: as said above; the note's memory stays until the device is closed.
        let result = unsafe { self.device.driver().send(note.start(), address(from), NOTE_BYTES, stream) };
        self.done(result)
    }

    fn noted(&self) -> [u8; NOTE_BYTES] {
        // SAFETY: this holds the device, whose streams are open.
        self.note.map_or([0; NOTE_BYTES], |note| unsafe { note.read() })
    }

    fn after(&mut self, other: &mut dyn Queue) -> Result<(), RunError> {
        let other = Self::of(&self.device, other)?;
        if other.handed_over == 0 || other.lane == self.lane {
            return Ok(());
        }
        let stream = self.hand_over();
        let streams = self.device.streams();
        let result = streams.mark(other.stream()).and_then(|event| {
            let told = self.device.driver().wait(stream, event);
            streams.give_event(event);
            told
        });
        self.done(result)
    }

    fn is_done(&mut self) -> bool {
        self.ask().unwrap_or(true)
    }

    fn finish(&mut self, deadline: Option<Instant>) -> Result<(), RunError> {
        let device = Arc::clone(&self.device);
        if device.wait_until(deadline, || self.ask())? {
            return Ok(());
        }
        Err(RunError::Timeout { done: 0, total: self.handed_over })
    }
}

impl Drop for CudaQueue {
    fn drop(&mut self) {
        self.forget_mark();
        self.device.streams().give_back(self.lane, self.note.take());
    }
}
