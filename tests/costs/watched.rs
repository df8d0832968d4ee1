//! A device that counts what it copies.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use kasmina::{
    backend::{
        Backend, BuildError, CompileOptions, Executable, HostQueue, NOTE_BYTES, Queue, Region, RunError,
        cpu::CpuBackend,
    },
    graph::Graph,
};

/// Bytes that went through a device's queues.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    /// From one region to another.
    copied: AtomicUsize,
    zeroed: AtomicUsize,
    /// Between a region and the engine itself: factors, sums.
    exchanged: AtomicUsize,
}

impl Traffic {
    /// Copied, zeroed and exchanged so far.
    pub(crate) fn bytes(&self) -> [usize; 3] {
        [&self.copied, &self.zeroed, &self.exchanged].map(|bytes| bytes.load(Ordering::Relaxed))
    }
}

/// The CPU, its queues' traffic counted.
#[derive(Debug)]
pub(crate) struct Watched {
    pub(crate) cpu: CpuBackend,
    pub(crate) traffic: Arc<Traffic>,
}

impl Backend for Watched {
    fn name(&self) -> &str {
        self.cpu.name()
    }

    fn compile(
        &self,
        graph: &Graph,
        options: &CompileOptions<'_>,
    ) -> Result<Arc<dyn Executable>, BuildError> {
        self.cpu.compile(graph, options)
    }

    fn open_queue(&self, _goes_first: bool) -> Box<dyn Queue> {
        Box::new(WatchedQueue { queue: HostQueue::default(), traffic: self.traffic.clone() })
    }
}

#[derive(Debug)]
struct WatchedQueue {
    queue: HostQueue,
    traffic: Arc<Traffic>,
}

impl Queue for WatchedQueue {
    fn copy(&mut self, from: Region<'_>, to: Region<'_>) -> Result<(), RunError> {
        self.traffic.copied.fetch_add(from.len_bytes(), Ordering::Relaxed);
        self.queue.copy(from, to)
    }

    fn zero(&mut self, region: Region<'_>) -> Result<(), RunError> {
        self.traffic.zeroed.fetch_add(region.len_bytes(), Ordering::Relaxed);
        self.queue.zero(region)
    }

    fn write(&mut self, bytes: &[u8], to: Region<'_>) -> Result<(), RunError> {
        self.traffic.exchanged.fetch_add(bytes.len(), Ordering::Relaxed);
        self.queue.write(bytes, to)
    }

    fn read(&mut self, from: Region<'_>, into: &mut [u8]) -> Result<(), RunError> {
        self.traffic.exchanged.fetch_add(into.len(), Ordering::Relaxed);
        self.queue.read(from, into)
    }

    fn note(&mut self, from: Region<'_>) -> Result<(), RunError> {
        self.traffic.exchanged.fetch_add(NOTE_BYTES, Ordering::Relaxed);
        self.queue.note(from)
    }

    fn noted(&self) -> [u8; NOTE_BYTES] {
        self.queue.noted()
    }

    fn after(&mut self, other: &mut dyn Queue) -> Result<(), RunError> {
        self.queue.after(other)
    }

    fn is_done(&mut self) -> bool {
        self.queue.is_done()
    }

    fn finish(&mut self, deadline: Option<Instant>) -> Result<(), RunError> {
        self.queue.finish(deadline)
    }
}
