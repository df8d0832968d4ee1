//! A layer of the trainer's network, and what is grafted into its seeds.

use std::{
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError},
};

use super::{ClientError, Pass, PassRequest, session::Shared};
use crate::{
    id::{KernelId, LayerId, SeedIndex},
    tensor::{DType, Shape},
    wire::{
        Blend, CloseLayer, Empty, ErrorReply, Graft, GraftReply, GraftRole, LastErrorReply, Request, SeedRef,
        SeedReply, SeedStats, SetAlpha, SharedFloats, SharedMemory, TensorEntry, WireError,
    },
};

/// A layer. Closed in the daemon when dropped; its passes may outlive it only as numbers.
#[derive(Debug)]
pub struct Layer {
    pub(super) shared: Arc<Shared>,
    pub(super) id: LayerId,
    pub(super) blend: Blend,
    seeds: u16,
    host: bool,
    /// By slot, the host's last.
    grafted: Mutex<Vec<Option<Arc<Grafted>>>>,
}

/// A kernel in a seed: its tables and its memory, which stays mapped as long as this is held, even after the
/// seed was pruned.
#[derive(Debug)]
pub struct Grafted {
    reply: GraftReply,
    memory: SharedMemory,
}

impl Layer {
    pub(super) fn new(shared: Arc<Shared>, id: LayerId, seeds: u16, blend: Blend, host: bool) -> Self {
        let slots = usize::from(seeds) + usize::from(host);
        Self { shared, id, blend, seeds, host, grafted: Mutex::new(vec![None; slots]) }
    }

    /// The layer's number.
    pub fn id(&self) -> LayerId {
        self.id
    }

    /// How the seeds' outputs meet the layer's own.
    pub fn blend(&self) -> Blend {
        self.blend
    }

    /// How many seeds it has.
    pub fn seeds(&self) -> usize {
        usize::from(self.seeds)
    }

    /// The slot of the layer's own transform, where the daemon runs that.
    pub fn host(&self) -> Option<SeedIndex> {
        self.host.then_some(SeedIndex(self.seeds))
    }

    /// Puts a kernel into a seed, for inputs of `input_shape` (without the batch). In the slot of the
    /// [`host`](Self::host) it is the layer's own transform, and alpha means nothing.
    ///
    /// Blocking: until the kernel was fetched, proven and planned.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with a code of the families `kernel` and `origin`; [`ClientError::Wire`].
    pub fn graft(
        &self,
        seed: SeedIndex,
        kernel: &KernelId,
        alpha: f32,
        input_shape: &Shape,
    ) -> Result<Arc<Grafted>, ClientError> {
        self.graft_as(GraftRole::Blend, seed, kernel, alpha, input_shape)
    }

    /// The same with a role: one that is to learn behind the layer leaves the output as it is.
    ///
    /// # Errors
    /// As [`graft`](Self::graft).
    pub fn graft_as(
        &self,
        role: GraftRole,
        seed: SeedIndex,
        kernel: &KernelId,
        alpha: f32,
        input_shape: &Shape,
    ) -> Result<Arc<Grafted>, ClientError> {
        let request = Request::Graft(self.graft_of(role, seed, kernel, alpha, input_shape));
        let (reply, descriptors): (GraftReply, _) = self.shared.control().ask(&request)?;
        self.take(seed, reply, descriptors)
    }

    /// As [`graft_as`](Self::graft_as) without waiting: passes go on with what runs in the seed, until
    /// [`Layer::finish_graft`] finds the kernel ready.
    ///
    /// # Errors
    /// [`ClientError::Refused`] where the seed does not take a kernel; [`ClientError::Wire`].
    pub fn begin_graft(
        &self,
        role: GraftRole,
        seed: SeedIndex,
        kernel: &KernelId,
        alpha: f32,
        input_shape: &Shape,
    ) -> Result<(), ClientError> {
        let request = Request::BeginGraft(self.graft_of(role, seed, kernel, alpha, input_shape));
        let Empty {} = self.shared.ask(&request)?;
        Ok(())
    }

    /// Puts the kernel of [`Layer::begin_graft`] into its seed. None while it loads.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with what the load came to, or where none was begun; [`ClientError::Wire`].
    pub fn finish_graft(&self, seed: SeedIndex) -> Result<Option<Arc<Grafted>>, ClientError> {
        let request = Request::FinishGraft(self.seed(seed));
        let (reply, descriptors): (Option<GraftReply>, _) = self.shared.control().ask(&request)?;
        reply.map(|reply| self.take(seed, reply, descriptors)).transpose()
    }

    fn graft_of(
        &self,
        role: GraftRole,
        seed: SeedIndex,
        kernel: &KernelId,
        alpha: f32,
        input_shape: &Shape,
    ) -> Graft {
        Graft {
            layer: self.id,
            seed,
            kernel: kernel.clone(),
            alpha,
            input_shape: input_shape.clone(),
            dtype: DType::F32,
            role,
        }
    }

    /// Maps what a graft came with.
    fn take(
        &self,
        seed: SeedIndex,
        reply: GraftReply,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Arc<Grafted>, ClientError> {
        let Ok([file]) = <[_; 1]>::try_from(descriptors) else {
            let reason = "one memory file was expected beside the graft's reply".to_owned();
            return Err(WireError::Frame { reason }.into());
        };
        let memory = SharedMemory::open(file, reply.memory_bytes)?;
        let grafted = Arc::new(Grafted { reply, memory });
        let mut slots = self.grafted.lock().unwrap_or_else(PoisonError::into_inner);
        match slots.get_mut(usize::from(seed.0)) {
            Some(slot) => *slot = Some(grafted.clone()),
            None => return Err(ClientError::usage(format!("the layer has no seed {seed}"))),
        }
        Ok(grafted)
    }

    /// What is grafted into a seed.
    pub fn grafted(&self, seed: SeedIndex) -> Option<Arc<Grafted>> {
        let slots = self.grafted.lock().unwrap_or_else(PoisonError::into_inner);
        slots.get(usize::from(seed.0)).cloned().flatten()
    }

    /// Sets a seed's blend factor, in [0, 1].
    ///
    /// # Errors
    /// [`ClientError::Refused`] for a factor out of range or a seed without a kernel; [`ClientError::Wire`].
    pub fn set_alpha(&self, seed: SeedIndex, alpha: f32) -> Result<SeedReply, ClientError> {
        self.shared.ask(&Request::SetAlpha(SetAlpha { layer: self.id, seed, alpha }))
    }

    /// Takes a seed's kernel out. Tickets taken before finish with it.
    ///
    /// # Errors
    /// [`ClientError::Refused`] where the seed's state does not allow it; [`ClientError::Wire`].
    pub fn prune(&self, seed: SeedIndex) -> Result<SeedReply, ClientError> {
        let reply = self.shared.ask(&Request::Prune(self.seed(seed)))?;
        let mut slots = self.grafted.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = slots.get_mut(usize::from(seed.0)) {
            *slot = None;
        }
        Ok(reply)
    }

    /// Where a seed stands.
    ///
    /// # Errors
    /// [`ClientError::Refused`], [`ClientError::Wire`].
    pub fn state(&self, seed: SeedIndex) -> Result<SeedReply, ClientError> {
        self.shared.ask(&Request::SeedState(self.seed(seed)))
    }

    /// A seed's numbers.
    ///
    /// # Errors
    /// [`ClientError::Refused`], [`ClientError::Wire`].
    pub fn stats(&self, seed: SeedIndex) -> Result<SeedStats, ClientError> {
        self.shared.ask(&Request::SeedStats(self.seed(seed)))
    }

    /// A seed's most recent failure.
    ///
    /// # Errors
    /// [`ClientError::Refused`], [`ClientError::Wire`].
    pub fn last_error(&self, seed: SeedIndex) -> Result<Option<ErrorReply>, ClientError> {
        let LastErrorReply { error } = self.shared.ask(&Request::LastError(self.seed(seed)))?;
        Ok(error)
    }

    /// Runs the layer's live seeds, and its host where the daemon has that.
    ///
    /// Blocking: until the daemon is done.
    ///
    /// # Errors
    /// [`ClientError::Usage`] when numbers and shapes do not agree, [`ClientError::Pass`] when the daemon
    /// refuses, [`ClientError::Wire`] with `session.quota` when the arena is full, with `session.lost` when
    /// the daemon is gone.
    pub fn forward(&self, request: &PassRequest<'_>) -> Result<Pass, ClientError> {
        Pass::forward(self, request)
    }

    fn seed(&self, seed: SeedIndex) -> SeedRef {
        SeedRef { layer: self.id, seed }
    }
}

impl Drop for Layer {
    fn drop(&mut self) {
        // If the daemon is gone, so is the layer.
        let _ = self.shared.ask::<Empty>(&Request::CloseLayer(CloseLayer { layer: self.id }));
    }
}

impl Grafted {
    /// What the daemon said of it.
    pub fn reply(&self) -> &GraftReply {
        &self.reply
    }

    /// The parameters, in the module's order.
    pub fn parameters(&self) -> &[TensorEntry] {
        &self.reply.parameters
    }

    /// The elements of a parameter or buffer, shared with the daemon.
    ///
    /// # Errors
    /// [`ClientError::Usage`] when it is not of f32, [`ClientError::Wire`] when the daemon's table is wrong.
    pub fn floats(&self, entry: &TensorEntry) -> Result<SharedFloats<'_>, ClientError> {
        if entry.dtype != DType::F32 {
            return Err(ClientError::usage(format!("{} is of {}, not of float32", entry.name, entry.dtype)));
        }
        Ok(self.memory.floats(entry.offset, entry.shape.elements())?)
    }
}
