//! How many bytes of artifacts may be on their way into memory at a time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    clock::whole_ms,
    fault::{ErrorClass, Fault},
};

/// What is counted at a time: a semaphore's places are numbers of 32 bits.
const UNIT_BYTES: u64 = 4096;

/// How long bytes wait for their turn.
pub const FETCH_PATIENCE: Duration = Duration::from_secs(30);

/// No bytes became free in time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{bytes} bytes were to be fetched, but for {waited_ms} ms too many of {limit_bytes} bytes were being fetched already: try again later, or raise cache.max_fetch_bytes"
)]
pub struct FetchBudgetSpent {
    /// How many were asked for.
    pub bytes: u64,
    /// How many there are.
    pub limit_bytes: u64,
    /// How long was waited.
    pub waited_ms: u64,
}

impl Fault for FetchBudgetSpent {
    fn class(&self) -> ErrorClass {
        ErrorClass::Overloaded
    }

    fn code(&self) -> &'static str {
        "cache.fetch_budget"
    }

    /// It has been waited for long enough.
    fn retry_after(&self) -> Option<Duration> {
        Some(Duration::MAX)
    }
}

/// Bytes that loads take before they have memory for them, and give back when their kernel is resident or refused.
///
/// Whoever asks first is served first, so that a large artifact is not passed by for ever by small ones. One that is
/// larger than the whole waits until it has all of it for itself.
#[derive(Debug)]
pub struct FetchBudget {
    places: Arc<Semaphore>,
    units: u32,
    waiting: AtomicU64,
    refused: AtomicU64,
}

/// What a [`FetchBudget`] tells of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchBudgetStats {
    /// Bytes taken now.
    pub bytes: u64,
    /// Bytes there are.
    pub limit_bytes: u64,
    /// Who waits now.
    pub waiting: u64,
    /// Who has waited in vain.
    pub refused: u64,
}

/// Bytes taken from a [`FetchBudget`], given back when dropped.
#[derive(Debug)]
pub struct Reservation {
    place: OwnedSemaphorePermit,
}

/// Counts somebody who waits, for as long as he does.
struct Waiting<'a>(&'a AtomicU64);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl FetchBudget {
    /// A budget of which nothing is taken.
    pub fn new(limit_bytes: u64) -> Arc<Self> {
        let units = u32::try_from(limit_bytes / UNIT_BYTES).unwrap_or(u32::MAX).max(1);
        // One of more places than there can be is as good as the largest.
        let units = units.min(u32::try_from(Semaphore::MAX_PERMITS).unwrap_or(u32::MAX));
        Arc::new(Self {
            places: Arc::new(Semaphore::new(units as usize)),
            units,
            waiting: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        })
    }

    /// Takes bytes, waiting for [`FETCH_PATIENCE`] at most.
    ///
    /// # Errors
    /// [`FetchBudgetSpent`].
    pub async fn reserve(&self, bytes: u64) -> Result<Reservation, FetchBudgetSpent> {
        self.reserve_within(bytes, FETCH_PATIENCE).await
    }

    /// As [`reserve`](Self::reserve), waiting for no more than `patience`.
    ///
    /// # Errors
    /// [`FetchBudgetSpent`].
    pub async fn reserve_within(
        &self,
        bytes: u64,
        patience: Duration,
    ) -> Result<Reservation, FetchBudgetSpent> {
        let units = self.units_of(bytes);
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let waiting = Waiting(&self.waiting);
        let taken = tokio::time::timeout(patience, self.places.clone().acquire_many_owned(units)).await;
        drop(waiting);
        // Nobody closes the semaphore.
        let place = taken.ok().and_then(Result::ok).ok_or_else(|| {
            self.refused.fetch_add(1, Ordering::Relaxed);
            FetchBudgetSpent { bytes, limit_bytes: self.limit_bytes(), waited_ms: whole_ms(patience) }
        })?;
        Ok(Reservation { place })
    }

    /// Counters.
    pub fn stats(&self) -> FetchBudgetStats {
        let free = u64::try_from(self.places.available_permits()).unwrap_or(u64::MAX);
        FetchBudgetStats {
            bytes: u64::from(self.units).saturating_sub(free) * UNIT_BYTES,
            limit_bytes: self.limit_bytes(),
            waiting: self.waiting.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
        }
    }

    fn limit_bytes(&self) -> u64 {
        u64::from(self.units) * UNIT_BYTES
    }

    fn units_of(&self, bytes: u64) -> u32 {
        u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX).min(self.units)
    }
}

impl Reservation {
    /// Gives back what is more than so many bytes.
    pub fn shrink_to(&mut self, bytes: u64) {
        let needed = usize::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(usize::MAX);
        drop(self.place.split(self.place.num_permits().saturating_sub(needed)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[tokio::test(start_paused = true)]
    async fn bytes_are_given_in_turn_and_given_back() {
        let budget = FetchBudget::new(4 * MIB);
        let mut first = budget.reserve(3 * MIB).await.unwrap();
        assert_eq!(budget.stats().bytes, 3 * MIB);
        // The small one came later, and does not pass by the large one.
        let ask = |bytes| {
            let budget = budget.clone();
            tokio::spawn(async move { budget.reserve(bytes).await })
        };
        let (large, small) = (ask(2 * MIB), ask(MIB));
        while budget.stats().waiting < 2 {
            tokio::task::yield_now().await;
        }
        first.shrink_to(2 * MIB + 1);
        tokio::task::yield_now().await;
        assert!(!large.is_finished() && !small.is_finished());
        first.shrink_to(2 * MIB);
        let large = large.await.unwrap().unwrap();
        drop(first);
        let small = small.await.unwrap().unwrap();
        assert_eq!((budget.stats().bytes, budget.stats().waiting), (3 * MIB, 0));
        drop((large, small));
        assert_eq!(budget.stats(), FetchBudgetStats { limit_bytes: 4 * MIB, ..FetchBudgetStats::default() });
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_in_vain_is_told_what_to_do() {
        let budget = FetchBudget::new(MIB);
        let all = budget.reserve(u64::MAX).await.unwrap();
        let refused = budget.reserve(1).await.unwrap_err();
        assert_eq!(refused, FetchBudgetSpent { bytes: 1, limit_bytes: MIB, waited_ms: 30_000 });
        assert!(refused.to_string().contains("cache.max_fetch_bytes"), "{refused}");
        assert_eq!(budget.stats(), FetchBudgetStats { bytes: MIB, limit_bytes: MIB, waiting: 0, refused: 1 });
        drop(all);
        assert!(budget.reserve(0).await.is_ok());
    }

    #[tokio::test]
    async fn who_gives_up_waiting_takes_nothing_with_him() {
        let budget = FetchBudget::new(MIB);
        let all = budget.reserve(MIB).await.unwrap();
        let waits = tokio::spawn({
            let budget = budget.clone();
            async move { budget.reserve(MIB).await.map(drop) }
        });
        while budget.stats().waiting == 0 {
            tokio::task::yield_now().await;
        }
        waits.abort();
        assert!(waits.await.unwrap_err().is_cancelled());
        drop(all);
        assert_eq!((budget.stats().waiting, budget.stats().bytes), (0, 0));
    }
}
