//! One layer's passes: fan out to the live seeds and the host, join, blend; and the same backwards.

mod again;
mod backward;
mod blending;
mod course;
mod fan_out;
mod forward;
mod in_use;
mod parts;
mod slot;
mod witness;

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use smallvec::SmallVec;

use super::{
    Alpha, Course, EngineConfig, EngineError, Held, LiveSeed, PlanKey, Quota, QuotaSpent, Role, SeedCounters,
    Whose,
    executor::SeedExecutor,
    job::{Done, Job},
    pool::MemoryPool,
    recent::Recent,
    scratch::Scratch,
    stats::RanOn,
    target::Target,
    ticket::Ticket,
};
use crate::{
    backend::{Backend, Queue},
    failpoint::{self, Failpoint},
    id::{Generation, KernelId, LayerId, SeedIndex, TicketId},
    tensor::{DType, Shape},
    wire::{Blend, Block},
};
use blending::Blender;
pub use course::Reached;
use slot::{Attached, REMEMBERED_PLANS, Slot};
pub use witness::Witness;

/// How long a seed's thread or stream may take, past the time limit, to come to its end.
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
    /// Whether the kernel was in its place when it failed, and not only in a ticket of before.
    pub is_current: bool,
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
/// Threading: belongs to one thread, the session's lane; seeds run on that thread and on their own, or on a device.
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
    /// Where all goes that is not a seed's: what the trainer sends and is sent, blends and sums.
    queue: Box<dyn Queue>,
    blender: Blender,
    /// What is busy with jobs that came late and whose place is gone.
    late: Vec<SeedExecutor>,
    generation: u64,
    /// What the latest passes asked plans for, as many as a seed has plans at hand.
    in_use: Recent<PlanKey, ()>,
    /// Plans of kernels that passes have made or waited for, until somebody asks.
    plans_made: u64,
    /// Records failing passes, where they are recorded.
    witness: Option<Box<Witness>>,
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
            queue: backend.open_queue(true),
            blender: Blender::new(slots.len(), backend.clone(), config.clone()),
            late: Vec::new(),
            pool: MemoryPool::new(backend.clone()),
            jobs: Vec::new(),
            outcomes: Vec::new(),
            blocks: Vec::with_capacity(slots.len()),
            id: spec.id,
            blend: spec.blend,
            host: slots.len().checked_sub(1).filter(|_| spec.host),
            recompute: spec.recompute,
            backend,
            config,
            slots,
            tickets: HashMap::new(),
            generation: 0,
            in_use: Recent::new(REMEMBERED_PLANS),
            plans_made: 0,
            witness: None,
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
        let scratch = Scratch::new(&*self.backend);
        let mut newcomer = Attached::new(live, alpha, role, scratch);
        let others = |(i, slot): (usize, &Slot)| i != usize::from(seed.0) && slot.attached.is_some();
        if self.backend.is_asynchronous() {
            newcomer.executor = Some(SeedExecutor::queued());
        } else if self.slots.iter().enumerate().any(others) {
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
        // For all that would be live then, so that no pass has to; seeds that stay dormant have no place there.
        let live = self.slots.iter().filter(|slot| slot.attached.is_some()).count() + 1;
        self.jobs.reserve(live);
        self.outcomes.reserve(live);
        let is_swap = self.slot(seed)?.attached.is_some();
        if is_swap {
            failpoint::reached(Failpoint::SwapBefore);
        }
        self.take_out(usize::from(seed.0));
        let slot = self.slot(seed)?;
        slot.attached = Some(Box::new(newcomer));
        slot.counters.note_alpha(alpha, 0);
        if is_swap {
            failpoint::reached(Failpoint::SwapAfter);
        }
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
        // Nothing of it will fail any more.
        ticket.seeds.iter().for_each(|seed| self.end_row(usize::from(seed.seed.0), &seed.live));
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

    /// Bytes that it keeps for its next passes.
    pub(super) fn idle_bytes(&self) -> usize {
        self.pool.idle_bytes()
    }

    /// Frees what it keeps for its next passes.
    pub(super) fn free_idle(&mut self) {
        self.pool.trim();
    }

    /// Rises whenever a seed gets or loses a kernel.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The kernels that forward passes since this was last asked have made heavier or lighter, by plans or by the
    /// memory that these run in.
    pub fn take_grown(&mut self) -> impl Iterator<Item = &KernelId> {
        let attached = self.slots.iter_mut().filter_map(|slot| slot.attached.as_deref_mut());
        attached.filter_map(Attached::take_grown).map(|kernel| kernel.id())
    }

    /// The layer's number.
    pub fn id(&self) -> LayerId {
        self.id
    }

    /// How its seeds' outputs are put together.
    pub fn blend_rule(&self) -> Blend {
        self.blend
    }

    /// Whether a slot is that of the layer's own transform.
    pub fn is_host(&self, seed: SeedIndex) -> bool {
        self.host == Some(usize::from(seed.0))
    }

    /// How many slots have a kernel, the host's too.
    pub fn live_seeds(&self) -> usize {
        self.slots.iter().filter(|slot| slot.attached.is_some()).count()
    }

    /// What is live in a slot.
    ///
    /// # Errors
    /// [`EngineError::SeedUnknown`].
    pub fn live(&self, seed: SeedIndex) -> Result<Option<&Arc<LiveSeed>>, EngineError> {
        let (layer, seeds) = (self.id, self.slots.len());
        let slot = self.slots.get(usize::from(seed.0));
        let slot = slot.ok_or(EngineError::SeedUnknown { layer, seed, seeds })?;
        Ok(slot.attached.as_ref().map(|attached| &attached.live))
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
        if let Some(executor) = attached.executor {
            self.let_finish(executor);
        }
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
    /// It is one of a row if it is the kernel's own: not that of a kernel that has left its place, not the thread's that
    /// is still busy with a pass which has been counted, not the input's, and not the device's.
    fn fail(
        &mut self,
        slot: usize,
        live: &Arc<LiveSeed>,
        error: EngineError,
        is_its_own: bool,
        failures: &mut Failures,
    ) {
        let kernel = live.kernel().id().clone();
        let current = self.slots[slot].runs(live);
        let (alpha, course) = current.map_or((Alpha::ZERO, None), |a| (a.alpha, a.course));
        let is_current = current.is_some();
        let counts =
            is_current && is_its_own && !matches!(error, EngineError::Busy { .. }) && !error.is_the_devices();
        let in_a_row = self.slots[slot].counters.failed(&kernel, &error, counts);
        let unloaded = counts && in_a_row >= self.config.error_threshold.max(1);
        if unloaded {
            self.slots[slot].counters.end_row();
            self.take_out(slot);
            failpoint::reached(Failpoint::UnloadedInLane);
        }
        let (seed, generation) = (SeedIndex(slot as u16), live.generation());
        failures.push(SeedFailure { seed, kernel, generation, error, unloaded, is_current, alpha, course });
    }

    /// Ends a slot's row of failures, if it is its present kernel that has done well.
    fn end_row(&self, slot: usize, live: &Arc<LiveSeed>) {
        if self.slots[slot].runs(live).is_some() {
            self.slots[slot].counters.end_row();
        }
    }

    /// Draws what follows from the failures of a pass that has gone well as a whole.
    /// `is_its_own` tells a kernel's own failures from those of what it was given.
    fn settle(&mut self, setbacks: Setbacks, is_its_own: impl Fn(&EngineError) -> bool) -> Failures {
        let mut failures = Failures::new();
        for (slot, live, error) in setbacks {
            let is_its_own = is_its_own(&error);
            self.fail(slot, &live, error, is_its_own, &mut failures);
        }
        failures
    }

    /// Counts a failure of the host and refuses the pass. It is never taken out: without it the layer has no output
    /// at all, and what is wrong with it may be the parameters, which are its trainer's.
    fn host_failed(&self, live: &LiveSeed, error: EngineError) -> EngineError {
        if let Some(host) = self.host {
            self.slots[host].counters.failed(live.kernel().id(), &error, true);
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
