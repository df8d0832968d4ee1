//! What runs a live seed's jobs beside those of others.

use std::{
    thread::{self, JoinHandle},
    time::Instant,
};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::{
    EngineError,
    job::{Begun, Done, Job},
};
use crate::{
    failpoint::{self, Failpoint},
    telemetry::step_path,
};

/// What runs one seed's jobs beside others, one at a time: the synchronizer never sends a second before the first has
/// come back. A job under way when this is dropped finishes on memory of its own and is thrown away; where that is a
/// device's, the drop waits for it.
#[derive(Debug)]
pub(super) struct SeedExecutor {
    runner: Runner,
    is_busy: bool,
    out_bytes: usize,
}

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a box would be an allocation in every pass")]
enum Runner {
    /// A thread, on a device that runs what it is handed on the caller's.
    Thread { jobs: Sender<Job>, done: Receiver<Done>, _thread: JoinHandle<()> },
    /// The seed's queue, on a device that goes on by itself: a thread would only wait for it.
    Queue { out: Option<Begun> },
}

impl SeedExecutor {
    /// Starts the thread.
    ///
    /// # Errors
    /// [`EngineError::Thread`].
    pub(super) fn start(name: String) -> Result<Self, EngineError> {
        let (jobs, mailbox) = bounded::<Job>(1);
        let (sender, done) = bounded(1);
        let builder = thread::Builder::new().name(name.clone());
        let waits = step_path::counter();
        let spawned = builder.spawn(move || {
            waits.into_iter().for_each(step_path::enter);
            for job in mailbox {
                failpoint::reached(Failpoint::ExecutorBegins);
                let done = job.run();
                failpoint::reached(Failpoint::ExecutorDone);
                if sender.send(done).is_err() {
                    return;
                }
            }
        });
        let thread = spawned.map_err(|e| EngineError::Thread { name, reason: e.to_string() })?;
        let runner = Runner::Thread { jobs, done, _thread: thread };
        Ok(Self { runner, is_busy: false, out_bytes: 0 })
    }

    /// One that hands jobs to their own queues.
    pub(super) fn queued() -> Self {
        Self { runner: Runner::Queue { out: None }, is_busy: false, out_bytes: 0 }
    }

    /// Whether it hands jobs to their queues.
    pub(super) fn is_queued(&self) -> bool {
        matches!(self.runner, Runner::Queue { .. })
    }

    /// Whether a job is still out.
    pub(super) fn is_busy(&self) -> bool {
        self.is_busy
    }

    /// Bytes of lent memory that the job still out holds.
    pub(super) fn out_bytes(&self) -> usize {
        if self.is_busy { self.out_bytes } else { 0 }
    }

    /// Hands a job over; gives it back where one is out already, or the thread is gone.
    pub(super) fn dispatch(&mut self, job: Job) -> Result<(), Job> {
        if self.is_busy {
            return Err(job);
        }
        self.out_bytes = job.lent_bytes();
        match &mut self.runner {
            Runner::Thread { jobs, .. } => jobs.try_send(job).map_err(|refused| refused.into_inner())?,
            Runner::Queue { out } => *out = Some(job.begin()),
        }
        self.is_busy = true;
        Ok(())
    }

    /// The job that is out, once it is done; `None` where it is not by then, or the thread is gone.
    pub(super) fn join(&mut self, until: Instant) -> Option<Done> {
        let done = match &mut self.runner {
            Runner::Thread { done, .. } => done.recv_deadline(until).ok(),
            Runner::Queue { out } => match out.take()?.wait_until(until) {
                Ok(done) => Some(done),
                Err(late) => {
                    *out = Some(late);
                    None
                }
            },
        };
        self.is_busy &= done.is_none();
        done
    }

    /// A job that came back late.
    pub(super) fn reclaim(&mut self) -> Option<Done> {
        let done = match &mut self.runner {
            Runner::Thread { done, .. } => done.try_recv().ok()?,
            Runner::Queue { out } => out.take_if(|begun| begun.is_done())?.wait(),
        };
        self.is_busy = false;
        Some(done)
    }
}
