//! A driver that writes down what it is asked to do, and a judge of the order.

mod judge;
mod ranges;

use std::{
    collections::HashMap,
    ops::Range,
    sync::{Arc, Mutex},
    thread::ThreadId,
};

use super::{
    Access, Address, Driver, DriverError, Event, Function, Launch, Module, PlannedRoutine, Priority,
    Properties, Replay, Routine, RoutineSpec, Routines, SharedBlock, Stream,
};

pub(in crate::backend::cuda) use judge::judge;

/// What one work reads and writes of the device's memory.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::backend::cuda) struct Uses {
    pub(in crate::backend::cuda) reads: Vec<Range<Address>>,
    pub(in crate::backend::cuda) writes: Vec<Range<Address>>,
}

/// A call that matters for the order.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::backend::cuda) enum Did {
    Allocate(Range<Address>),
    Free(Address),
    /// Host memory was locked or let go, by the method of this name.
    HostMemory(&'static str),
    Work(Stream, Uses),
    /// The caller waited for all work of a stream so far.
    Waited(Stream),
    WaitedForAll,
    Record(Event, Stream),
    Wait(Stream, Event),
    /// The caller has seen that all before the mark is done.
    Reached(Event),
    BeginCapture(Stream),
    /// A launch was captured.
    Captured(Stream),
    EndCapture(Stream),
    /// The n-th launch of a replay was updated.
    Update(Replay, usize),
    /// Captured work was handed over; the works follow.
    Replay(Replay, Stream),
}

/// Who did what.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::backend::cuda) struct Call {
    pub(in crate::backend::cuda) thread: ThreadId,
    pub(in crate::backend::cuda) did: Did,
}

/// Passes every call on to another driver, and keeps those that matter for the order.
#[derive(Debug)]
pub(crate) struct Recorder {
    inner: Arc<dyn Driver>,
    log: Mutex<Log>,
}

#[derive(Debug, Default)]
struct Log {
    calls: Vec<Call>,
    /// What streams capture.
    capturing: HashMap<Stream, Vec<Uses>>,
    captured: HashMap<Replay, Vec<Uses>>,
}

impl Log {
    fn note(&mut self, did: Did) {
        self.calls.push(Call { thread: std::thread::current().id(), did });
    }
}

impl Recorder {
    pub(crate) fn new(inner: Arc<dyn Driver>) -> Self {
        Self { inner, log: Mutex::default() }
    }

    /// What is wrong with the order of all calls so far, or since the last [`take`](Self::take), in words; nothing
    /// where it is right.
    pub(crate) fn judge(&self) -> Vec<String> {
        judge(&self.log.lock().unwrap().calls, &[])
    }

    /// What was done since the last time.
    pub(in crate::backend::cuda) fn take(&self) -> Vec<Call> {
        std::mem::take(&mut self.log.lock().unwrap().calls)
    }

    /// How many calls so far, or since the last [`take`](Self::take), are of a kind.
    pub(in crate::backend::cuda) fn count(&self, is_of_kind: impl Fn(&Did) -> bool) -> usize {
        self.log.lock().unwrap().calls.iter().filter(|call| is_of_kind(&call.did)).count()
    }

    /// Notes first and calls then: a call that another thread makes between counts as one after it, which nobody may
    /// rely on.
    fn note(&self, did: Did) {
        self.log.lock().unwrap().note(did);
    }

    fn work(&self, stream: Stream, reads: &[(Address, usize)], writes: &[(Address, usize)]) {
        let ranges = |all: &[(Address, usize)]| all.iter().map(|&(at, len)| at..at + len as u64).collect();
        self.note(Did::Work(stream, Uses { reads: ranges(reads), writes: ranges(writes) }));
    }
}

/// What a launch uses.
fn uses(launch: &Launch<'_>) -> Uses {
    let of = |access: Access| {
        let touches = launch.touches.iter().filter(|touch| touch.access == access && touch.len_bytes > 0);
        let ranges = touches.map(|touch| {
            let bytes = launch.arguments[touch.at as usize..][..8].try_into().unwrap();
            let start = u64::from_ne_bytes(bytes);
            start..start + touch.len_bytes
        });
        ranges.collect()
    };
    Uses { reads: of(Access::Read), writes: of(Access::Write) }
}

// What a routine touches is said with its launch, as of any other.
impl Routines for Recorder {
    fn plan_routine(&self, spec: &RoutineSpec) -> Option<PlannedRoutine> {
        self.inner.plan_routine(spec)
    }

    fn close_routine(&self, routine: Routine) {
        self.inner.close_routine(routine);
    }
}

impl Driver for Recorder {
    fn properties(&self) -> &Properties {
        self.inner.properties()
    }

    fn lost(&self) -> Option<DriverError> {
        self.inner.lost()
    }

    fn free_bytes(&self) -> Result<usize, DriverError> {
        self.inner.free_bytes()
    }

    fn allocate(&self, bytes: usize) -> Result<Address, DriverError> {
        let address = self.inner.allocate(bytes)?;
        self.note(Did::Allocate(address..address + bytes as u64));
        Ok(address)
    }

    unsafe fn free(&self, address: Address) -> Result<(), DriverError> {
        self.note(Did::Free(address));
        // SAFETY: as the caller promises.
        unsafe { self.inner.free(address) }
    }

    fn share(&self, bytes: usize) -> Result<SharedBlock, DriverError> {
        let block = self.inner.share(bytes)?;
        self.note(Did::Allocate(block.address..block.address + block.bytes as u64));
        Ok(block)
    }

    unsafe fn unshare(&self, address: Address, bytes: usize) -> Result<(), DriverError> {
        self.note(Did::Free(address));
        // SAFETY: as the caller promises.
        unsafe { self.inner.unshare(address, bytes) }
    }

    fn allocate_host(&self, bytes: usize) -> Result<*mut u8, DriverError> {
        self.note(Did::HostMemory("allocate_host"));
        self.inner.allocate_host(bytes)
    }

    unsafe fn free_host(&self, start: *mut u8) -> Result<(), DriverError> {
        self.note(Did::HostMemory("free_host"));
        // SAFETY: as the caller promises.
        unsafe { self.inner.free_host(start) }
    }

    unsafe fn register(&self, start: *mut u8, bytes: usize) -> Result<(), DriverError> {
        self.note(Did::HostMemory("register"));
        // SAFETY: as the caller promises.
        unsafe { self.inner.register(start, bytes) }
    }

    unsafe fn unregister(&self, start: *mut u8) -> Result<(), DriverError> {
        self.note(Did::HostMemory("unregister"));
        // SAFETY: as the caller promises.
        unsafe { self.inner.unregister(start) }
    }

    unsafe fn copy_in(&self, to: Address, from: &[u8], stream: Stream) -> Result<(), DriverError> {
        self.work(stream, &[], &[(to, from.len())]);
        // SAFETY: as the caller promises.
        unsafe { self.inner.copy_in(to, from, stream) }
    }

    unsafe fn bring(
        &self,
        to: Address,
        from: *const u8,
        bytes: usize,
        stream: Stream,
    ) -> Result<(), DriverError> {
        self.work(stream, &[], &[(to, bytes)]);
        // SAFETY: as the caller promises.
        unsafe { self.inner.bring(to, from, bytes, stream) }
    }

    unsafe fn send(
        &self,
        to: *mut u8,
        from: Address,
        bytes: usize,
        stream: Stream,
    ) -> Result<(), DriverError> {
        self.work(stream, &[(from, bytes)], &[]);
        // SAFETY: as the caller promises.
        unsafe { self.inner.send(to, from, bytes, stream) }
    }

    unsafe fn copy_out(&self, to: &mut [u8], from: Address, stream: Stream) -> Result<(), DriverError> {
        self.work(stream, &[(from, to.len())], &[]);
        self.note(Did::Waited(stream));
        // SAFETY: as the caller promises.
        unsafe { self.inner.copy_out(to, from, stream) }
    }

    unsafe fn copy(
        &self,
        to: Address,
        from: Address,
        bytes: usize,
        stream: Stream,
    ) -> Result<(), DriverError> {
        self.work(stream, &[(from, bytes)], &[(to, bytes)]);
        // SAFETY: as the caller promises.
        unsafe { self.inner.copy(to, from, bytes, stream) }
    }

    unsafe fn fill(&self, to: Address, byte: u8, bytes: usize, stream: Stream) -> Result<(), DriverError> {
        self.work(stream, &[], &[(to, bytes)]);
        // SAFETY: as the caller promises.
        unsafe { self.inner.fill(to, byte, bytes, stream) }
    }

    fn open_stream(&self, priority: Priority) -> Result<Stream, DriverError> {
        self.inner.open_stream(priority)
    }

    fn close_stream(&self, stream: Stream) -> Result<(), DriverError> {
        self.inner.close_stream(stream)
    }

    fn synchronize(&self, stream: Stream) -> Result<(), DriverError> {
        self.note(Did::Waited(stream));
        self.inner.synchronize(stream)
    }

    fn synchronize_all(&self) -> Result<(), DriverError> {
        self.note(Did::WaitedForAll);
        self.inner.synchronize_all()
    }

    fn open_event(&self) -> Result<Event, DriverError> {
        self.inner.open_event()
    }

    fn close_event(&self, event: Event) -> Result<(), DriverError> {
        self.inner.close_event(event)
    }

    fn record(&self, event: Event, stream: Stream) -> Result<(), DriverError> {
        self.note(Did::Record(event, stream));
        self.inner.record(event, stream)
    }

    fn wait(&self, stream: Stream, event: Event) -> Result<(), DriverError> {
        self.note(Did::Wait(stream, event));
        self.inner.wait(stream, event)
    }

    fn reached(&self, event: Event) -> Result<bool, DriverError> {
        let is_reached = self.inner.reached(event)?;
        if is_reached {
            self.note(Did::Reached(event));
        }
        Ok(is_reached)
    }

    fn load(&self, image: &[u8]) -> Result<Module, DriverError> {
        self.inner.load(image)
    }

    fn unload(&self, module: Module) -> Result<(), DriverError> {
        self.inner.unload(module)
    }

    fn function(&self, module: Module, name: &str) -> Result<Function, DriverError> {
        self.inner.function(module, name)
    }

    unsafe fn launch(&self, launch: &Launch<'_>, stream: Stream) -> Result<(), DriverError> {
        let mut log = self.log.lock().unwrap();
        match log.capturing.get_mut(&stream) {
            Some(capture) => {
                capture.push(uses(launch));
                log.note(Did::Captured(stream));
            }
            None => log.note(Did::Work(stream, uses(launch))),
        }
        drop(log);
        // SAFETY: as the caller promises.
        unsafe { self.inner.launch(launch, stream) }
    }

    fn begin_capture(&self, stream: Stream) -> Result<(), DriverError> {
        self.inner.begin_capture(stream)?;
        let mut log = self.log.lock().unwrap();
        log.capturing.insert(stream, Vec::new());
        log.note(Did::BeginCapture(stream));
        Ok(())
    }

    fn end_capture(&self, stream: Stream) -> Result<Replay, DriverError> {
        let mut log = self.log.lock().unwrap();
        log.note(Did::EndCapture(stream));
        let capture = log.capturing.remove(&stream);
        drop(log);
        let replay = self.inner.end_capture(stream)?;
        self.log.lock().unwrap().captured.insert(replay, capture.unwrap_or_default());
        Ok(replay)
    }

    unsafe fn update(&self, replay: Replay, nth: usize, launch: &Launch<'_>) -> Result<(), DriverError> {
        // SAFETY: as the caller promises.
        unsafe { self.inner.update(replay, nth, launch) }?;
        let mut log = self.log.lock().unwrap();
        log.note(Did::Update(replay, nth));
        if let Some(place) = log.captured.get_mut(&replay).and_then(|all| all.get_mut(nth)) {
            *place = uses(launch);
        }
        Ok(())
    }

    unsafe fn replay(&self, replay: Replay, stream: Stream) -> Result<(), DriverError> {
        let mut log = self.log.lock().unwrap();
        log.note(Did::Replay(replay, stream));
        for uses in log.captured.get(&replay).cloned().unwrap_or_default() {
            log.note(Did::Work(stream, uses));
        }
        drop(log);
        // SAFETY: as the caller promises.
        unsafe { self.inner.replay(replay, stream) }
    }

    fn close_replay(&self, replay: Replay) -> Result<(), DriverError> {
        self.log.lock().unwrap().captured.remove(&replay);
        self.inner.close_replay(replay)
    }
}
