//! A cache tier behind a circuit breaker: a database that is down costs microseconds, not time limits.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::{Answer, Held, Negative, Stored, Tier, TierError, TierStats};
use crate::{
    clock::Clock,
    digest::Digest,
    guard::{Breaker, BreakerPolicy, BreakerStatus},
    id::KernelId,
    validation::Verdict,
};

/// A tier whose failures open a breaker. Statistics are not counted by it.
#[derive(Debug)]
pub struct GuardedTier {
    tier: Arc<dyn Tier>,
    breaker: Breaker,
}

impl GuardedTier {
    /// Guards a tier.
    pub fn new(tier: Arc<dyn Tier>, policy: BreakerPolicy, clock: Arc<dyn Clock>) -> Self {
        let breaker = Breaker::new(tier.name(), policy, clock);
        Self { tier, breaker }
    }

    /// The breaker's state.
    pub fn breaker_status(&self) -> BreakerStatus {
        self.breaker.status()
    }

    /// A call that asks the tier's server or file whatever comes of it.
    fn guard<'a, T: Send + 'a>(
        &'a self,
        call: impl FnOnce(&'a dyn Tier) -> BoxFuture<'a, Result<T, TierError>> + Send + 'a,
    ) -> BoxFuture<'a, Result<T, TierError>> {
        self.guard_if(|_| true, call)
    }

    /// A call whose answer says whether anybody was asked: one that asked nobody shows nothing of who it is that
    /// does not answer, and neither closes a breaker nor breaks a row of failures.
    fn guard_if<'a, T: Send + 'a>(
        &'a self,
        asked: fn(&T) -> bool,
        call: impl FnOnce(&'a dyn Tier) -> BoxFuture<'a, Result<T, TierError>> + Send + 'a,
    ) -> BoxFuture<'a, Result<T, TierError>> {
        Box::pin(async move {
            let permit = self.breaker.admit()?;
            let result = call(self.tier.as_ref()).await;
            if result.as_ref().map_or(true, asked) {
                permit.record(result.as_ref().map(|_| ()));
            }
            result
        })
    }
}

impl Tier for GuardedTier {
    fn name(&self) -> &str {
        self.tier.name()
    }

    fn shared(&self) -> bool {
        self.tier.shared()
    }

    fn largest_bytes(&self) -> Option<u64> {
        self.tier.largest_bytes()
    }

    fn get<'a>(&'a self, id: &'a KernelId) -> BoxFuture<'a, Result<Answer, TierError>> {
        self.guard(move |tier| tier.get(id))
    }

    fn put<'a>(&'a self, stored: &'a Stored) -> BoxFuture<'a, Result<bool, TierError>> {
        self.guard_if(|taken| *taken, move |tier| tier.put(stored))
    }

    fn put_verdict<'a>(
        &'a self,
        id: &'a KernelId,
        digest: Digest,
        verdict: &'a Verdict,
    ) -> BoxFuture<'a, Result<bool, TierError>> {
        self.guard(move |tier| tier.put_verdict(id, digest, verdict))
    }

    fn put_negative<'a>(
        &'a self,
        id: &'a KernelId,
        negative: &'a Negative,
    ) -> BoxFuture<'a, Result<(), TierError>> {
        self.guard(move |tier| tier.put_negative(id, negative))
    }

    fn remove<'a>(&'a self, id: &'a KernelId) -> BoxFuture<'a, Result<bool, TierError>> {
        self.guard(move |tier| tier.remove(id))
    }

    fn about<'a>(&'a self, id: &'a KernelId) -> BoxFuture<'a, Result<Option<Held>, TierError>> {
        self.guard(move |tier| tier.about(id))
    }

    fn negative<'a>(&'a self, id: &'a KernelId) -> BoxFuture<'a, Result<Option<Negative>, TierError>> {
        self.guard(move |tier| tier.negative(id))
    }

    fn clear(&self) -> BoxFuture<'_, Result<u64, TierError>> {
        self.guard(|tier| tier.clear())
    }

    fn most_used(
        &self,
        since_unix_ms: i64,
        limit: u32,
    ) -> BoxFuture<'_, Result<Option<Vec<KernelId>>, TierError>> {
        self.guard_if(Option::is_some, move |tier| tier.most_used(since_unix_ms, limit))
    }

    fn note_uses<'a>(&'a self, uses: &'a [(KernelId, u64)]) -> BoxFuture<'a, Result<(), TierError>> {
        // It goes into memory, to be written down when the tier is back.
        self.tier.note_uses(uses)
    }

    fn breaker(&self) -> Option<BreakerStatus> {
        Some(self.breaker.status())
    }

    fn counters(&self) -> TierStats {
        self.tier.counters()
    }

    fn stats(&self) -> BoxFuture<'_, Result<TierStats, TierError>> {
        // Neither a failure nor a trial; but nobody who asks how things are waits for what is known not to answer.
        match self.breaker.refusal() {
            Some(refused) => Box::pin(async move { Err(refused.into()) }),
            None => self.tier.stats(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        cache::{RedisOptions, RedisTier, SqlTier, SqliteOptions, contract::artifact},
        clock::ManualClock,
        fault::Fault,
        guard::BreakerState,
    };

    #[tokio::test]
    async fn a_tier_that_fails_is_left_alone_for_a_while() {
        let folder = tempfile::tempdir().unwrap();
        let clock = ManualClock::default();
        let options = SqliteOptions::new(folder.path().join("kernels.sqlite"));
        let sqlite = Arc::new(SqlTier::new(options, Arc::new(clock.clone())));
        let tier = GuardedTier::new(sqlite.clone(), BreakerPolicy::default(), Arc::new(clock.clone()));
        let id = "k".parse().unwrap();
        assert_eq!(tier.get(&id).await, Ok(Answer::Miss));
        sqlite.close().await;
        for _ in 0..5 {
            assert!(matches!(tier.get(&id).await, Err(TierError::Request { .. })));
        }
        let skipped = tier.get(&id).await.unwrap_err();
        assert!(matches!(&skipped, TierError::Skipped(_)), "{skipped}");
        assert!(skipped.to_string().contains("tried again in 60000 ms"), "{skipped}");
        assert_eq!(skipped.code(), "cache.tier_unavailable");
        clock.advance(Duration::from_secs(60));
        assert!(matches!(tier.get(&id).await, Err(TierError::Request { .. })));
        assert_eq!(tier.breaker_status().state, BreakerState::Open);
        // Who asks how things are does not wait for it either, and costs it no trial.
        assert!(matches!(tier.stats().await, Err(TierError::Skipped(_))));
        clock.advance(Duration::from_secs(60));
        assert!(matches!(tier.stats().await, Err(TierError::Request { .. })));
        assert_eq!((tier.counters().failures, tier.breaker_status().half_opened), (7, 1));
    }

    #[tokio::test]
    async fn what_asks_nobody_neither_closes_a_breaker_nor_breaks_a_row_of_failures() {
        let folder = tempfile::tempdir().unwrap();
        let (clock, blocked) = (ManualClock::default(), folder.path().join("blocked"));
        std::fs::write(&blocked, b"a file where the folder should be").unwrap();
        let options = SqliteOptions { max_bytes: 1000, ..SqliteOptions::new(blocked.join("kernels.sqlite")) };
        let sqlite = Arc::new(SqlTier::new(options, Arc::new(clock.clone())));
        let tier = GuardedTier::new(sqlite, BreakerPolicy::default(), Arc::new(clock.clone()));
        let (small, huge) = (artifact("k", 10), artifact("huge", 2000));
        let uses = [(small.id().clone(), 3)];
        for _ in 0..5 {
            assert!(tier.get(small.id()).await.is_err());
            tier.note_uses(&uses).await.unwrap();
            assert!(matches!(tier.put(&huge).await, Ok(false) | Err(TierError::Skipped(_))));
        }
        assert_eq!(tier.breaker_status().state, BreakerState::Open);
        tier.note_uses(&uses).await.unwrap();
        clock.advance(Duration::from_secs(60));
        for _ in 0..5 {
            assert_eq!(tier.put(&huge).await, Ok(false));
        }
        let status = tier.breaker_status();
        assert_eq!((status.state, status.trials), (BreakerState::HalfOpen, 0), "its place is free");
        // The uses have waited for the tier.
        std::fs::remove_file(&blocked).unwrap();
        assert_eq!(tier.put(&small).await, Ok(true));
        assert_eq!(tier.most_used(0, 9).await, Ok(Some(vec![small.id().clone()])));
    }

    #[tokio::test]
    async fn a_tier_that_counts_no_uses_is_not_asked_for_them() {
        let clock: Arc<dyn Clock> = Arc::new(ManualClock::default());
        let options = RedisOptions::new("redis://127.0.0.1:1");
        let redis = Arc::new(RedisTier::new(options, clock.clone()));
        let tier = GuardedTier::new(redis, BreakerPolicy::default(), clock);
        let id = "k".parse().unwrap();
        for _ in 0..5 {
            assert_eq!(tier.breaker_status().state, BreakerState::Closed);
            assert_eq!(tier.most_used(0, 9).await, Ok(None));
            tier.note_uses(&[]).await.unwrap();
            assert!(tier.get(&id).await.is_err());
        }
        assert_eq!(tier.breaker_status().state, BreakerState::Open);
    }
}
