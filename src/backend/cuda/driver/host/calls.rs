//! The driver's calls.

use std::fs;

use libloading::Library;

use super::{
    super::{
        Address, Driver, DriverError, Event, Function, Launch, Module, Priority, Properties, Replay,
        SharedBlock, Stream,
    },
    Entry, HostDriver, SHARED_GRAIN_BYTES, Work, failed, mapped,
    streams::Kept,
    unmap,
};
use crate::backend::{HostMemory, Memory as _};

/// What memory holds before anybody writes to it.
const UNDEFINED: u8 = 0xA5;

impl Driver for HostDriver {
    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn lost(&self) -> Option<DriverError> {
        self.state().failed.clone()
    }

    fn free_bytes(&self) -> Result<usize, DriverError> {
        Ok(self.properties.memory_bytes as usize - self.state().used_bytes())
    }

    fn allocate(&self, bytes: usize) -> Result<Address, DriverError> {
        let mut state = self.state();
        state.fault("allocate")?;
        if state.used_bytes() + bytes > self.properties.memory_bytes as usize {
            return Err(DriverError::OutOfMemory { needed_bytes: bytes });
        }
        let memory = HostMemory::new(bytes);
        let address = memory.region().start().expose_provenance() as Address;
        // SAFETY: as many bytes have just been allocated.
        unsafe { std::ptr::write_bytes(memory.region().start(), UNDEFINED, bytes) };
        state.blocks.insert(address, memory);
        Ok(address)
    }

    unsafe fn free(&self, address: Address) -> Result<(), DriverError> {
        match self.state().blocks.remove(&address) {
            Some(_) => Ok(()),
            None => failed("free", format!("{address:#x} was never allocated")),
        }
    }

    fn share(&self, bytes: usize) -> Result<SharedBlock, DriverError> {
        let mut state = self.state();
        state.fault("share")?;
        let whole = bytes.next_multiple_of(SHARED_GRAIN_BYTES);
        if state.used_bytes() + whole > self.properties.memory_bytes as usize {
            return Err(DriverError::OutOfMemory { needed_bytes: bytes });
        }
        let block = mapped(whole).or_else(|error| failed("share", error))?;
        state.shared.insert(block.address, whole);
        Ok(block)
    }

    unsafe fn unshare(&self, address: Address, bytes: usize) -> Result<(), DriverError> {
        if self.state().shared.remove(&address) != Some(bytes) {
            return failed("unshare", format!("{bytes} bytes at {address:#x} were never shared"));
        }
        // SAFETY: it was mapped, and nothing uses it any more, by the caller's promise.
        unsafe { unmap(address, bytes) }.or_else(|error| failed("unshare", error))
    }

    fn allocate_host(&self, bytes: usize) -> Result<*mut u8, DriverError> {
        let mut state = self.state();
        state.fault("allocate_host")?;
        let memory = HostMemory::new(bytes);
        let start = memory.region().start();
        let number = start.expose_provenance();
        state.locked.push(number..number + bytes);
        state.host_blocks.insert(number, memory);
        Ok(start)
    }

    unsafe fn free_host(&self, start: *mut u8) -> Result<(), DriverError> {
        let mut state = self.state();
        state.locked.retain(|range| range.start != start.addr());
        match state.host_blocks.remove(&start.addr()) {
            Some(_) => Ok(()),
            None => failed("free_host", format!("{start:?} was never allocated")),
        }
    }

    unsafe fn register(&self, start: *mut u8, bytes: usize) -> Result<(), DriverError> {
        let mut state = self.state();
        state.fault("register")?;
        let number = start.expose_provenance();
        if state.is_locked(number, 1) {
            return failed("register", "it is registered already");
        }
        state.locked.push(number..number + bytes);
        Ok(())
    }

    unsafe fn unregister(&self, start: *mut u8) -> Result<(), DriverError> {
        let mut state = self.state();
        let before = state.locked.len();
        state.locked.retain(|range| range.start != start.addr());
        if state.locked.len() < before { Ok(()) } else { failed("unregister", "it was never registered") }
    }

    unsafe fn copy_in(&self, to: Address, from: &[u8], stream: Stream) -> Result<(), DriverError> {
        self.hand(stream, Work::Write { to, bytes: from.to_vec() })
    }

    unsafe fn bring(
        &self,
        to: Address,
        from: *const u8,
        bytes: usize,
        stream: Stream,
    ) -> Result<(), DriverError> {
        let number = from.expose_provenance();
        let is_locked = self.state().is_locked(number, bytes);
        if is_locked {
            return self.hand(stream, Work::Copy { to, from: number as Address, bytes });
        }
        // SAFETY: as many bytes may be read, by the caller's promise.
        let aside = unsafe { std::slice::from_raw_parts(from, bytes) }.to_vec();
        self.hand(stream, Work::Write { to, bytes: aside })
    }

    unsafe fn send(
        &self,
        to: *mut u8,
        from: Address,
        bytes: usize,
        stream: Stream,
    ) -> Result<(), DriverError> {
        let number = to.expose_provenance();
        let is_locked = self.state().is_locked(number, bytes);
        self.hand(stream, Work::Copy { to: number as Address, from, bytes })?;
        if is_locked { Ok(()) } else { self.synchronize(stream) }
    }

    unsafe fn copy_out(&self, to: &mut [u8], from: Address, stream: Stream) -> Result<(), DriverError> {
        let number = to.as_mut_ptr().expose_provenance() as Address;
        self.hand(stream, Work::Copy { to: number, from, bytes: to.len() })?;
        self.synchronize(stream)
    }

    unsafe fn copy(
        &self,
        to: Address,
        from: Address,
        bytes: usize,
        stream: Stream,
    ) -> Result<(), DriverError> {
        self.hand(stream, Work::Copy { to, from, bytes })
    }

    unsafe fn fill(&self, to: Address, byte: u8, bytes: usize, stream: Stream) -> Result<(), DriverError> {
        self.hand(stream, Work::Fill { to, byte, bytes })
    }

    fn open_stream(&self, _: Priority) -> Result<Stream, DriverError> {
        let mut state = self.state();
        state.fault("open_stream")?;
        state.handles += 1;
        Ok(Stream(state.number()))
    }

    fn close_stream(&self, _: Stream) -> Result<(), DriverError> {
        self.state().handles -= 1;
        Ok(())
    }

    fn synchronize(&self, stream: Stream) -> Result<(), DriverError> {
        self.await_idle(Some(stream))
    }

    fn synchronize_all(&self) -> Result<(), DriverError> {
        self.await_idle(None)
    }

    fn open_event(&self) -> Result<Event, DriverError> {
        let mut state = self.state();
        state.handles += 1;
        Ok(Event(state.number()))
    }

    fn close_event(&self, _: Event) -> Result<(), DriverError> {
        self.state().handles -= 1;
        Ok(())
    }

    fn record(&self, event: Event, stream: Stream) -> Result<(), DriverError> {
        let mut state = self.state();
        state.check()?;
        if state.captures.contains_key(&stream) {
            return failed("record", "the stream is being captured");
        }
        state.streams.record(event, stream);
        self.go_on(&mut state);
        Ok(())
    }

    fn wait(&self, stream: Stream, event: Event) -> Result<(), DriverError> {
        let mut state = self.state();
        state.check()?;
        if state.captures.contains_key(&stream) {
            return failed("wait", "the stream is being captured");
        }
        state.streams.wait(stream, event);
        self.go_on(&mut state);
        Ok(())
    }

    fn reached(&self, event: Event) -> Result<bool, DriverError> {
        let state = self.state();
        state.check()?;
        Ok(state.streams.reached(event))
    }

    fn load(&self, image: &[u8]) -> Result<Module, DriverError> {
        // A file of its own for each: a library has shared variables, and the loader keeps one copy of one file.
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), image).unwrap();
        // SAFETY: the library is one that `images` has compiled, which runs nothing when it is loaded.
        let library = match unsafe { Library::new(file.path()) } {
            Ok(library) => library,
            Err(error) => return failed("load", error),
        };
        let mut state = self.state();
        let number = state.number();
        state.libraries.insert(number, library);
        Ok(Module(number))
    }

    fn unload(&self, module: Module) -> Result<(), DriverError> {
        self.state().libraries.remove(&module.0);
        Ok(())
    }

    fn function(&self, module: Module, name: &str) -> Result<Function, DriverError> {
        let mut state = self.state();
        let Some(library) = state.libraries.get(&module.0) else {
            return failed("function", "no such module");
        };
        // SAFETY: every exported name of such a library is a kernel's, and of this type.
        let entry = match unsafe { library.get::<Entry>(name.as_bytes()) } {
            Ok(entry) => *entry,
            Err(error) => return failed("function", error),
        };
        let known = state.entries.iter().position(|known| std::ptr::fn_addr_eq(*known, entry));
        Ok(Function(known.unwrap_or_else(|| {
            state.entries.push(entry);
            state.entries.len() - 1
        }) as u64))
    }

    unsafe fn launch(&self, launch: &Launch<'_>, stream: Stream) -> Result<(), DriverError> {
        let kept = {
            let mut state = self.state();
            state.fault("launch")?;
            state.kept(launch)?
        };
        self.hand(stream, Work::Launch(kept))
    }

    fn begin_capture(&self, stream: Stream) -> Result<(), DriverError> {
        let mut state = self.state();
        state.fault("begin_capture")?;
        state.captures.insert(stream, Vec::new());
        Ok(())
    }

    fn end_capture(&self, stream: Stream) -> Result<Replay, DriverError> {
        let mut state = self.state();
        let Some(kept) = state.captures.remove(&stream) else {
            return failed("end_capture", "the stream captures nothing");
        };
        state.fault("end_capture")?;
        let replay = Replay(state.number());
        state.replays.insert(replay, kept);
        Ok(replay)
    }

    unsafe fn update(&self, replay: Replay, nth: usize, launch: &Launch<'_>) -> Result<(), DriverError> {
        let mut state = self.state();
        state.fault("update")?;
        let kept = state.kept(launch)?;
        let Some(place) = state.replays.get_mut(&replay).and_then(|all| all.get_mut(nth)) else {
            return failed("update", format!("no launch {nth} was captured"));
        };
        match (&place, &kept) {
            (Kept::Kernel { function: old, .. }, Kept::Kernel { function: new, .. }) if old == new => {
                *place = kept;
                Ok(())
            }
            _ => failed("update", "another kernel was captured there, or a routine"),
        }
    }

    unsafe fn replay(&self, replay: Replay, stream: Stream) -> Result<(), DriverError> {
        let mut state = self.state();
        state.fault("replay")?;
        let Some(all) = state.replays.get(&replay).cloned() else { return failed("replay", "no such work") };
        for kept in all {
            state.streams.push(stream, Work::Launch(kept));
        }
        self.go_on(&mut state);
        Ok(())
    }

    fn close_replay(&self, replay: Replay) -> Result<(), DriverError> {
        match self.state().replays.remove(&replay) {
            Some(_) => Ok(()),
            None => failed("close_replay", "no such work"),
        }
    }
}
