//! A live seed's own thread.

use std::{
    thread::{self, JoinHandle},
    time::Instant,
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::{
    EngineError,
    job::{Done, Job},
};
use crate::telemetry::step_path;

/// A thread that runs one seed's jobs, one at a time.
///
/// Its mailbox holds one job: the synchronizer never sends a second before the first has come back. It ends
/// when this is dropped; a job under way then finishes on memory of its own and is thrown away.
#[derive(Debug)]
pub(super) struct SeedExecutor {
    jobs: Sender<Job>,
    done: Receiver<Done>,
    is_busy: bool,
    out_bytes: usize,
    _thread: JoinHandle<()>,
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
                if sender.send(job.run()).is_err() {
                    return;
                }
            }
        });
        let thread = spawned.map_err(|e| EngineError::Thread { name, reason: e.to_string() })?;
        Ok(Self { jobs, done, is_busy: false, out_bytes: 0, _thread: thread })
    }

    /// Whether a job is still out.
    pub(super) fn is_busy(&self) -> bool {
        self.is_busy
    }

    /// Bytes of lent memory that the job still out holds.
    pub(super) fn out_bytes(&self) -> usize {
        if self.is_busy { self.out_bytes } else { 0 }
    }

    /// Hands a job over; gives it back where the thread is busy or gone.
    pub(super) fn dispatch(&mut self, job: Job) -> Result<(), Job> {
        if self.is_busy {
            return Err(job);
        }
        self.out_bytes = job.lent_bytes();
        self.jobs.try_send(job).map_err(|refused| refused.into_inner())?;
        self.is_busy = true;
        Ok(())
    }

    /// The job that is out, once it is done; `None` where it is not by then, or the thread is gone.
    pub(super) fn join(&mut self, until: Instant) -> Option<Done> {
        match self.done.recv_deadline(until) {
            Ok(done) => {
                self.is_busy = false;
                Some(done)
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => None,
        }
    }

    /// A job that came back late.
    pub(super) fn reclaim(&mut self) -> Option<Done> {
        let done = self.done.try_recv().ok()?;
        self.is_busy = false;
        Some(done)
    }
}
