//! Forgetting, and what is known of the look-up and its tiers.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;

use super::{InTier, Lookup, LookupStats, Search, lock};
use crate::{
    cache::{Negative, Tier, TierError, TierStats},
    guard::BreakerStatus,
    id::KernelId,
};

impl Lookup {
    /// Waits until the tiers have been told of everything, however long they take.
    pub async fn settle(&self) {
        self.writes.settle().await;
    }

    /// Notes that a kernel is forgotten from now on: what a search finds that has begun before is kept nowhere, and
    /// of a copy from before the origin is asked. Forgetting begins with it; who keeps kernels outside the tiers calls
    /// it before he drops his own.
    pub fn begin_forgetting(&self, id: &KernelId) {
        self.forgotten.note(id);
    }

    /// Notes that for every kernel.
    pub fn begin_forgetting_all(&self) {
        self.forgotten.note_all();
    }

    /// Notes that any kernel may have been forgotten without a word to this node: what a search finds that has begun
    /// before is kept nowhere, and the origin is asked about every copy at its next use.
    pub fn doubt_all(&self) {
        self.forgotten.doubt();
        // What was not to be had may have been published.
        lock(&self.negatives).clear();
    }

    /// Whether a kernel has been forgotten since it was searched for.
    pub fn is_forgotten(&self, id: &KernelId, search: Search) -> bool {
        self.forgotten.since(id, search)
    }

    /// Forgets all that is known of a kernel, so that the next look-up asks the source; `false` where
    /// nothing was known.
    ///
    /// # Errors
    /// The first tier's that failed, when the others have been asked.
    pub async fn forget(&self, id: &KernelId) -> Result<bool, TierError> {
        self.forget_in(id, |_| true).await
    }

    /// Forgets all that this node alone knows of a kernel: who had it forgotten everywhere has seen to what
    /// nodes share. `false` where nothing was known.
    ///
    /// # Errors
    /// The first tier's that failed, when the others have been asked.
    pub async fn forget_here(&self, id: &KernelId) -> Result<bool, TierError> {
        self.forget_in(id, |tier| !tier.shared()).await
    }

    async fn forget_in(&self, id: &KernelId, is_meant: fn(&dyn Tier) -> bool) -> Result<bool, TierError> {
        self.begin_forgetting(id);
        let mut any = self.forget_negative(id);
        self.writes.settle_turns(Some(id)).await;
        let mut failure = None;
        for tier in self.tiers.iter().filter(|tier| is_meant(tier.as_ref())) {
            match tier.remove(id).await {
                Ok(removed) => any |= removed,
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        failure.map_or(Ok(any), Err)
    }

    /// Forgets what is remembered in memory of a kernel that was not to be had.
    pub fn forget_negative(&self, id: &KernelId) -> bool {
        lock(&self.negatives).remove(id)
    }

    /// Forgets everything in every tier, and says how many kernels that were.
    ///
    /// # Errors
    /// The first tier's that failed, when the others have been cleared.
    pub async fn clear(&self) -> Result<u64, TierError> {
        self.begin_forgetting_all();
        lock(&self.negatives).clear();
        self.writes.settle_turns(None).await;
        let (mut count, mut failure) = (0, None);
        for tier in &self.tiers {
            match tier.clear().await {
                Ok(cleared) => count += cleared,
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        failure.map_or(Ok(count), Err)
    }

    /// The ids most used since a time in milliseconds since 1970, by the last tier that answers with any:
    /// the last is the one that outlives the others.
    ///
    /// # Errors
    /// The first that failed, where none answered with any: it may know some.
    pub async fn most_used(&self, since_unix_ms: i64, limit: u32) -> Result<Vec<KernelId>, TierError> {
        let mut failure = None;
        for tier in self.tiers.iter().rev() {
            match tier.most_used(since_unix_ms, limit).await {
                Ok(Some(ids)) if !ids.is_empty() => return Ok(ids),
                Ok(_) => {}
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        failure.map_or(Ok(Vec::new()), Err)
    }

    /// What every tier has of a kernel, by the tiers' names.
    pub async fn about(&self, id: &KernelId) -> Vec<(String, Result<InTier, TierError>)> {
        let mut places = Vec::with_capacity(self.tiers.len());
        for tier in &self.tiers {
            places.push((tier.name().to_owned(), self.about_in(tier.as_ref(), id).await));
        }
        places
    }

    async fn about_in(&self, tier: &dyn Tier, id: &KernelId) -> Result<InTier, TierError> {
        let held = tier.about(id).await?;
        if held.is_some() {
            return Ok(InTier { held, negative: None });
        }
        let negative = tier.negative(id).await?.filter(|negative| self.believes(negative));
        Ok(InTier { held, negative })
    }

    /// Tells the tiers of uses that they did not see.
    pub async fn note_uses(&self, uses: &[(KernelId, u64)]) {
        for tier in &self.tiers {
            if let Err(error) = tier.note_uses(uses).await {
                tracing::debug!(tier = tier.name(), %error, "uses of kernels not noted");
            }
        }
    }

    /// The breakers before the tiers.
    pub fn breakers(&self) -> Vec<BreakerStatus> {
        self.tiers.iter().filter_map(|tier| tier.breaker()).collect()
    }

    /// The source's name, where there is one.
    pub fn source_name(&self) -> Option<&str> {
        self.source.as_ref().map(|source| source.name())
    }

    /// Why a kernel is known not to be had.
    pub fn negative(&self, id: &KernelId) -> Option<Negative> {
        lock(&self.negatives).get(id, self.clock.as_ref())
    }

    /// The tiers in the order they are asked.
    pub fn tiers(&self) -> &[Arc<dyn Tier>] {
        &self.tiers
    }

    /// Counters of the look-up and of every tier.
    pub async fn stats(&self) -> LookupStats {
        self.stats_of(join_all(self.tiers.iter().map(told)).await)
    }

    /// As [`stats`](Self::stats), with a limit to how long each tier may take to say what it holds. One that
    /// takes longer has not failed, and is told of with its counters alone.
    pub async fn stats_within(&self, patience: Duration) -> LookupStats {
        let tiers = self.tiers.iter().map(async |tier| {
            tokio::time::timeout(patience, told(tier)).await.unwrap_or_else(|_| {
                let error = format!("has not said within {} ms what it holds", patience.as_millis());
                TierStats { error: Some(error), ..tier.counters() }
            })
        });
        self.stats_of(join_all(tiers).await)
    }

    fn stats_of(&self, tiers: Vec<TierStats>) -> LookupStats {
        let names = self.tiers.iter().map(|tier| tier.name().to_owned());
        let names: Vec<_> = names.chain(self.source.iter().map(|source| source.name().to_owned())).collect();
        LookupStats {
            found: lock(&self.counters.found).clone(),
            not_found: self.counters.not_found.get(),
            negative_hits: self.counters.negative_hits.get(),
            source_absences: self.counters.source_absences.get(),
            source_failures: self.counters.source_failures.get(),
            confirmations: self.counters.confirmations.get(),
            stale: self.counters.stale.get(),
            negatives: lock(&self.negatives).len() as u64,
            writes_skipped: self.writes.skipped(),
            reading: self.reading.as_ref().map(|reading| reading.budget.stats()).unwrap_or_default(),
            tiers,
            routes: self.routes.stats(&names),
        }
    }
}

/// A tier's counters and contents, or why it does not say what it holds.
async fn told(tier: &Arc<dyn Tier>) -> TierStats {
    let stats = tier.stats().await;
    stats.unwrap_or_else(|error| TierStats { error: Some(error.to_string()), ..tier.counters() })
}
