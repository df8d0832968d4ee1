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

    fn guard<'a, T: Send + 'a>(
        &'a self,
        call: impl FnOnce(&'a dyn Tier) -> BoxFuture<'a, Result<T, TierError>> + Send + 'a,
    ) -> BoxFuture<'a, Result<T, TierError>> {
        Box::pin(async move {
            let permit = self.breaker.admit()?;
            let result = call(self.tier.as_ref()).await;
            permit.record(result.as_ref().map(|_| ()));
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

    fn get<'a>(&'a self, id: &'a KernelId) -> BoxFuture<'a, Result<Answer, TierError>> {
        self.guard(move |tier| tier.get(id))
    }

    fn put<'a>(&'a self, stored: &'a Stored) -> BoxFuture<'a, Result<bool, TierError>> {
        self.guard(move |tier| tier.put(stored))
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

    fn clear(&self) -> BoxFuture<'_, Result<u64, TierError>> {
        self.guard(|tier| tier.clear())
    }

    fn most_used(&self, since_unix_ms: i64, limit: u32) -> BoxFuture<'_, Result<Vec<KernelId>, TierError>> {
        self.guard(move |tier| tier.most_used(since_unix_ms, limit))
    }

    fn note_uses<'a>(&'a self, uses: &'a [(KernelId, u64)]) -> BoxFuture<'a, Result<(), TierError>> {
        self.guard(move |tier| tier.note_uses(uses))
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
        cache::{SqlTier, SqliteOptions},
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
}
