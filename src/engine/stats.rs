//! A seed's numbers, counted by whoever runs it and read by whoever asks.

use std::{
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use super::{
    Alpha, EngineError,
    series::{Sample, Series},
};
use crate::{
    id::KernelId,
    telemetry::{Counter, Histogram},
    wire::{ErrorReply, FailureCounts, FailureKind, SeedStats as Snapshot, SeriesReply},
};

/// Whether a pass ran on the thread that holds the request or on the seed's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RanOn {
    /// The thread that holds the request.
    Caller,
    /// The seed's own.
    Executor,
}

/// What is counted of one seed since its layer was opened, over all its kernels.
#[derive(Debug, Default)]
pub struct SeedCounters {
    executions: Counter,
    successes: Counter,
    failures: [Counter; FailureKind::ALL.len()],
    synchronous: Counter,
    asynchronous: Counter,
    time: Histogram,
    in_a_row: AtomicU32,
    /// The blend factor's bits, then the steps that its course still has: one number, so that the two always belong
    /// together.
    alpha: AtomicU64,
    /// How long the last forward pass that went well has taken, in nanoseconds, and the bits of the blend factor that it
    /// ran with, the trainer's own where it gave one.
    latest_ns: AtomicU64,
    latest_alpha: AtomicU32,
    /// The bits of the norm of what it gave.
    latest_norm: AtomicU32,
    series: OnceLock<Series>,
    last_error: Mutex<Option<ErrorReply>>,
}

impl SeedCounters {
    /// Counts a forward pass that went well.
    pub(super) fn succeeded(&self, time: Duration, ran_on: RanOn) {
        self.executions.increment();
        self.successes.increment();
        match ran_on {
            RanOn::Caller => self.synchronous.increment(),
            RanOn::Executor => self.asynchronous.increment(),
        }
        self.time.record_duration(time);
    }

    /// Notes where the blend factor is and how many steps its course still has.
    pub(super) fn note_alpha(&self, alpha: Alpha, steps_left: u32) {
        let packed = u64::from(alpha.get().to_bits()) << 32 | u64::from(steps_left);
        self.alpha.store(packed, Ordering::Relaxed);
    }

    /// The blend factor of the next pass, and how many steps its course still has.
    pub fn alpha(&self) -> (f32, u32) {
        let packed = self.alpha.load(Ordering::Relaxed);
        (f32::from_bits((packed >> 32) as u32), packed as u32)
    }

    /// Notes what a sample of the pass would say.
    pub(super) fn note_pass(&self, time: Duration, alpha: f32, norm: f32) {
        self.latest_ns.store(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.latest_alpha.store(alpha.to_bits(), Ordering::Relaxed);
        self.latest_norm.store(norm.to_bits(), Ordering::Relaxed);
    }

    /// Takes the memory for times and for a series of so many samples, once; for no samples at all, takes none for those.
    /// Before a seed runs, so that its passes need not.
    pub fn keep_series(&self, length: usize) {
        self.time.reserve();
        if length > 0 {
            self.series.get_or_init(|| Series::new(length));
        }
    }

    /// Takes a sample of the pass that was the layer's n-th training forward.
    pub(super) fn sample(&self, step: u64) {
        if let Some(series) = self.series.get() {
            let latency_us = self.latest_ns.load(Ordering::Relaxed) as f32 / 1e3;
            let alpha = f32::from_bits(self.latest_alpha.load(Ordering::Relaxed));
            let output_norm = f32::from_bits(self.latest_norm.load(Ordering::Relaxed));
            series.take(Sample { step, alpha, latency_us, output_norm, gradient_norm: f32::NAN });
        }
    }

    /// Notes the norm of the gradients of the parameters in the sample of their pass.
    pub(super) fn note_gradient(&self, step: u64, norm: f32) {
        if let Some(series) = self.series.get() {
            series.note_gradient(step, norm);
        }
    }

    /// The samples that are kept of passes after a step, the oldest first.
    pub fn series(&self, after: u64) -> SeriesReply {
        self.series.get().map(|series| series.after(after)).unwrap_or_default()
    }

    /// Forward passes that went well.
    pub fn successes(&self) -> u64 {
        self.successes.get()
    }

    /// Ends a row of failures.
    pub(super) fn end_row(&self) {
        self.in_a_row.store(0, Ordering::Relaxed);
    }

    /// Counts a pass that failed, as one of a row or by itself; gives how many have failed in a row.
    pub(super) fn failed(&self, kernel: &KernelId, error: &EngineError, in_a_row: bool) -> u32 {
        self.executions.increment();
        self.failures[error.failure() as usize - 1].increment();
        let reply = ErrorReply::from_fault(error).about(kernel);
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(reply);
        let one = u32::from(in_a_row);
        self.in_a_row.fetch_add(one, Ordering::Relaxed) + one
    }

    /// The most recent failure.
    pub fn last_error(&self) -> Option<ErrorReply> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Everything, as a trainer sees it.
    pub fn snapshot(&self) -> Snapshot {
        let mut failures = FailureCounts::default();
        for kind in FailureKind::ALL {
            *failures.of(kind) = self.failures[kind as usize - 1].get();
        }
        let (executions, successes) = (self.executions.get(), self.successes.get());
        let time = self.time.summary();
        let micros = |ns: u64| ns as f64 / 1e3;
        Snapshot {
            executions,
            successes,
            failures,
            success_rate: if executions == 0 { 1.0 } else { successes as f64 / executions as f64 },
            mean_us: micros(time.mean_ns),
            p50_us: micros(time.p50_ns),
            p99_us: micros(time.p99_ns),
            asynchronous_passes: self.asynchronous.get(),
            synchronous_passes: self.synchronous.get(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_counted_by_kind_and_in_a_row() {
        let counters = SeedCounters::default();
        assert_eq!(counters.snapshot().success_rate, 1.0);
        let kernel: KernelId = "k".parse().unwrap();
        let error = EngineError::NonFinite { kernel: kernel.clone() };
        assert_eq!(counters.failed(&kernel, &error, true), 1);
        assert_eq!(counters.failed(&kernel, &error, true), 2);
        counters.end_row();
        assert_eq!(counters.failed(&kernel, &error, true), 1);
        counters.succeeded(Duration::from_micros(10), RanOn::Caller);
        let snapshot = counters.snapshot();
        assert_eq!((snapshot.executions, snapshot.successes, snapshot.failures.non_finite), (4, 1, 3));
        assert_eq!((snapshot.success_rate, snapshot.synchronous_passes), (0.25, 1));
        let last = counters.last_error().unwrap();
        assert_eq!((last.code.as_str(), last.kernel.as_deref()), ("kernel.non_finite", Some("k")));
    }
}
