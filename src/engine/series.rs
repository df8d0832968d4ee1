//! A seed's last training passes, one row each, in memory that was taken before.

use std::sync::{Mutex, PoisonError, TryLockError};

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
        let mut ring = match self.0.try_lock() {
            Ok(ring) => ring,
            // A row is written whole or not at all, whatever panicked.
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        let place = (ring.taken % ring.rows.len() as u64) as usize;
        ring.rows[place] = sample;
        ring.taken += 1;
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
        }
        reply
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(step: u64) -> Sample {
        Sample { step, alpha: step as f32 / 8.0, latency_us: 2.0 }
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
