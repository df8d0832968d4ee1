//! The streams of a device, which queues share where there are more queues than streams.
//!
//! A stream costs memory on the device and a place among its few hardware queues, so their number has a bound, and ten
//! thousand queues cost no more than forty. That queues share one is right: a stream only puts their work in an order,
//! and none of it waits for what was handed over later.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU32, Ordering},
};

use super::driver::{Driver, DriverError, Event, Priority, Stream};
use crate::backend::NOTE_BYTES;

/// How many streams take the work of queues; more than a device works on at once.
const NORMAL: usize = 32;
/// How many streams take the work of queues that go first.
const HIGH: usize = 8;
/// How many notes a block of locked memory holds: a page of them.
const NOTES: usize = 4096 / NOTE_BYTES;

/// All streams of a device.
#[derive(Debug)]
pub(super) struct Streams {
    driver: Arc<dyn Driver>,
    lanes: Vec<Stream>,
    /// By lane.
    used: Mutex<Vec<Used>>,
    /// Locked memory that notes lie in.
    blocks: Mutex<Vec<Block>>,
    /// Events that nobody uses at the moment.
    events: Mutex<Vec<Event>>,
    /// For what is waited for at once, such as the zeroing of memory.
    ourselves: Stream,
    captures: Stream,
}

/// What queues have of a lane.
#[derive(Debug, Default)]
struct Used {
    queues: usize,
    /// Whether there ever was one.
    was_taken: bool,
    /// Notes that were given back. They stay with their stream: a copy to one that is still under way then comes before
    /// all that the next owner does.
    notes: Vec<Note>,
}

/// Where a device writes what a queue notes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Note(*const AtomicU32);

// SAFETY: it is a word of a block that lives as long as `Streams`, which every queue holds by its device. Queues use it
// by turns, and it is read as an atomic.
unsafe impl Send for Note {}

#[derive(Debug)]
struct Block(*mut u8);

// SAFETY: an address; the memory is freed by `Streams` alone.
unsafe impl Send for Block {}

impl Note {
    /// For the driver to write to.
    pub(super) fn start(self) -> *mut u8 {
        self.0.cast_mut().cast()
    }

    /// What was written last.
    ///
    /// # Safety
    /// The streams that it is of must still be open.
    pub(super) unsafe fn read(self) -> [u8; NOTE_BYTES] {
        // SAFETY: as the caller promises; it was zeroed before it was first handed out.
        unsafe { &*self.0 }.load(Ordering::Acquire).to_ne_bytes()
    }

    /// Writes to it from here.
    ///
    /// # Safety
    /// The streams that it is of must still be open.
    pub(super) unsafe fn write(self, bytes: [u8; NOTE_BYTES]) {
        // SAFETY: as the caller promises.
        unsafe { &*self.0 }.store(u32::from_ne_bytes(bytes), Ordering::Release);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Streams {
    /// Opens them.
    ///
    /// # Errors
    /// [`DriverError::Failed`].
    pub(super) fn open(driver: Arc<dyn Driver>) -> Result<Self, DriverError> {
        let priorities = [Priority::Normal; NORMAL].into_iter().chain([Priority::High; HIGH]);
        let own = [Priority::Normal; 2];
        let mut opened = Vec::with_capacity(NORMAL + HIGH + own.len());
        for priority in priorities.chain(own) {
            match driver.open_stream(priority) {
                Ok(stream) => opened.push(stream),
                Err(error) => {
                    opened.into_iter().for_each(|stream| close(&*driver, stream));
                    return Err(error);
                }
            }
        }
        let [ourselves, captures] = [opened[NORMAL + HIGH], opened[NORMAL + HIGH + 1]];
        opened.truncate(NORMAL + HIGH);
        Ok(Self {
            driver,
            used: Mutex::new(opened.iter().map(|_| Used::default()).collect()),
            lanes: opened,
            blocks: Mutex::default(),
            events: Mutex::default(),
            ourselves,
            captures,
        })
    }

    /// The stream for what the caller waits for at once.
    pub(super) fn for_ourselves(&self) -> Stream {
        self.ourselves
    }

    /// The stream for captures, which runs nothing.
    pub(super) fn for_captures(&self) -> Stream {
        self.captures
    }

    /// The lane of its kind that has the fewest queues.
    pub(super) fn take(&self, goes_first: bool) -> usize {
        let lanes = if goes_first { NORMAL..NORMAL + HIGH } else { 0..NORMAL };
        let mut used = lock(&self.used);
        let least = lanes.clone().min_by_key(|&lane| used[lane].queues).unwrap_or(lanes.start);
        used[least].queues += 1;
        used[least].was_taken = true;
        least
    }

    /// Every stream that may have work.
    pub(super) fn with_work(&self) -> Vec<Stream> {
        let used = lock(&self.used);
        let taken = self.lanes.iter().zip(&*used).filter(|(_, used)| used.was_taken);
        taken.map(|(&stream, _)| stream).chain([self.ourselves]).collect()
    }

    /// Gives a lane back, with the note that its queue had. What is under way on it goes on.
    pub(super) fn give_back(&self, lane: usize, note: Option<Note>) {
        let used = &mut lock(&self.used)[lane];
        used.queues -= 1;
        used.notes.extend(note);
    }

    /// A lane's stream.
    pub(super) fn stream(&self, lane: usize) -> Stream {
        self.lanes[lane]
    }

    /// A place for the notes of one queue of a lane.
    ///
    /// # Errors
    /// [`DriverError::Failed`] where there is none left and no memory can be locked for more.
    pub(super) fn take_note(&self, lane: usize) -> Result<Note, DriverError> {
        let mut used = lock(&self.used);
        if let Some(note) = used[lane].notes.pop() {
            return Ok(note);
        }
        let start = self.driver.allocate_host(NOTES * NOTE_BYTES)?;
        lock(&self.blocks).push(Block(start));
        let words = start.cast::<AtomicU32>();
        // SAFETY: as many words have just been allocated, aligned to a page.
        used[lane].notes.extend((1..NOTES).map(|n| Note(unsafe { words.add(n) })));
        Ok(Note(words))
    }

    /// An event that nobody else uses until it is given back.
    ///
    /// # Errors
    /// [`DriverError::Failed`].
    fn take_event(&self) -> Result<Event, DriverError> {
        let idle = lock(&self.events).pop();
        idle.map_or_else(|| self.driver.open_event(), Ok)
    }

    /// An event that is reached once a stream has done what it was handed, until it is given back.
    ///
    /// # Errors
    /// [`DriverError::Failed`].
    pub(super) fn mark(&self, stream: Stream) -> Result<Event, DriverError> {
        let event = self.take_event()?;
        let recorded = self.driver.record(event, stream);
        recorded.inspect_err(|_| self.give_event(event)).map(|()| event)
    }

    /// Gives an event back. Streams that wait for it wait for the mark as it was when they were told to.
    pub(super) fn give_event(&self, event: Event) {
        lock(&self.events).push(event);
    }
}

fn close(driver: &dyn Driver, stream: Stream) {
    if let Err(error) = driver.close_stream(stream) {
        tracing::debug!(%error, "a stream could not be closed");
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        // Nobody captures any more: whoever does holds the device.
        if let Err(error) = self.driver.synchronize_all() {
            tracing::debug!(%error, "work had failed when the device was closed");
        }
        for event in lock(&self.events).drain(..) {
            if let Err(error) = self.driver.close_event(event) {
                tracing::debug!(%error, "an event could not be closed");
            }
        }
        for Block(start) in lock(&self.blocks).drain(..) {
            // SAFETY: it comes from `allocate_host`; nothing is under way, and no queue is left.
            if let Err(error) = unsafe { self.driver.free_host(start) } {
                tracing::debug!(%error, "the memory of notes could not be given back");
            }
        }
        for &stream in self.lanes.iter().chain([&self.ourselves, &self.captures]) {
            close(&*self.driver, stream);
        }
    }
}
