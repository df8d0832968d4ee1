//! The last loads, and where their time went.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::{
    cache::{Found, Step},
    id::KernelId,
    wire::{LoadReport, StepReport},
};

/// How many loads are remembered.
const REMEMBERED: usize = 256;

/// The last loads of all kernels.
#[derive(Debug, Default)]
pub struct LoadLog(Mutex<VecDeque<LoadReport>>);

impl LoadLog {
    pub(super) fn note(&self, load: LoadReport) {
        let mut loads = self.lock();
        if loads.len() == REMEMBERED {
            loads.pop_back();
        }
        loads.push_front(load);
    }

    /// Adds to a kernel's last load how long it was planned for a seed.
    pub(super) fn note_plan(&self, id: &KernelId, us: u64) {
        if let Some(load) = self.lock().iter_mut().find(|load| load.kernel == *id) {
            load.plan_us = Some(us);
        }
    }

    /// The last loads of a kernel, the latest first.
    pub(super) fn of(&self, id: &KernelId, limit: usize) -> Vec<LoadReport> {
        self.lock().iter().filter(|load| load.kernel == *id).take(limit).cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<LoadReport>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A load that has just begun.
pub(super) fn begun(kernel: KernelId, at_unix_ms: i64) -> LoadReport {
    LoadReport {
        kernel,
        at_unix_ms,
        place: None,
        stale: false,
        steps: Vec::new(),
        look_up_us: 0,
        queue_us: 0,
        validate_us: 0,
        total_us: 0,
        plan_us: None,
        error: None,
    }
}

/// Writes down what a look-up found on its way.
pub(super) fn found(load: &mut LoadReport, found: &Found) {
    load.place = Some(found.place.clone());
    load.stale = found.stale;
    steps(load, &found.steps);
}

/// Writes down which way a look-up took.
pub(super) fn steps(load: &mut LoadReport, steps: &[Step]) {
    let step = |step: &Step| StepReport {
        place: step.place.clone(),
        outcome: step.outcome.as_str().to_owned(),
        us: step.us,
    };
    load.steps = steps.iter().map(step).collect();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_loads_of_a_kernel_are_told_the_latest_first() {
        let (log, id) = (LoadLog::default(), |text: &str| text.parse::<KernelId>().unwrap());
        for at in 0..300 {
            log.note(begun(id(if at % 2 == 0 { "even" } else { "odd" }), at));
        }
        log.note_plan(&id("even"), 7);
        log.note_plan(&id("absent"), 7);
        let last = log.of(&id("even"), 2);
        assert_eq!(
            last.iter().map(|load| (load.at_unix_ms, load.plan_us)).collect::<Vec<_>>(),
            [(298, Some(7)), (296, None)]
        );
        assert_eq!(log.of(&id("odd"), 1000).len(), 128);
    }
}
