//! Running the seeds' jobs: who runs what, and the join.

use std::{sync::Arc, time::Instant};

use smallvec::SmallVec;

use super::{Assigned, GRACE, GradientSynchronizer, Outcome};
use crate::{
    backend::RunError,
    engine::{
        EngineError, LiveSeed, PlanSet,
        job::{Direction, Job},
        stats::RanOn,
    },
    graph::Cost,
};

/// Work of a pass in arbitrary units: operations and bytes weigh about the same.
pub(super) fn weight(cost: &Cost) -> u64 {
    cost.flops.saturating_add(cost.moved_bytes)
}

impl GradientSynchronizer {
    /// How many of these plans are worth a thread of their own: those heavy enough that waking one is
    /// cheaper than waiting.
    pub(super) fn heavy<'a>(&self, plans: impl Iterator<Item = &'a PlanSet>) -> usize {
        if self.config.threads < 2 {
            return 0;
        }
        plans.filter(|plans| self.is_heavy(plans)).count()
    }

    pub(super) fn is_heavy(&self, plans: &PlanSet) -> bool {
        weight(&plans.cost) >= self.config.spread_above
    }

    /// Threads for each run when so many run at a time.
    pub(super) fn threads(&self, at_a_time: usize) -> usize {
        (self.config.threads / at_a_time.max(1)).max(1)
    }

    /// Takes back what came late from earlier passes.
    pub(super) fn reclaim(&mut self) {
        for index in 0..self.slots.len() {
            let executor = self.slots[index].attached.as_mut().and_then(|a| a.executor.as_mut());
            let Some(done) = executor.filter(|e| e.is_busy()).and_then(|e| e.reclaim()) else { continue };
            self.give_job(index, done.job);
        }
    }

    /// Takes a job apart of which nothing is kept.
    pub(super) fn give_job(&mut self, slot: usize, job: Job) {
        self.take_back_scratch(slot, &job.live, job.scratch);
        self.pool.give(job.saved);
        self.pool.give(job.buffers);
        match job.direction {
            Direction::Forward { output } => self.pool.give(output),
            Direction::Backward { grad_output, grad_input, grad_parameters } => {
                self.give_target(grad_output);
                self.give_target(grad_input);
                self.give_target(grad_parameters);
            }
        }
    }

    /// Takes all jobs apart that were made and not run.
    pub(super) fn drop_jobs(&mut self) {
        let mut jobs = std::mem::take(&mut self.jobs);
        jobs.drain(..).for_each(|Assigned { job, slot, .. }| self.give_job(slot, job));
        self.jobs = jobs;
    }

    /// Takes all jobs apart that came back, of a pass that is refused.
    pub(super) fn drop_outcomes(&mut self) {
        let mut outcomes = std::mem::take(&mut self.outcomes);
        for Outcome { slot, back, .. } in outcomes.drain(..) {
            if let Some((done, _)) = back {
                self.give_job(slot, done.job);
            }
        }
        self.outcomes = outcomes;
    }

    /// Refuses the pass if the host's job did not go well; what else came back is then taken apart.
    pub(super) fn check_host(&mut self) -> Result<(), EngineError> {
        let Some(host) = self.host else { return Ok(()) };
        let failed = self.outcomes.iter().filter(|outcome| outcome.slot == host).find_map(|outcome| {
            let (done, _) = outcome.back.as_ref()?;
            Some((done.job.live.clone(), done.result.as_ref().err()?.clone()))
        });
        // It runs on the caller's thread, so it always comes back.
        let Some((live, error)) = failed else { return Ok(()) };
        self.drop_outcomes();
        Err(self.host_failed(&live, error))
    }

    /// What a seed is left out for whose thread has not come back in time.
    pub(super) fn late(live: &LiveSeed) -> EngineError {
        let what = format!("kernel {}", live.kernel().id());
        EngineError::Run { what, source: RunError::Timeout { done: 0, total: 0 } }
    }

    /// The kernel that a slot runs now.
    pub(super) fn current(&self, slot: usize) -> Option<Arc<LiveSeed>> {
        self.slots[slot].attached.as_ref().map(|attached| attached.live.clone())
    }

    /// Runs `self.jobs` and leaves what became of them in `self.outcomes`, in the same order.
    ///
    /// Jobs for the seeds' own threads are sent out first; the caller's thread then does the rest and waits.
    pub(super) fn run_jobs(&mut self, deadline: Instant) {
        let mut jobs = std::mem::take(&mut self.jobs);
        let mut outcomes = std::mem::take(&mut self.outcomes);
        let mut here: SmallVec<[Assigned; 2]> = SmallVec::new();
        let mut out: SmallVec<[(usize, usize); 8]> = SmallVec::new();
        for Assigned { job, slot, is_sent_out } in jobs.drain(..) {
            let place = job.place;
            let executor = self.slots[slot].attached.as_mut().and_then(|a| a.executor.as_mut());
            match executor.filter(|_| is_sent_out) {
                None => here.push(Assigned { job, slot, is_sent_out }),
                Some(executor) => match executor.dispatch(job) {
                    Ok(()) => out.push((slot, place)),
                    Err(job) => here.push(Assigned { job, slot, is_sent_out }),
                },
            }
        }
        for Assigned { job, slot, .. } in here {
            let place = job.place;
            outcomes.push(Outcome { slot, place, back: Some((job.run(), RanOn::Caller)) });
        }
        for (slot, place) in out {
            let executor = self.slots[slot].attached.as_mut().and_then(|a| a.executor.as_mut());
            let back = executor.and_then(|e| e.join(deadline + GRACE)).map(|done| (done, RanOn::Executor));
            outcomes.push(Outcome { slot, place, back });
        }
        outcomes.sort_unstable_by_key(|outcome| outcome.place);
        self.jobs = jobs;
        self.outcomes = outcomes;
    }
}
