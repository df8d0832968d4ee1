//! What a failing pass was given, copied for a record of it.
//!
//! Only passes that fail come here, and only where failures are recorded. The copies are made before anything that the
//! pass had is used again, on the lane; the disk is another thread's.

use std::{sync::Arc, time::Duration};

use super::{GradientSynchronizer, backward, forward};
use crate::{
    backend::{Queue, Region, Shared},
    engine::{
        EngineError, LiveSeed, PlanKey, Role,
        job::{Direction, Done, Job, Timing, random_of},
        target::{readable, theirs},
        ticket::TicketSeed,
    },
    fault::Fault as _,
    id::{SeedIndex, SessionId},
    record::{self, Header, Place, Record, Recorder, Settings},
    tensor::{DType, HostTensor, PackedLayout, Shape},
    wire::Block,
};

/// Bytes that a record has beside its tensors, about.
const HEADER_BYTES: u64 = 4096;

/// Who records a layer's failing passes, and whose layer it is.
#[derive(Clone, Debug)]
pub struct Witness {
    /// Takes the records.
    pub recorder: Arc<Recorder>,
    /// The session.
    pub session: SessionId,
    /// Its user.
    pub uid: u32,
    /// Training forwards of the layer that have gone well.
    pub step: u64,
}

/// A record of a backward that has not come back, without what is still out with it.
#[derive(Debug)]
pub(super) struct Late(Place, Box<Record>);

/// One seed's part of a pass.
struct Act<'a> {
    slot: usize,
    live: &'a LiveSeed,
    role: Role,
    alpha: f32,
    key: &'a PlanKey,
    output_shape: &'a Shape,
    rng_seed: u64,
    threads: usize,
    arena: &'a Shared,
    input: Block,
    direction: record::Direction,
    again: bool,
}

impl GradientSynchronizer {
    /// Has failing passes recorded from now on.
    pub fn record_with(&mut self, witness: Witness) {
        self.witness = Some(Box::new(witness));
    }

    /// Says how many training forwards of the layer have gone well.
    pub fn note_step(&mut self, step: u64) {
        if let Some(witness) = &mut self.witness {
            witness.step = step;
        }
    }

    /// Records a job that has come back with an error. `again` says that it was a forward run for its backward.
    #[cold]
    pub(super) fn witness_job(
        &self,
        slot: usize,
        job: &mut Job,
        error: &EngineError,
        timing: Timing,
        again: bool,
    ) {
        let Some(witness) = self.witness.as_deref() else { return };
        let direction = match &job.direction {
            Direction::Forward { .. } => record::Direction::Forward,
            Direction::Backward { .. } => record::Direction::Backward,
        };
        let act = Act {
            slot,
            live: &job.live,
            role: job.role,
            alpha: job.alpha,
            key: &job.plans.key,
            output_shape: &job.plans.output.shape,
            rng_seed: job.context.seed,
            threads: job.context.threads,
            arena: &job.arena,
            input: job.input,
            direction,
            again,
        };
        let gradient = match &job.direction {
            Direction::Forward { .. } => Region::EMPTY,
            Direction::Backward { grad_output, .. } => grad_output.region(&job.arena),
        };
        let saved = if direction == record::Direction::Backward { job.saved.region() } else { Region::EMPTY };
        let extra_bytes = (gradient.len_bytes() + saved.len_bytes()) as u64;
        let Some((place, mut record)) = self.draft(witness, &act, error, Some(timing), extra_bytes, false)
        else {
            return;
        };
        complete(&mut record, job);
        place.hand(record);
    }

    /// Records a seed whose forward was not run, or has not come back: all that it was given is here still.
    #[cold]
    pub(super) fn witness_forward(
        &self,
        pass: &forward::Pass<'_>,
        slot: usize,
        (live, role, alpha): (&LiveSeed, Role, f32),
        error: &EngineError,
    ) {
        let Some(witness) = self.witness.as_deref() else { return };
        let request = pass.request;
        let act = Act {
            slot,
            live,
            role,
            alpha,
            key: pass.key(role),
            output_shape: &request.output_shape,
            rng_seed: random_of(request.rng_seed, slot),
            threads: self.config.threads,
            arena: pass.arena,
            input: request.input,
            direction: record::Direction::Forward,
            again: false,
        };
        if let Some((place, record)) = self.draft(witness, &act, error, None, 0, false) {
            place.hand(record);
        }
    }

    /// Records a seed whose part of a backward has not come back. What it has of its own is missing until then, so the
    /// record of a gradient waits in the seed's slot for it, if there is room for one that may wait for ever. `again` says
    /// that it was a forward run for its backward, which is recorded at once: what it does not find here are buffers that
    /// it was to read instead of the seed's.
    #[cold]
    pub(super) fn witness_late(
        &mut self,
        pass: &backward::Pass<'_>,
        (input, rng_seed): (Block, u64),
        seed: &TicketSeed,
        error: &EngineError,
        again: bool,
    ) {
        let Some(witness) = self.witness.as_deref() else { return };
        let slot = usize::from(seed.seed.0);
        let direction = if again { record::Direction::Forward } else { record::Direction::Backward };
        let act = Act {
            slot,
            live: &seed.live,
            role: seed.role,
            alpha: seed.alpha,
            key: &seed.plans.key,
            output_shape: &seed.plans.output.shape,
            rng_seed: random_of(rng_seed, slot),
            threads: self.config.threads,
            arena: pass.arena,
            input,
            direction,
            again,
        };
        let grad_output = pass.request.straight.unwrap_or(pass.request.grad_output);
        let extra_bytes = if again { 0 } else { grad_output.bytes + seed.plans.saved_bytes() as u64 };
        let Some((place, mut record)) = self.draft(witness, &act, error, None, extra_bytes, !again) else {
            return;
        };
        if again {
            return place.hand(record);
        }
        if seed.role == Role::Straight {
            let (mut queue, mut copy) = (self.backend.open_queue(false), Vec::new());
            let gradient = here(&mut *queue, theirs(pass.arena, grad_output), &mut copy);
            record.grad_output = tensor(act.output_shape, act.key.dtype, gradient);
        }
        if let Some(attached) =
            self.slots[slot].attached.as_mut().filter(|a| Arc::ptr_eq(&a.live, &seed.live))
        {
            attached.late = Some(Late(place, Box::new(record)));
        }
    }

    /// Hands the record over that was waiting for this job.
    pub(super) fn witness_return(&mut self, slot: usize, done: &mut Done) {
        let late = self.slots[slot].attached.as_mut().and_then(|attached| attached.late.take());
        let Some(Late(place, mut record)) = late else { return };
        complete(&mut record, &mut done.job);
        record.header.elapsed_ns = Some(nanoseconds(done.timing.time));
        record.header.allowed_ns = done.timing.allowed.map(nanoseconds);
        if record.grad_output.is_some() {
            place.hand(*record);
        }
    }

    /// Counts a seed's part of a pass of which nothing can be recorded any more.
    #[cold]
    pub(super) fn witness_loss(&self) {
        if let Some(witness) = self.witness.as_deref() {
            witness.recorder.lose();
        }
    }

    /// A place for a record, and the record with all that does not depend on the direction. `waits` says that a part of it
    /// is still to come.
    fn draft(
        &self,
        witness: &Witness,
        act: &Act<'_>,
        error: &EngineError,
        timing: Option<Timing>,
        extra_bytes: u64,
        waits: bool,
    ) -> Option<(Place, Record)> {
        // That one is busy follows from an earlier failure, which has a record of its own.
        if matches!(error, EngineError::Busy { .. }) {
            return None;
        }
        let kernel = act.live.kernel();
        let artifact = kernel.module()?.archive();
        let weights = act.live.parameters().len_bytes() + act.live.buffers().len_bytes() + artifact.len();
        let bytes = HEADER_BYTES + act.input.bytes + weights as u64 + extra_bytes;
        let (uid, digest) = (witness.uid, kernel.digest());
        let mut place = witness.recorder.place(uid, digest, error.code(), act.direction, bytes)?;
        if waits {
            // Before anything is copied, which would be in vain.
            place = place.wait()?;
        }
        let key = act.key;
        let header = Header {
            format: record::VERSION,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            time_unix_ms: witness.recorder.unix_ms(),
            device: self.backend.name().to_owned(),
            kernel: kernel.id().clone(),
            digest: kernel.digest(),
            session: witness.session,
            uid: witness.uid,
            layer: self.id,
            seed: SeedIndex(act.slot as u16),
            generation: act.live.generation(),
            role: act.role.as_str().to_owned(),
            alpha: act.alpha,
            step: witness.step,
            direction: act.direction,
            again: act.again,
            train: key.train,
            rng_seed: act.rng_seed,
            dtype: key.dtype,
            input_shape: key.input_shape.clone(),
            output_shape: act.output_shape.clone(),
            wants_input: key.wants_input,
            wants_parameters: key.wants_parameters,
            code: error.code().to_owned(),
            message: error.to_string(),
            elapsed_ns: timing.map(|timing| nanoseconds(timing.time)),
            allowed_ns: timing.and_then(|timing| timing.allowed).map(nanoseconds),
            settings: Settings {
                time_limit_ns: nanoseconds(self.config.time_limit),
                plan_time_limit_ns: nanoseconds(self.config.plan_time_limit),
                non_finite_guard: self.config.non_finite_guard,
                series: self.config.series_length > 0,
                max_plan_bytes: self.config.max_plan_bytes as u64,
                max_flops: self.config.max_flops,
                threads: u32::try_from(act.threads).unwrap_or(u32::MAX),
                winograd: self.config.winograd,
            },
        };
        // A queue of its own: what the trainer has written is there, and what runs still writes none of it.
        let (mut queue, mut copy) = (self.backend.open_queue(false), Vec::new());
        let input = here(&mut *queue, theirs(act.arena, act.input), &mut copy);
        let input = tensor(&key.input_shape, key.dtype, input)?;
        let parameters = tensors(
            kernel.parameters().iter().map(|weight| &weight.name),
            kernel.parameter_layout(),
            here(&mut *queue, act.live.parameters(), &mut copy),
        );
        let buffers = buffers(act.live, here(&mut *queue, act.live.buffers(), &mut copy));
        let (artifact, grad_output, saved) = (artifact.clone(), None, Arc::default());
        Some((place, Record { header, artifact, input, grad_output, saved, parameters, buffers }))
    }
}

/// Copies what a job has of its own: the buffers that it was to read instead of the seed's, and of a backward its
/// gradient and what the forward had saved.
fn complete(record: &mut Record, job: &mut Job) {
    let Job { live, plans, arena, buffers: own, saved, scratch, direction, .. } = job;
    let mut copy = Vec::new();
    if own.len_bytes() > 0 {
        record.buffers = buffers(live, here(scratch.queue(), own.region(), &mut copy));
    }
    if let Direction::Backward { grad_output, .. } = direction {
        let (shape, dtype) = (&plans.output.shape, plans.output.dtype);
        let gradient = tensor(shape, dtype, here(scratch.queue(), grad_output.region(arena), &mut copy));
        // What was copied while the job was out is as it was; the arena may hold something else by now.
        record.grad_output = record.grad_output.take().or(gradient);
        record.saved = bytes(here(scratch.queue(), saved.region(), &mut copy), plans.saved_bytes());
    }
}

/// A region that this process can read; an empty one where the device does not give what it has.
fn here<'a>(queue: &mut dyn Queue, region: Region<'a>, copy: &'a mut Vec<u8>) -> Region<'a> {
    readable(queue, region, copy).unwrap_or(Region::EMPTY)
}

fn buffers(live: &LiveSeed, block: Region<'_>) -> Vec<(String, HostTensor)> {
    let kernel = live.kernel();
    tensors(kernel.buffers().iter().map(|weight| &weight.name), kernel.buffer_layout(), block)
}

/// A block's tensors, by name, as parts of one copy.
fn tensors<'a>(
    names: impl Iterator<Item = &'a String>,
    layout: &PackedLayout,
    block: Region<'_>,
) -> Vec<(String, HostTensor)> {
    let copy = bytes(block, layout.total_bytes());
    let named = names.zip(layout.slots()).filter_map(|(name, slot)| {
        let range = slot.offset_bytes..slot.offset_bytes + slot.len_bytes;
        let tensor = HostTensor::within(slot.shape.clone(), slot.dtype, copy.clone(), range).ok()?;
        Some((name.clone(), tensor))
    });
    named.collect()
}

/// A copy of a region that holds a tensor; `None` where it is too small.
fn tensor(shape: &Shape, dtype: DType, region: Region<'_>) -> Option<HostTensor> {
    let needed = shape.checked_elements().ok()?.checked_mul(dtype.size_bytes())?;
    HostTensor::new(shape.clone(), dtype, bytes(region, needed)).ok()
}

/// A copy of a region's first bytes; nothing of one that has not as many.
fn bytes(region: Region<'_>, count: usize) -> Arc<[u8]> {
    if region.len_bytes() < count {
        return Arc::default();
    }
    let mut copy: Arc<[u8]> = std::iter::repeat_n(0, count).collect();
    let block = Arc::get_mut(&mut copy).expect("nobody else has been given it");
    let is_read = region.read(block);
    debug_assert!(is_read, "it is as long as was looked at");
    copy
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
