//! A seed's last training passes, one row each, in memory that was taken before.

use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use crate::wire::SeriesReply;

/// One training pass of a seed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    /// Which training forward of the layer it was, from 1.
    pub step: u64,
    /// The blend factor it ran with.
    pub alpha: f32,
    /// How long the seed's forward took, in microseconds.
    pub latency_us: f32,
    /// The norm of the seed's output; NaN where it was not measured.
    pub output_norm: f32,
    /// The norm of the gradients of its parameters in the backward of this pass; NaN until it has run, and where it was
    /// not measured.
    pub gradient_norm: f32,
}

/// The last samples of a seed: a ring, written by the lane and read by whoever asks.
#[derive(Debug)]
pub(super) struct Series(Mutex<Ring>);

#[derive(Debug)]
struct Ring {
    rows: Box<[Sample]>,
    /// Samples taken in all; the next goes to this place, modulo the length.
    taken: u64,
}

impl Series {
    /// Room for so many samples, at least one.
    pub(super) fn new(length: usize) -> Self {
        let rows = vec![Sample::default(); length.max(1)].into_boxed_slice();
        Self(Mutex::new(Ring { rows, taken: 0 }))
    }

    /// Takes a sample. Never waits: while somebody reads, it is left out.
    pub(super) fn take(&self, sample: Sample) {
        let Some(mut ring) = self.unread() else { return };
        let place = (ring.taken % ring.rows.len() as u64) as usize;
        ring.rows[place] = sample;
        ring.taken += 1;
    }

    /// Notes a gradient's norm in the sample of its pass, if that is kept. Never waits, as [`take`](Self::take).
    pub(super) fn note_gradient(&self, step: u64, norm: f32) {
        let Some(mut ring) = self.unread() else { return };
        if let Some(row) = ring.row_of(step) {
            row.gradient_norm = norm;
        }
    }

    /// What is kept of the passes after a step, the oldest first.
    pub(super) fn after(&self, step: u64) -> SeriesReply {
        let ring = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let length = ring.rows.len() as u64;
        let kept = ring.taken.saturating_sub(length)..ring.taken;
        let rows = kept.map(|n| ring.rows[(n % length) as usize]).filter(|row| row.step > step);
        let mut reply = SeriesReply::default();
        for row in rows {
            reply.step.push(row.step);
            reply.alpha.push(row.alpha);
            reply.latency_us.push(row.latency_us);
            reply.output_norm.push(measured(row.output_norm));
            reply.gradient_norm.push(measured(row.gradient_norm));
        }
        reply
    }

    /// The ring, while nobody reads it.
    fn unread(&self) -> Option<MutexGuard<'_, Ring>> {
        match self.0.try_lock() {
            Ok(ring) => Some(ring),
            // A row is written whole or not at all, whatever panicked.
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

impl Ring {
    /// The sample of a pass. Steps rise from sample to sample, so it is halved down.
    fn row_of(&mut self, step: u64) -> Option<&mut Sample> {
        let length = self.rows.len() as u64;
        let (mut from, mut to) = (self.taken.saturating_sub(length), self.taken);
        while from < to {
            let middle = from + (to - from) / 2;
            if self.rows[(middle % length) as usize].step < step { from = middle + 1 } else { to = middle }
        }
        let row = self.rows.get_mut((from % length) as usize)?;
        (from < self.taken && row.step == step).then_some(row)
    }
}

/// A number that was measured and can be written.
fn measured(norm: f32) -> Option<f32> {
    norm.is_finite().then_some(norm)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(step: u64) -> Sample {
        let (alpha, output_norm) = (step as f32 / 8.0, step as f32);
        Sample { step, alpha, latency_us: 2.0, output_norm, gradient_norm: f32::NAN }
    }

    #[test]
    fn a_gradient_finds_its_pass() {
        let series = Series::new(3);
        series.note_gradient(1, 1.0);
        [2, 4, 6, 8].into_iter().for_each(|step| series.take(sample(step)));
        // Gone, never taken, kept, later than all.
        [2, 5, 4, 8, 10].into_iter().for_each(|step| series.note_gradient(step, step as f32));
        let reply = series.after(0);
        assert_eq!(reply.step, [4, 6, 8]);
        assert_eq!(reply.gradient_norm, [Some(4.0), None, Some(8.0)]);
        assert_eq!(reply.output_norm, [Some(4.0), Some(6.0), Some(8.0)]);
        series.note_gradient(6, f32::INFINITY);
        assert_eq!(series.after(4).gradient_norm, [None, Some(8.0)]);
    }

    #[test]
    fn the_last_ones_are_kept_in_order() {
        let series = Series::new(3);
        assert_eq!(series.after(0), SeriesReply::default());
        (1..=5).for_each(|step| series.take(sample(step)));
        assert_eq!(series.after(0).step, [3, 4, 5]);
        let reply = series.after(3);
        assert_eq!((reply.step, reply.alpha, reply.latency_us), (vec![4, 5], vec![0.5, 0.625], vec![2.0; 2]));
        assert!(series.after(5).step.is_empty());
    }

    #[test]
    fn a_reader_is_not_waited_for() {
        let series = Series::new(2);
        series.take(sample(1));
        let reading = series.0.lock().unwrap();
        series.take(sample(2));
        drop(reading);
        series.take(sample(3));
        assert_eq!(series.after(0).step, [1, 3]);
    }
}
