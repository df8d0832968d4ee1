//! One session: the control connection, the lane and the arena's heap.

use std::{
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use serde::de::DeserializeOwned;

use super::{ClientError, Layer, connection::Connection, heap::Heap};
use crate::{
    digest::Digest,
    id::{KernelId, SessionId},
    tensor::{DType, Shape},
    wire::{
        Arena, Blend, Block, ClientLane, Completion, Hello, HelloReply, LayerReply, Offer, OfferReply,
        OpenLayer, PROTOCOL, Prefetch, PrefetchReply, RING_ENTRIES, Request, SharedFloats, Spin, Status,
        Submission, Wake, WireError,
    },
};

/// What a client may choose when it connects.
#[derive(Clone, Copy, Debug)]
pub struct ConnectOptions {
    /// How large an arena to ask for, in bytes; the daemon may give less.
    pub arena_bytes: u64,
    /// How long to spin for a completion before sleeping, as long as that pays. Spinning takes a processor from the daemon, so it
    /// pays only where there are some to spare. `None` leaves it to the daemon's advice.
    pub spin: Option<Duration>,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self { arena_bytes: 256 << 20, spin: None }
    }
}

/// What a layer is opened with.
#[derive(Clone, Debug, Default)]
pub struct LayerOptions {
    /// How many seeds.
    pub seeds: u16,
    /// How their outputs meet the layer's own.
    pub blend: Blend,
    /// The input's sizes without the batch, where they are known.
    pub input_shape: Option<Shape>,
    /// Whether the daemon runs the layer's own transform too: a kernel in [`Layer::host`]'s slot.
    pub host: bool,
    /// Whether a backward runs its forward again, so that passes hold next to nothing in the daemon.
    pub recompute: bool,
}

/// A session with the daemon. Clones share it; it ends with the last of them and of its layers.
#[derive(Clone, Debug)]
pub struct Client {
    pub(super) shared: Arc<Shared>,
}

/// What layers and passes hold on to.
#[derive(Debug)]
pub(super) struct Shared {
    hello: HelloReply,
    arena: Arc<Arena>,
    control: Mutex<Connection>,
    path: Mutex<DataPath>,
    heap: Mutex<Heap>,
}

#[derive(Debug)]
struct DataPath {
    lane: ClientLane,
    spin: Spin,
    sequence: u64,
    /// Submissions whose completion has not been seen. Kept at most [`RING_ENTRIES`], so that neither ring
    /// can overflow.
    outstanding: usize,
}

impl Client {
    /// Connects to the daemon's socket.
    ///
    /// Blocking: until the daemon has answered.
    ///
    /// # Errors
    /// [`ClientError::Connect`] when nobody answers, [`ClientError::Refused`] when the daemon does not want
    /// this client, [`ClientError::Wire`] when they do not understand each other.
    pub fn connect(path: impl AsRef<Path>, options: &ConnectOptions) -> Result<Self, ClientError> {
        Self::start(Connection::open(path.as_ref())?, options)
    }

    pub(super) fn start(mut control: Connection, options: &ConnectOptions) -> Result<Self, ClientError> {
        let hello = Request::Hello(Hello {
            gpu: None,
            protocol: PROTOCOL,
            client: concat!("kasmina-rust/", env!("CARGO_PKG_VERSION")).to_owned(),
            pid: std::process::id(),
            arena_bytes: options.arena_bytes,
        });
        let (hello, descriptors): (HelloReply, _) = control.ask(&hello)?;
        let Ok([file, doorbell]) = <[_; 2]>::try_from(descriptors) else {
            let reason = "an arena and a doorbell were expected beside the hello's reply".to_owned();
            return Err(WireError::Frame { reason }.into());
        };
        let lane = ClientLane::join(file, doorbell, &hello.arena)?;
        let spin = options.spin.unwrap_or(Duration::from_micros(u64::from(hello.spin_us)));
        let arena = lane.arena().clone();
        let heap = Mutex::new(Heap::new(arena.layout()));
        let path = Mutex::new(DataPath { lane, spin: Spin::new(spin), sequence: 0, outstanding: 0 });
        Ok(Self { shared: Arc::new(Shared { hello, arena, control: Mutex::new(control), path, heap }) })
    }

    /// The session's number.
    pub fn session(&self) -> SessionId {
        self.shared.hello.session
    }

    /// What the daemon said when the session began.
    pub fn hello(&self) -> &HelloReply {
        &self.shared.hello
    }

    /// Opens a layer with `seeds` dormant seeds, for inputs of f32, whose own transform is the caller's.
    ///
    /// Blocking: until the daemon has answered.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with `session.quota` or `session.protocol`; [`ClientError::Wire`].
    pub fn open_layer(
        &self,
        name: &str,
        seeds: u16,
        blend: Blend,
        input_shape: Option<Shape>,
    ) -> Result<Layer, ClientError> {
        self.open_layer_with(name, LayerOptions { seeds, blend, input_shape, ..LayerOptions::default() })
    }

    /// The same with all that a layer may have.
    ///
    /// # Errors
    /// As [`open_layer`](Self::open_layer).
    pub fn open_layer_with(&self, name: &str, options: LayerOptions) -> Result<Layer, ClientError> {
        let LayerOptions { seeds, blend, input_shape, host, recompute } = options;
        let (name, dtype) = (name.to_owned(), DType::F32);
        let request =
            Request::OpenLayer(OpenLayer { name, seeds, blend, input_shape, dtype, host, recompute });
        let LayerReply { layer } = self.shared.ask(&request)?;
        Ok(Layer::new(self.shared.clone(), layer, seeds, blend, host))
    }

    /// Has kernels fetched and proven, so that a later graft finds them resident. Returns how many were
    /// not.
    ///
    /// # Errors
    /// [`ClientError::Wire`], [`ClientError::Refused`].
    pub fn prefetch(&self, kernels: &[KernelId]) -> Result<u32, ClientError> {
        let request = Request::Prefetch(Prefetch { kernels: kernels.to_vec() });
        let PrefetchReply { started } = self.shared.ask(&request)?;
        Ok(started)
    }

    /// Has an artifact judged by the daemon, and its kernel kept in the daemon's memory, for this session to graft.
    ///
    /// Nobody else hears of it. It may have to leave memory before it is grafted or after its last seed was pruned:
    /// then the graft says `kernel.not_offered`, and the artifact is to be offered again.
    ///
    /// Blocking: until it is judged.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the rule that the artifact breaks, or because it is too long;
    /// [`ClientError::Wire`] where it does not fit the arena.
    pub fn offer(&self, artifact: &[u8]) -> Result<Offered, ClientError> {
        let held = self.shared.allocate(artifact.len())?;
        held.write(artifact)?;
        let Block { offset, .. } = held.block;
        let request = Request::Offer(Offer { offset, bytes: artifact.len() as u64 });
        let OfferReply { kernel, digest } = self.shared.ask(&request)?;
        Ok(Offered { kernel, digest })
    }
}

/// A kernel that was offered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offered {
    /// What it is called, for a graft of it.
    pub kernel: KernelId,
    /// SHA-256 of its artifact.
    pub digest: Digest,
}

impl Shared {
    pub(super) fn control(&self) -> MutexGuard<'_, Connection> {
        // A panic while it was held breaks at most a request's turn, and that shows as a refused payload.
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn ask<T: DeserializeOwned>(&self, request: &Request) -> Result<T, ClientError> {
        let (reply, _none) = self.control().ask(request)?;
        Ok(reply)
    }

    /// Publishes a submission and waits for its completion.
    pub(super) fn run(&self, submission: Submission) -> Result<Completion, ClientError> {
        let mut path = self.path.lock().unwrap_or_else(PoisonError::into_inner);
        let sequence = path.publish(submission)?;
        let completion = loop {
            let completion = path.next_completion()?;
            if completion.sequence == sequence {
                break completion;
            }
        };
        match Status::from_number(completion.status).unwrap_or(Status::Bug) {
            Status::Ok => Ok(completion),
            status => Err(ClientError::Pass { status, message: completion.message() }),
        }
    }

    /// Publishes a submission whose completion nobody waits for. That the daemon is gone shows at the next
    /// [`run`](Self::run).
    pub(super) fn post(&self, submission: Submission) {
        let mut path = self.path.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = path.publish(submission);
    }

    pub(super) fn allocate(self: &Arc<Self>, bytes: usize) -> Result<Held, ClientError> {
        let mut heap = self.heap.lock().unwrap_or_else(PoisonError::into_inner);
        let block = heap.allocate(bytes as u64)?;
        Ok(Held { shared: self.clone(), block })
    }

    /// A block with these numbers in it.
    pub(super) fn hold(self: &Arc<Self>, numbers: &[f32]) -> Result<Held, ClientError> {
        let held = self.allocate(numbers.len() * 4)?;
        held.floats()?.copy_from(numbers);
        Ok(held)
    }
}

impl DataPath {
    fn publish(&mut self, submission: Submission) -> Result<u64, ClientError> {
        while self.outstanding >= RING_ENTRIES {
            self.next_completion()?;
        }
        self.sequence += 1;
        self.lane.publish(&Submission { sequence: self.sequence, ..submission })?;
        self.outstanding += 1;
        Ok(self.sequence)
    }

    fn next_completion(&mut self) -> Result<Completion, ClientError> {
        let began = Instant::now();
        loop {
            match self.lane.wait(self.spin.next(), None)? {
                Wake::Item(completion) => {
                    self.spin.note(began);
                    self.outstanding = self.outstanding.saturating_sub(1);
                    return Ok(completion);
                }
                Wake::Gone => return Err(WireError::Closed.into()),
                Wake::Woken | Wake::TimedOut => {}
            }
        }
    }
}

/// A block of the arena that is given back when dropped.
#[derive(Debug)]
pub(super) struct Held {
    shared: Arc<Shared>,
    pub(super) block: Block,
}

impl Held {
    /// The first bytes of the block, where it has as many.
    pub(super) fn read(&self, count: usize) -> Result<Vec<u8>, ClientError> {
        let reason = "it is shorter than what is to be read";
        let Block { offset, bytes: length } = self.block;
        let mut bytes = vec![0; count];
        let fits = self.shared.arena.region(self.block)?.read(&mut bytes);
        fits.then_some(bytes)
            .ok_or(WireError::Block { name: "artifact", offset, bytes: length, reason }.into())
    }

    fn write(&self, bytes: &[u8]) -> Result<(), ClientError> {
        let reason = "it is shorter than what is to be written";
        let Block { offset, bytes: length } = self.block;
        let fits = self.shared.arena.region(self.block)?.write(bytes);
        fits.then_some(()).ok_or(WireError::Block { name: "artifact", offset, bytes: length, reason }.into())
    }

    pub(super) fn floats(&self) -> Result<SharedFloats<'_>, ClientError> {
        Ok(self.shared.arena.floats(self.block)?)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.shared.heap.lock().unwrap_or_else(PoisonError::into_inner).release(self.block);
    }
}
