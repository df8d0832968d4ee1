//! Running the seeds' jobs: who runs what, and the join.

use std::{sync::Arc, time::Instant};

use smallvec::SmallVec;

use super::{Assigned, GRACE, GradientSynchronizer, Outcome};
use crate::{
    backend::{RunError, Shared},
    engine::{
        EngineError, LiveSeed, PlanSet, Role,
        executor::SeedExecutor,
        job::{Direction, Job},
        stats::RanOn,
    },
    failpoint::{self, Failpoint},
    graph::Cost,
    wire::Block,
};

/// What is named when it fails.
const HAND_OFF: &str = "the copy between trainer and device";

/// Work of a pass in arbitrary units: operations and bytes weigh about the same.
pub(super) fn weight(cost: &Cost) -> u64 {
    cost.flops.saturating_add(cost.moved_bytes)
}

/// Which jobs of a pass go out, and how many threads each may have.
///
/// Those go that are heavy enough for waking a thread to be cheaper than waiting, all but the last of them. Where the
/// device goes on by itself all go.
pub(super) struct Spread {
    everything: bool,
    left_to_send: usize,
    above: u64,
    pub(super) threads: usize,
}

impl Spread {
    /// Whether the next job goes out. `can` says that there is somebody to send it to.
    pub(super) fn sends(&mut self, can: bool, plans: &PlanSet) -> bool {
        if self.everything {
            return true;
        }
        let is_sent = can && self.left_to_send > 0 && weight(&plans.cost) >= self.above;
        self.left_to_send -= usize::from(is_sent);
        is_sent
    }
}

impl GradientSynchronizer {
    /// How the jobs of these plans are spread.
    pub(super) fn spread<'a>(&self, plans: impl Iterator<Item = &'a PlanSet>) -> Spread {
        let (threads, above) = (self.config.threads, self.config.spread_above);
        if self.backend.is_asynchronous() {
            return Spread { everything: true, left_to_send: 0, above, threads };
        }
        let heavy = if threads < 2 { 0 } else { plans.filter(|plans| weight(&plans.cost) >= above).count() };
        Spread {
            everything: false,
            left_to_send: heavy.saturating_sub(1),
            above,
            threads: (threads / heavy.max(1)).max(1),
        }
    }

    /// Hands over the copies of blocks to the device, which the jobs of the pass then wait for.
    ///
    /// # Errors
    /// [`EngineError::Run`].
    pub(super) fn bring(
        &mut self,
        arena: &Shared,
        blocks: impl IntoIterator<Item = Block>,
    ) -> Result<(), EngineError> {
        let queue = &mut *self.queue;
        let mut brought =
            blocks.into_iter().map(|block| arena.bring(queue, block.offset as usize, block.bytes as usize));
        brought.try_for_each(|result| result).map_err(EngineError::of_run(HAND_OFF))
    }

    /// Has the trainer see what the pass has left in blocks. Blocking: until it is there.
    ///
    /// # Errors
    /// [`EngineError::Run`].
    pub(super) fn send(
        &mut self,
        arena: &Shared,
        blocks: impl IntoIterator<Item = Option<Block>>,
    ) -> Result<(), EngineError> {
        let queue = &mut *self.queue;
        let mut sent = blocks
            .into_iter()
            .flatten()
            .map(|block| arena.send(queue, block.offset as usize, block.bytes as usize));
        let sent = sent.try_for_each(|result| result);
        // Whatever has failed: what was handed over must not come after the completion.
        let finished = self.queue.finish(None);
        sent.and(finished).map_err(EngineError::of_run(HAND_OFF))
    }

    /// Takes back what came late from earlier passes.
    pub(super) fn reclaim(&mut self) {
        self.late.retain_mut(|executor| executor.reclaim().is_none());
        for index in 0..self.slots.len() {
            let executor = self.slots[index].attached.as_mut().and_then(|a| a.executor.as_mut());
            let Some(mut done) = executor.filter(|e| e.is_busy()).and_then(|e| e.reclaim()) else { continue };
            self.witness_return(index, &mut done);
            self.give_job(index, done.job);
        }
    }

    /// Keeps what is busy with a job whose place is gone until it is done: on a device, memory that is still used is not
    /// freed before, and this thread does not wait for that within a pass.
    pub(super) fn let_finish(&mut self, executor: SeedExecutor) {
        self.pool.lose(executor.out_bytes());
        if executor.is_queued() {
            self.late.push(executor);
        }
    }

    /// Takes a job apart of which nothing is kept.
    pub(super) fn give_job(&mut self, slot: usize, job: Job) {
        self.take_back_scratch(slot, &job.live, job.scratch);
        self.pool.give(job.saved);
        self.pool.give(job.buffers);
        match job.direction {
            Direction::Forward { output } => self.give_target(output),
            Direction::Backward { grad_output, grad_input, grad_parameters } => {
                self.give_target(grad_output);
                self.give_target(grad_input);
                self.give_target(grad_parameters);
            }
        }
    }

    /// Takes all jobs apart that came back, of a pass that is refused, and records those that failed. One that has not
    /// come back cannot be recorded: what the pass was given belongs to the trainer again.
    fn drop_outcomes(&mut self, again: bool) {
        let mut outcomes = std::mem::take(&mut self.outcomes);
        for Outcome { slot, back, .. } in outcomes.drain(..) {
            let Some((mut done, _)) = back else {
                self.witness_loss();
                continue;
            };
            if let Err(error) = &done.result {
                self.witness_job(slot, &mut done.job, error, done.timing, again);
            }
            self.give_job(slot, done.job);
        }
        self.outcomes = outcomes;
    }

    /// Refuses the pass if the host's job did not go well; what else came back is then taken apart. `again` says that
    /// it was a forward run for its backward.
    pub(super) fn check_host(&mut self, again: bool) -> Result<(), EngineError> {
        let Some(host) = self.host else { return Ok(()) };
        let Some(outcome) = self.outcomes.iter().find(|outcome| outcome.slot == host) else { return Ok(()) };
        let failed = match &outcome.back {
            Some((done, _)) => done.result.as_ref().err().map(|error| (done.job.live.clone(), error.clone())),
            // Where it runs on the caller's thread it always comes back; a device may be late with it.
            None => self.current(host).map(|(live, ..)| (live.clone(), Self::late(&live))),
        };
        let Some((live, error)) = failed else { return Ok(()) };
        self.drop_outcomes(again);
        Err(self.host_failed(&live, error))
    }

    /// What a seed is left out for whose part has not come back in time.
    pub(super) fn late(live: &LiveSeed) -> EngineError {
        live.failed(RunError::Timeout { done: 0, total: 0 })
    }

    /// The kernel that a slot runs now, in which role and with which factor.
    pub(super) fn current(&self, slot: usize) -> Option<(Arc<LiveSeed>, Role, f32)> {
        let attached = self.slots[slot].attached.as_ref()?;
        Some((attached.live.clone(), attached.role, attached.alpha.get()))
    }

    /// Runs `self.jobs` and leaves what became of them in `self.outcomes`, in the same order.
    ///
    /// Jobs for the seeds' own threads and queues are sent out first; the caller's thread then does the rest and waits.
    pub(super) fn run_jobs(&mut self, deadline: Instant) {
        let mut jobs = std::mem::take(&mut self.jobs);
        let mut outcomes = std::mem::take(&mut self.outcomes);
        let mut here: SmallVec<[Assigned; 2]> = SmallVec::new();
        let mut out: SmallVec<[(usize, usize); 8]> = SmallVec::new();
        let mut guests: SmallVec<[(SeedExecutor, usize, usize); 2]> = SmallVec::new();
        for Assigned { mut job, slot, is_sent_out } in jobs.drain(..) {
            let place = job.place;
            job.follow(&mut *self.queue);
            let executor = self.slots[slot].attached.as_mut().and_then(|a| a.executor.as_mut());
            match executor.filter(|_| is_sent_out) {
                None => here.push(Assigned { job, slot, is_sent_out }),
                Some(executor) => match executor.dispatch(job) {
                    Ok(()) => out.push((slot, place)),
                    Err(job) => here.push(Assigned { job, slot, is_sent_out }),
                },
            }
        }
        if !out.is_empty() {
            failpoint::reached(Failpoint::SentOut);
        }
        for Assigned { job, slot, .. } in here {
            let place = job.place;
            if self.backend.is_asynchronous() {
                // Of a kernel that has left its place, or of one that is still busy with another ticket: nobody would
                // end a wait for it.
                let mut guest = SeedExecutor::queued();
                let is_taken = guest.dispatch(job).is_ok();
                debug_assert!(is_taken, "nothing else is out with it");
                guests.push((guest, slot, place));
                continue;
            }
            outcomes.push(Outcome { slot, place, back: Some((job.run(), RanOn::Caller)) });
            failpoint::reached(Failpoint::OneDone);
        }
        for (slot, place) in out {
            let executor = self.slots[slot].attached.as_mut().and_then(|a| a.executor.as_mut());
            let back = executor.and_then(|e| e.join(deadline + GRACE)).map(|done| (done, RanOn::Executor));
            outcomes.push(Outcome { slot, place, back });
        }
        for (mut guest, slot, place) in guests {
            let back = guest.join(deadline + GRACE).map(|done| (done, RanOn::Executor));
            if back.is_none() {
                self.let_finish(guest);
            }
            outcomes.push(Outcome { slot, place, back });
        }
        failpoint::reached(Failpoint::JobsDone);
        outcomes.sort_unstable_by_key(|outcome| outcome.place);
        self.jobs = jobs;
        self.outcomes = outcomes;
    }
}
