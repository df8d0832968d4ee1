//! A device that is the host itself: the same sources, compiled by the host's compiler through `shim/host.h`.
//!
//! Streams do what they are handed at once, which is one of the orders that a device may choose; a test may hold some
//! of them back. As CUDA does, it reads and writes host memory that is locked when the stream comes to it, and other
//! host memory before a call returns.

mod calls;
mod convolutions;
mod images;
mod products;
mod routines;
mod streams;

use std::{
    collections::HashMap,
    ops::Range,
    sync::{Condvar, Mutex, MutexGuard},
    time::Duration,
};

use libloading::Library;
use rustix::{
    fs::{MemfdFlags, ftruncate, memfd_create},
    mm::{MapFlags, ProtFlags, mmap, munmap},
};

use super::{
    Address, Code, DriverError, Launch, Properties, Replay, Routine, RoutineArguments, RoutineSpec,
    SharedBlock, Stream,
};
use crate::backend::HostMemory;

pub(in crate::backend::cuda) use images::images;
use routines::Libraries;
use streams::{Kept, Streams, Work};

/// A kernel of a library: its argument, blocks, threads; 0 when all went well.
type Entry = unsafe extern "C" fn(*const u8, u32, u32) -> i32;

/// What memory that processes share is a multiple of.
const SHARED_GRAIN_BYTES: usize = 2 << 20;

/// How long a test waits for a stream that it holds back before it is told so.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// The host as a device.
#[derive(Debug)]
pub(crate) struct HostDriver {
    properties: Properties,
    libraries: Libraries,
    state: Mutex<State>,
    moved: Condvar,
}

#[derive(Debug, Default)]
struct State {
    last: u64,
    /// How many streams and events are open.
    handles: usize,
    libraries: HashMap<u64, Library>,
    entries: Vec<Entry>,
    blocks: HashMap<Address, HostMemory>,
    /// Memory that can be mapped elsewhere too, by its address.
    shared: HashMap<Address, usize>,
    /// Host memory that was locked by this driver, and that of others.
    host_blocks: HashMap<usize, HostMemory>,
    locked: Vec<Range<usize>>,
    streams: Streams,
    captures: HashMap<Stream, Vec<Kept>>,
    replays: HashMap<Replay, Vec<Kept>>,
    routines: HashMap<Routine, RoutineSpec>,
    /// Calls that are to fail, once each.
    faults: Vec<&'static str>,
    /// What has failed on the device; every later call says so again, as CUDA does.
    failed: Option<DriverError>,
}

impl HostDriver {
    pub(crate) fn new() -> Self {
        Self::with_memory(1 << 30)
    }

    /// A device of so many bytes.
    pub(crate) fn with_memory(memory_bytes: u64) -> Self {
        let properties = Properties {
            name: "cuda:0".into(),
            model: "the host".into(),
            capability: (8, 0),
            multiprocessors: 2,
            memory_bytes,
            cuda: (12, 0),
            uuid: "the host".into(),
            shared_grain_bytes: Some(SHARED_GRAIN_BYTES),
        };
        let libraries = Libraries { products: true, convolutions: true };
        Self { properties, libraries, state: Mutex::default(), moved: Condvar::new() }
    }

    /// A device without libraries.
    pub(crate) fn without_libraries() -> Self {
        Self { libraries: Libraries { products: false, convolutions: false }, ..Self::new() }
    }

    /// A device that has cuDNN and no cuBLASLt.
    pub(crate) fn without_products() -> Self {
        Self { libraries: Libraries { products: false, convolutions: true }, ..Self::new() }
    }

    /// How many blocks of device memory are allocated.
    pub(crate) fn allocated(&self) -> usize {
        let state = self.state();
        state.blocks.len() + state.shared.len()
    }

    /// How many pieces of host memory are locked.
    pub(crate) fn locked(&self) -> usize {
        self.state().locked.len()
    }

    /// What libraries were asked for and have open.
    pub(in crate::backend::cuda) fn routines(&self) -> Vec<RoutineSpec> {
        self.state().routines.values().copied().collect()
    }

    /// How many streams, events, modules and replays are open.
    pub(crate) fn open(&self) -> usize {
        let state = self.state();
        state.handles + state.libraries.len() + state.replays.len()
    }

    /// How many replays are open.
    pub(crate) fn replays(&self) -> usize {
        self.state().replays.len()
    }

    /// From now on a stream does nothing of what it is handed, until it is let go.
    pub(crate) fn hold(&self, stream: Stream) {
        self.state().streams.hold(stream);
    }

    /// Lets a stream that is held back do the next things that it was handed: works, marks and waits.
    pub(crate) fn allow(&self, stream: Stream, items: usize) {
        let mut state = self.state();
        state.streams.allow(stream, items);
        self.go_on(&mut state);
    }

    /// Lets a stream do what it was handed.
    pub(crate) fn let_go(&self, stream: Stream) {
        let mut state = self.state();
        state.streams.let_go(stream);
        self.go_on(&mut state);
    }

    /// Has the next call of this name fail: a method's name, or `work` for what a stream does next.
    pub(crate) fn fail_next(&self, call: &'static str) {
        self.state().faults.push(call);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Hands work to a stream.
    fn hand(&self, stream: Stream, work: Work) -> Result<(), DriverError> {
        let mut state = self.state();
        state.check()?;
        match (state.captures.get_mut(&stream), work) {
            (Some(capture), Work::Launch(kept)) => capture.push(kept),
            (Some(_), work) => return failed("capture", format!("{work:?} cannot be captured")),
            (None, work) => state.streams.push(stream, work),
        }
        self.go_on(&mut state);
        Ok(())
    }

    fn go_on(&self, state: &mut State) {
        state.go_on();
        self.moved.notify_all();
    }

    /// Waits for a stream, or for all.
    fn await_idle(&self, stream: Option<Stream>) -> Result<(), DriverError> {
        let state = self.state();
        let is_captured = |stream: &Stream| state.captures.contains_key(stream);
        if stream.as_ref().map_or(!state.captures.is_empty(), is_captured) {
            return failed("synchronize", "a stream is being captured");
        }
        let busy = |state: &mut State| state.failed.is_none() && !state.streams.is_idle(stream);
        let (state, waited) = self.moved.wait_timeout_while(state, LONGEST_WAIT, busy).unwrap();
        if waited.timed_out() {
            return failed("synchronize", format!("nobody lets {stream:?} go on"));
        }
        state.check()
    }
}

impl State {
    fn number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    fn check(&self) -> Result<(), DriverError> {
        self.failed.clone().map_or(Ok(()), Err)
    }

    /// Fails where a test wants this call to.
    fn fault(&mut self, call: &'static str) -> Result<(), DriverError> {
        self.check()?;
        match self.faults.iter().position(|fault| *fault == call) {
            Some(at) => failed(self.faults.remove(at), "a test wants it so"),
            None => Ok(()),
        }
    }

    /// Has streams do what they may. The lock is held meanwhile: the libraries' shared variables serve one launch at a
    /// time.
    fn go_on(&mut self) {
        let Self { streams, entries, failed: broken, faults, .. } = self;
        streams.go_on(|work| {
            let fault = faults.iter().position(|fault| *fault == "work");
            let done = match fault {
                // What comes after a failure is not done.
                _ if broken.is_some() => Ok(()),
                Some(at) => failed(faults.remove(at), "a test wants it so"),
                // SAFETY: whoever handed the work over has promised that its memory is good until it is done.
                None => unsafe { run(entries, work) },
            };
            if let Err(error) = done {
                *broken = Some(error);
            }
        });
    }

    /// A launch as it is now.
    fn kept(&self, launch: &Launch<'_>) -> Result<Kept, DriverError> {
        match launch.code {
            Code::Kernel { function, grid, block } => {
                let words = launch.arguments.chunks(8).map(|chunk| {
                    let mut word = [0; 8];
                    word[..chunk.len()].copy_from_slice(chunk);
                    u64::from_ne_bytes(word)
                });
                Ok(Kept::Kernel { function, grid, block, arguments: words.collect() })
            }
            Code::Routine(routine) => match self.routines.get(&routine) {
                Some(spec) => Ok(Kept::Routine(*spec, RoutineArguments::read(launch.arguments).unwrap())),
                None => failed("launch", format!("{routine:?} is not open")),
            },
        }
    }

    fn is_locked(&self, start: usize, bytes: usize) -> bool {
        self.locked.iter().any(|range| range.start <= start && start + bytes <= range.end)
    }

    fn used_bytes(&self) -> usize {
        self.blocks.values().map(HostMemory::len_bytes).chain(self.shared.values().copied()).sum()
    }
}

/// A file, mapped.
fn mapped(bytes: usize) -> rustix::io::Result<SharedBlock> {
    let file = memfd_create("device", MemfdFlags::CLOEXEC)?;
    ftruncate(&file, bytes as u64)?;
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: the system chooses an address where nothing of ours lies.
    let start = unsafe { mmap(std::ptr::null_mut(), bytes, access, MapFlags::SHARED, &file, 0) }?;
    Ok(SharedBlock { address: start.expose_provenance() as Address, bytes, file })
}

/// Ends a mapping.
///
/// # Safety
/// It must come from [`mapped`], and nothing may use it.
unsafe fn unmap(address: Address, bytes: usize) -> rustix::io::Result<()> {
    // SAFETY: as the caller promises.
    unsafe { munmap(std::ptr::with_exposed_provenance_mut(address as usize), bytes) }
}

/// Does one thing.
///
/// # Safety
/// All addresses must be good for what is done with them.
unsafe fn run(entries: &[Entry], work: &Work) -> Result<(), DriverError> {
    // SAFETY: as the caller promises.
    unsafe {
        match work {
            Work::Launch(Kept::Kernel { function, grid, block, arguments }) => {
                let entry = entries[function.0 as usize];
                // The record is the kernel's, by the promise of `launch`; words are aligned as records are.
                match entry(arguments.as_ptr().cast(), *grid, *block) {
                    0 => {}
                    code => return failed("launch", format!("the shim gives {code}")),
                }
            }
            Work::Launch(Kept::Routine(spec, at)) => routines::run(spec, at)?,
            Work::Copy { to, from, bytes } => std::ptr::copy(*from as *const u8, *to as *mut u8, *bytes),
            Work::Write { to, bytes } => std::ptr::copy(bytes.as_ptr(), *to as *mut u8, bytes.len()),
            Work::Fill { to, byte, bytes } => std::ptr::write_bytes(*to as *mut u8, *byte, *bytes),
        }
    }
    Ok(())
}

fn failed<T>(call: &'static str, reason: impl ToString) -> Result<T, DriverError> {
    Err(DriverError::Failed { call, reason: reason.to_string() })
}
