//! A layer of the trainer's network, and what is grafted into its seeds.

use std::{
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::{ClientError, Pass, PassRequest, session::Shared};
use crate::{
    id::{KernelId, LayerId, SeedIndex},
    tensor::{DType, Shape},
    wire::{
        Blend, CloseLayer, Empty, ErrorReply, Fossilize, Graft, GraftReply, GraftRole, LastErrorReply, Prune,
        Request, ScheduleSpec, SeedRef, SeedReply, SeedSeries, SeedStats, SeriesReply, SetAlpha,
        SharedFloats, SharedMemory, StartBlend, TensorEntry, WireError,
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
    /// By slot, the blend factor of a graft that was begun.
    begun: Mutex<Vec<f32>>,
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
        let (grafted, begun) = (Mutex::new(vec![None; slots]), Mutex::new(vec![0.0; slots]));
        Self { shared, id, blend, seeds, host, grafted, begun }
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
        // A kernel runs when its tables are known here and not before: passes of other threads go on meanwhile.
        let request = Request::Graft(self.graft_of(role, seed, kernel, 0.0, input_shape));
        let (reply, descriptors): (GraftReply, _) = self.shared.control().ask(&request)?;
        let grafted = self.take(seed, reply, descriptors)?;
        self.begin_blending(role, seed, alpha)?;
        Ok(grafted)
    }

    fn begin_blending(&self, role: GraftRole, seed: SeedIndex, alpha: f32) -> Result<(), ClientError> {
        if role == GraftRole::Blend && alpha != 0.0 && self.host() != Some(seed) {
            self.set_alpha(seed, alpha)?;
        }
        Ok(())
    }

    /// As [`Layer::graft`], and from `alpha` on the blend factor goes by a schedule.
    ///
    /// # Errors
    /// As [`Layer::graft`], and [`ClientError::Refused`] with `seed.schedule`.
    pub fn graft_blending(
        &self,
        seed: SeedIndex,
        kernel: &KernelId,
        alpha: f32,
        input_shape: &Shape,
        schedule: ScheduleSpec,
    ) -> Result<Arc<Grafted>, ClientError> {
        let grafted = self.graft(seed, kernel, 0.0, input_shape)?;
        self.blend_by(seed, schedule, Some(alpha))?;
        Ok(grafted)
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
        let request = Request::BeginGraft(self.graft_of(role, seed, kernel, 0.0, input_shape));
        let Empty {} = self.shared.ask(&request)?;
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(begun) = begun.get_mut(usize::from(seed.0)) {
            *begun = if role == GraftRole::Blend { alpha } else { 0.0 };
        }
        Ok(())
    }

    /// Puts the kernel of [`Layer::begin_graft`] into its seed. None while it loads.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with what the load came to, or where none was begun; [`ClientError::Wire`].
    pub fn finish_graft(&self, seed: SeedIndex) -> Result<Option<Arc<Grafted>>, ClientError> {
        let request = Request::FinishGraft(self.seed(seed));
        let (reply, descriptors): (Option<GraftReply>, _) = self.shared.control().ask(&request)?;
        let Some(reply) = reply else { return Ok(None) };
        let grafted = self.take(seed, reply, descriptors)?;
        let alpha = {
            let begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
            begun.get(usize::from(seed.0)).copied().unwrap_or(0.0)
        };
        self.begin_blending(GraftRole::Blend, seed, alpha)?;
        Ok(Some(grafted))
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
            schedule: None,
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

    /// All slots' kernels, as the layer knows them now.
    pub(super) fn slots(&self) -> Vec<Option<Arc<Grafted>>> {
        self.grafted.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sets a seed's blend factor, in [0, 1], and ends the schedule that it follows.
    ///
    /// # Errors
    /// [`ClientError::Refused`] for a factor out of range or a seed without a kernel; [`ClientError::Wire`].
    pub fn set_alpha(&self, seed: SeedIndex, alpha: f32) -> Result<SeedReply, ClientError> {
        self.shared.ask(&Request::SetAlpha(SetAlpha { layer: self.id, seed, alpha }))
    }

    /// Has a seed's blend factor go by a schedule, one step for each training forward of the layer; from `alpha`, or
    /// from where it is.
    ///
    /// # Errors
    /// [`ClientError::Refused`] where the seed's state does not allow it or the schedule makes no sense;
    /// [`ClientError::Wire`].
    pub fn blend_by(
        &self,
        seed: SeedIndex,
        schedule: ScheduleSpec,
        alpha: Option<f32>,
    ) -> Result<SeedReply, ClientError> {
        self.shared.ask(&Request::Blend(StartBlend { layer: self.id, seed, schedule, alpha }))
    }

    /// Leaves a seed's blend factor where its schedule has brought it.
    ///
    /// # Errors
    /// [`ClientError::Refused`] for a seed that neither blends nor holds; [`ClientError::Wire`].
    pub fn hold(&self, seed: SeedIndex) -> Result<SeedReply, ClientError> {
        self.shared.ask(&Request::Hold(self.seed(seed)))
    }

    /// Makes a seed's kernel part of the layer: its blend factor is 1 from now on. Where the reply says `frozen`, the
    /// caller trains its parameters no more.
    ///
    /// # Errors
    /// [`ClientError::Refused`] for a seed that does not hold; [`ClientError::Wire`].
    pub fn fossilize(&self, seed: SeedIndex, freeze: bool) -> Result<SeedReply, ClientError> {
        self.shared.ask(&Request::Fossilize(Fossilize { layer: self.id, seed, freeze }))
    }

    /// Takes a seed's kernel out. Tickets taken before finish with it. For as long as the daemon's `engine.embargo`
    /// says, the seed then refuses the kernel.
    ///
    /// # Errors
    /// [`ClientError::Refused`] where the seed's state does not allow it; [`ClientError::Wire`].
    pub fn prune(&self, seed: SeedIndex) -> Result<SeedReply, ClientError> {
        self.prune_for(seed, None)
    }

    /// As [`Layer::prune`], and for this long the seed refuses the kernel.
    ///
    /// # Errors
    /// As [`Layer::prune`].
    pub fn prune_for(&self, seed: SeedIndex, embargo: Option<Duration>) -> Result<SeedReply, ClientError> {
        let embargo_ms = embargo.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        let reply = self.shared.ask(&Request::Prune(Prune { layer: self.id, seed, embargo_ms }))?;
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

    /// A seed's last training passes, those after a step that the caller has seen.
    ///
    /// # Errors
    /// [`ClientError::Refused`], [`ClientError::Wire`].
    pub fn series(&self, seed: SeedIndex, after: u64) -> Result<SeriesReply, ClientError> {
        self.shared.ask(&Request::SeedSeries(SeedSeries { layer: self.id, seed, after }))
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
