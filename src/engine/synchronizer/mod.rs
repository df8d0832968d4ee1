//! One layer's passes: fan out to the live seeds and the host, join, blend; and the same backwards.

mod again;
mod backward;
mod blending;
mod course;
mod fan_out;
mod forward;
mod parts;
mod slot;

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use smallvec::SmallVec;

use super::{
    Alpha, Course, EngineConfig, EngineError, Held, LiveSeed, Quota, QuotaSpent, Role, SeedCounters, Whose,
    blend::{BlendKey, BlendPlan},
    executor::SeedExecutor,
    job::{Done, Job, Scratch, Target},
    pool::MemoryPool,
    stats::RanOn,
    ticket::Ticket,
};
use crate::{
    backend::{Backend, Executable, HostMemory},
    id::{Generation, KernelId, LayerId, SeedIndex, TicketId},
    tensor::{ALIGNMENT_BYTES, DType, Shape},
    wire::{Blend, Block},
};
pub use course::Reached;
use slot::{Attached, Slot};

/// How long a seed's thread may take, past the time limit, to notice it.
const GRACE: Duration = Duration::from_millis(50);
/// A layer as its synchronizer is told of it.
#[derive(Clone, Debug)]
pub struct LayerSpec {
    /// Its number in its session.
    pub id: LayerId,
    /// How its seeds' outputs are put together.
    pub blend: Blend,
    /// By slot, the seeds first and then the host if there is one: where its passes are counted.
    pub counters: Vec<Arc<SeedCounters>>,
    /// Whether the last slot is the layer's own transform.
    pub host: bool,
    /// Whether a backward runs its forward again.
    pub recompute: bool,
}

/// A seed that failed in a pass and was left out.
#[derive(Clone, Debug, PartialEq)]
pub struct SeedFailure {
    /// Which seed.
    pub seed: SeedIndex,
    /// Which kernel it had.
    pub kernel: KernelId,
    /// Which of its kernels that was.
    pub generation: Generation,
    /// What happened.
    pub error: EngineError,
    /// Whether the kernel was taken out, because too many passes failed in a row.
    pub unloaded: bool,
    /// Its blend factor.
    pub alpha: Alpha,
    /// The course that this was on.
    pub course: Option<Course>,
}

/// The seeds that failed in a pass.
pub type Failures = SmallVec<[SeedFailure; 2]>;

/// Failures of a pass that may yet be refused as a whole; nothing follows from them before it has gone well, or the
/// kernel of a seed could be taken out without anybody being told.
type Setbacks = SmallVec<[Setback; 2]>;

/// Which slot, what it ran and what happened.
type Setback = (usize, Arc<LiveSeed>, EngineError);

/// What became of a forward pass.
#[derive(Clone, Debug, PartialEq)]
pub struct ForwardReport {
    /// The ticket that was taken, or 0.
    pub ticket: TicketId,
    /// A, the part of the layer's output that the seeds take.
    pub blend_weight: f32,
    /// T, the sum of the blend factors of the seeds that went into the blend.
    pub alpha_total: f32,
    /// Bit s is set if slot s ran: blended, in training, or the host. Parameters of just these have gradients in the
    /// backward.
    pub live_mask: u64,
    /// Seeds that failed and were left out.
    pub failures: Failures,
    /// Bytes that the ticket holds.
    pub saved_bytes: u64,
    /// Rises whenever a seed of the layer gets or loses a kernel.
    pub generation: u64,
    /// Bit s is set if the pass came with a blend factor for seed s.
    pub given_mask: u64,
}

/// What became of a backward pass.
#[derive(Clone, Debug, PartialEq)]
pub struct BackwardReport {
    /// Bit s is set if seed s had run in the ticket's forward pass.
    pub live_mask: u64,
    /// Seeds whose backward failed; their gradients are zeros.
    pub failures: Failures,
}

/// What a sum's plan depends on: how many summands, of which shape and type.
type SumKey = (usize, Shape, DType);

/// Owns a layer's live seeds and its tickets, and runs its passes.
///
/// Threading: belongs to one thread, the session's lane; seeds run on that thread and on their own.
#[derive(Debug)]
pub struct GradientSynchronizer {
    id: LayerId,
    blend: Blend,
    /// The slot of the layer's own transform: the last one, if there is any.
    host: Option<usize>,
    /// Whether tickets keep no activations and backward passes run the forward again.
    recompute: bool,
    backend: Arc<dyn Backend>,
    config: Arc<EngineConfig>,
    slots: Vec<Slot>,
    tickets: HashMap<TicketId, Ticket>,
    pool: MemoryPool,
    /// Factors of the blend and 1 − A, then their gradients, a cache line each.
    scalars: HostMemory,
    blends: Vec<(BlendKey, Arc<BlendPlan>)>,
    sums: Vec<(SumKey, Arc<dyn Executable>)>,
    blend_workspace: HostMemory,
    generation: u64,
    /// Lists that are reused from pass to pass.
    jobs: Vec<Assigned>,
    outcomes: Vec<Outcome>,
    blocks: Vec<Option<Block>>,
}

/// A job and who runs it.
#[derive(Debug)]
struct Assigned {
    job: Job,
    slot: usize,
    is_sent_out: bool,
}

/// What became of a job.
#[derive(Debug)]
struct Outcome {
    slot: usize,
    place: usize,
    /// Absent where the job is still out, and all its memory with it.
    back: Option<(Done, RanOn)>,
}

impl GradientSynchronizer {
    /// A layer without live seeds.
    pub fn new(spec: LayerSpec, backend: Arc<dyn Backend>, config: Arc<EngineConfig>) -> Self {
        let slots: Vec<Slot> =
            spec.counters.into_iter().map(|counters| Slot { counters, attached: None }).collect();
        Self {
            scalars: HostMemory::new(2 * (slots.len() + 1) * ALIGNMENT_BYTES),
            jobs: Vec::with_capacity(slots.len()),
            outcomes: Vec::with_capacity(slots.len()),
            blocks: Vec::with_capacity(slots.len()),
            id: spec.id,
            blend: spec.blend,
            host: slots.len().checked_sub(1).filter(|_| spec.host),
            recompute: spec.recompute,
            backend,
            config,
            slots,
            tickets: HashMap::new(),
            pool: MemoryPool::default(),
            blends: Vec::new(),
            sums: Vec::new(),
            blend_workspace: HostMemory::new(0),
            generation: 0,
        }
    }

    /// Puts a live seed into its place; one that is there already serves the tickets it has and no more.
    /// In the host's slot it is the host, whatever the role.
    ///
    /// # Errors
    /// [`EngineError::SeedUnknown`], [`EngineError::Role`] for a host elsewhere, and [`EngineError::Thread`]
    /// when the system gives no thread for it; nothing has changed then.
    pub fn attach(
        &mut self,
        seed: SeedIndex,
        live: Arc<LiveSeed>,
        alpha: Alpha,
        role: Role,
    ) -> Result<(), EngineError> {
        self.slot(seed)?;
        let is_host = self.host == Some(usize::from(seed.0));
        let role = if is_host { Role::Host } else { self.seeds_role(seed, role)? };
        // The failures of the kernel before are not this one's.
        self.slot(seed)?.counters.end_row();
        let mut newcomer = Attached::new(live, alpha, role);
        let others = |(i, slot): (usize, &Slot)| i != usize::from(seed.0) && slot.attached.is_some();
        if self.slots.iter().enumerate().any(others) {
            // The host, the last of its layer, is what the thread that holds the request runs itself.
            if !is_host {
                newcomer.executor = Some(self.executor(seed)?);
            }
            for index in 0..self.slots.len() {
                let lacks = self.slots[index].attached.as_ref().is_some_and(|a| a.executor.is_none());
                if lacks && index != usize::from(seed.0) && self.host != Some(index) {
                    let executor = self.executor(SeedIndex(index as u16))?;
                    self.slots[index].attached.as_mut().expect("looked at just now").executor =
                        Some(executor);
                }
            }
        }
        self.take_out(usize::from(seed.0));
        let slot = self.slot(seed)?;
        slot.attached = Some(newcomer);
        slot.counters.note_alpha(alpha, 0);
        self.changed();
        Ok(())
    }

    /// Takes a seed out of its place. Its tickets can still have their backward.
    ///
    /// # Errors
    /// [`EngineError::SeedUnknown`].
    pub fn detach(&mut self, seed: SeedIndex) -> Result<Option<Arc<LiveSeed>>, EngineError> {
        self.slot(seed)?;
        Ok(self.take_out(usize::from(seed.0)))
    }

    /// Sets a live seed's blend factor, and ends its course; without a live seed there, nothing happens.
    ///
    /// # Errors
    /// [`EngineError::SeedUnknown`].
    pub fn set_alpha(&mut self, seed: SeedIndex, alpha: Alpha) -> Result<(), EngineError> {
        let slot = self.slot(seed)?;
        if let Some(attached) = &mut slot.attached {
            (attached.alpha, attached.course) = (alpha, None);
            slot.counters.note_alpha(alpha, 0);
        }
        Ok(())
    }

    /// Sets what a live seed does in passes from now on; without a live seed there, nothing happens.
    ///
    /// # Errors
    /// [`EngineError::SeedUnknown`]; [`EngineError::Role`] for the host, which has one role, and for a seed
    /// that is to be one.
    pub fn set_role(&mut self, seed: SeedIndex, role: Role) -> Result<(), EngineError> {
        self.slot(seed)?;
        let role = self.seeds_role(seed, role)?;
        if let Some(attached) = &mut self.slot(seed)?.attached {
            attached.role = role;
        }
        Ok(())
    }

    /// Spends a ticket without a backward.
    ///
    /// # Errors
    /// [`EngineError::TicketUnknown`], [`EngineError::TicketSpent`].
    pub fn release(&mut self, ticket: TicketId, quota: &mut Quota) -> Result<(), EngineError> {
        let ticket = self.tickets.remove(&ticket).ok_or_else(|| quota.missing(ticket))?;
        self.recycle(ticket, quota);
        Ok(())
    }

    /// Spends every ticket.
    pub fn release_all(&mut self, quota: &mut Quota) {
        for (_, ticket) in std::mem::take(&mut self.tickets) {
            self.recycle(ticket, quota);
        }
        self.pool.trim();
    }

    /// Tickets outstanding.
    pub fn tickets(&self) -> usize {
        self.tickets.len()
    }

    /// Bytes that tickets and late jobs hold.
    pub fn held_bytes(&self) -> u64 {
        self.pool.lent_bytes() as u64
    }

    /// Rises whenever a seed gets or loses a kernel.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The kernels that forward passes since this was last asked have made heavier or lighter, by plans or by the
    /// memory that these run in.
    pub fn take_grown(&mut self) -> impl Iterator<Item = &KernelId> {
        let attached = self.slots.iter_mut().filter_map(|slot| slot.attached.as_mut());
        attached.filter_map(Attached::take_grown).map(|kernel| kernel.id())
    }

    /// The layer's number.
    pub fn id(&self) -> LayerId {
        self.id
    }

    /// Whether a slot is that of the layer's own transform.
    pub fn is_host(&self, seed: SeedIndex) -> bool {
        self.host == Some(usize::from(seed.0))
    }

    /// How many slots have a kernel, the host's too.
    pub fn live_seeds(&self) -> usize {
        self.slots.iter().filter(|slot| slot.attached.is_some()).count()
    }

    /// The host's slot and what is live there, if there is one.
    pub(super) fn host(&self) -> Option<(SeedIndex, &Arc<LiveSeed>)> {
        let host = self.host?;
        let attached = self.slots[host].attached.as_ref()?;
        Some((SeedIndex(host as u16), &attached.live))
    }

    /// How many slots are seeds.
    fn seeds(&self) -> usize {
        self.slots.len() - usize::from(self.host.is_some())
    }

    fn slot(&mut self, seed: SeedIndex) -> Result<&mut Slot, EngineError> {
        let (layer, seeds) = (self.id, self.slots.len());
        self.slots.get_mut(usize::from(seed.0)).ok_or(EngineError::SeedUnknown { layer, seed, seeds })
    }

    /// A role for a slot that is not the host's.
    fn seeds_role(&self, seed: SeedIndex, role: Role) -> Result<Role, EngineError> {
        let is_host = self.host == Some(usize::from(seed.0));
        if is_host || role == Role::Host {
            return Err(EngineError::Role { layer: self.id, seed, is_host });
        }
        Ok(role)
    }

    fn executor(&self, seed: SeedIndex) -> Result<SeedExecutor, EngineError> {
        SeedExecutor::start(format!("seed {}.{seed}", self.id))
    }

    fn take_out(&mut self, slot: usize) -> Option<Arc<LiveSeed>> {
        let attached = self.slots[slot].attached.take()?;
        self.slots[slot].counters.note_alpha(Alpha::ZERO, 0);
        // A job still out frees its memory itself when it is done.
        self.pool.lose(attached.executor.as_ref().map_or(0, SeedExecutor::out_bytes));
        self.changed();
        Some(attached.live)
    }

    fn changed(&mut self) {
        self.generation += 1;
        self.pool.trim();
    }

    fn too_many_tickets(&self) -> EngineError {
        let (used, limit) = (self.tickets.len() as u64, self.config.max_tickets_per_layer as u64);
        let what = Held::Tickets;
        QuotaSpent { key: "engine.max_tickets_per_layer", limit, used, asked: 1, what, whose: Whose::Layer }
            .into()
    }

    /// Counts a failure, and takes the kernel out after too many in a row.
    fn fail(&mut self, slot: usize, live: &LiveSeed, error: EngineError, failures: &mut Failures) {
        let kernel = live.kernel().id().clone();
        let in_a_row = self.slots[slot].counters.failed(&kernel, &error);
        let attached = &self.slots[slot].attached;
        let current = attached.as_ref().filter(|a| a.live.generation() == live.generation());
        let (alpha, course) = current.map_or((Alpha::ZERO, None), |a| (a.alpha, a.course));
        let unloaded = current.is_some() && in_a_row >= self.config.error_threshold.max(1);
        if unloaded {
            self.slots[slot].counters.end_row();
            self.take_out(slot);
        }
        let (seed, generation) = (SeedIndex(slot as u16), live.generation());
        failures.push(SeedFailure { seed, kernel, generation, error, unloaded, alpha, course });
    }

    /// Draws what follows from the failures of a pass that has gone well as a whole.
    fn settle(&mut self, setbacks: Setbacks) -> Failures {
        let mut failures = Failures::new();
        for (slot, live, error) in setbacks {
            self.fail(slot, &live, error, &mut failures);
        }
        failures
    }

    /// Counts a failure of the host and refuses the pass. It is never taken out: without it the layer has no output
    /// at all, and what is wrong with it may be the parameters, which are its trainer's.
    fn host_failed(&self, live: &LiveSeed, error: EngineError) -> EngineError {
        if let Some(host) = self.host {
            self.slots[host].counters.failed(live.kernel().id(), &error);
        }
        EngineError::Host { error: Box::new(error) }
    }

    fn recycle(&mut self, ticket: Ticket, quota: &mut Quota) {
        quota.give_back(ticket.bytes);
        for seed in ticket.seeds {
            self.pool.give(seed.output);
            self.pool.give(seed.saved);
            self.pool.give(seed.buffers);
        }
        self.pool.give(ticket.blend_saved);
    }

    /// Takes a job's memory back: gradients and scratch; what its ticket keeps is the caller's.
    fn take_back_scratch(&mut self, slot: usize, live: &Arc<LiveSeed>, scratch: Box<Scratch>) {
        if let Some(attached) = &mut self.slots[slot].attached
            && Arc::ptr_eq(&attached.live, live)
        {
            attached.scratch = Some(scratch);
        }
    }

    fn give_target(&mut self, target: Target) {
        if let Target::Own(memory) = target {
            self.pool.give(memory);
        }
    }

    fn deadline(&self) -> Instant {
        let now = Instant::now();
        now.checked_add(self.config.time_limit).unwrap_or(now + Duration::from_secs(3600))
    }
}
