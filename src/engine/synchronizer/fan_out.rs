//! Running the seeds' jobs: who runs what, and the join.

use std::time::Instant;

use smallvec::SmallVec;

use super::{Assigned, GRACE, GradientSynchronizer, Outcome};
use crate::{
    engine::{PlanSet, job::Direction, stats::RanOn},
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
            let job = done.job;
            self.take_back_scratch(index, &job.live, job.scratch);
            self.pool.give(job.saved);
            match job.direction {
                Direction::Forward { output } => self.pool.give(output),
                Direction::Backward { grad_output, grad_input, grad_parameters } => {
                    self.pool.give(grad_output);
                    self.give_target(grad_input);
                    self.give_target(grad_parameters);
                }
            }
        }
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
