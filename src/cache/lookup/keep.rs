//! What the tiers are told of a kernel that was found: it was accepted, or it is not to be had.

use std::sync::Arc;

use super::{Found, Lookup, Search, lock, warn};
use crate::{
    cache::{Negative, Stored, Tier},
    fault::{ErrorClass, Fault},
    id::KernelId,
    validation::Verdict,
};

/// The code of the one negative result that holds whoever asks.
const NOT_FOUND: &str = "kernel.not_found";

impl Lookup {
    /// Tells the tiers that want it of an artifact that was accepted, and by which verdict; nobody, where the kernel
    /// has been forgotten since the search for it began.
    pub fn keep(&self, found: &Found, verdict: Arc<Verdict>) {
        let (id, search) = (found.stored.id(), found.search);
        let known = found.stored.verdict.as_ref().map(|verdict| &verdict.policy);
        if let Some(holder) = found.holder.filter(|_| known != Some(&verdict.policy)) {
            let (tier, id, verdict) = (self.tiers[holder].clone(), id.clone(), verdict.clone());
            self.begin_write(found.stored.id(), search, 0, async move {
                if let Err(error) = tier.put_verdict(&id, verdict.digest, &verdict).await {
                    warn(tier.as_ref(), &id, &error);
                }
            });
        }
        let bytes = found.stored.bytes.len() as u64;
        let stored = Arc::new(Stored { verdict: Some(verdict), ..found.stored.clone() });
        for &place in &found.unasked {
            let (tier, stored) = (self.tiers[place].clone(), stored.clone());
            self.begin_write(id, search, bytes, async move {
                let held = tier.about(stored.id()).await;
                if held.is_ok_and(|held| held.is_none_or(|held| held.digest != stored.digest)) {
                    put(tier.as_ref(), &stored).await;
                }
            });
        }
        // Whether it is passed by or not, for that is about reading: what is not written is never found there.
        for &place in &found.wanting {
            let (tier, stored) = (self.tiers[place].clone(), stored.clone());
            self.begin_write(id, search, bytes, async move { put(tier.as_ref(), &stored).await });
        }
    }

    /// Tells of a rejection of what was found, which this node believes for a while, unless judging it again may have
    /// another end.
    pub fn reject(&self, found: &Found, rejection: &dyn Fault) {
        self.remember(found.stored.id(), found.search, rejection);
    }

    /// Remembers that a kernel is not to be had. That there is none, everybody is told; what this node refuses by
    /// settings of its own stays with it, for others may accept it.
    pub(super) fn remember(&self, id: &KernelId, search: Search, fault: &dyn Fault) {
        let lifetime = match fault.class() {
            ErrorClass::NotFound => self.options.not_found_for,
            ErrorClass::Invalid => self.options.rejected_for,
            _ => return,
        };
        let everywhere = fault.holds_everywhere();
        let lifetime_ms = i64::try_from(lifetime.as_millis()).unwrap_or(i64::MAX);
        let negative = Negative {
            code: fault.code().to_owned(),
            reason: fault.to_string(),
            until_unix_ms: self.clock.unix_ms().saturating_add(lifetime_ms),
            policy: (!everywhere).then_some(self.options.policy),
        };
        self.remember_here(id, search, negative.clone());
        for tier in self.tiers.iter().filter(|tier| everywhere || !tier.shared()) {
            let (tier, own, negative) = (tier.clone(), id.clone(), negative.clone());
            self.begin_write(id, search, 0, async move {
                if let Err(error) = tier.put_negative(&own, &negative).await {
                    warn(tier.as_ref(), &own, &error);
                }
            });
        }
    }

    /// Remembers it in memory.
    pub(super) fn remember_here(&self, id: &KernelId, search: Search, negative: Negative) {
        let mut negatives = lock(&self.negatives);
        // Under the lock: who forgets notes that first and then takes it.
        if !self.forgotten.since(id, search) {
            negatives.insert(id.clone(), negative, self.clock.as_ref());
        }
    }

    /// Whether a negative result is one by this node's measure.
    pub(super) fn believes(&self, negative: &Negative) -> bool {
        // When it was noted is not known here, only that none is believed for longer than this.
        let longest = self.options.not_found_for.max(self.options.rejected_for);
        if self.forgotten.has_doubted_within(longest) {
            return false;
        }
        match negative.policy {
            Some(policy) => policy == self.options.policy,
            None => negative.code == NOT_FOUND,
        }
    }

    /// Begins to write what a search found, unless its kernel is forgotten before the write's turn comes.
    ///
    /// Who forgets notes that, then waits for the writes that have their turn, then removes: what passes this test is
    /// removed again.
    fn begin_write(
        &self,
        id: &KernelId,
        search: Search,
        bytes: u64,
        write: impl Future<Output = ()> + Send + 'static,
    ) {
        let (forgotten, own) = (self.forgotten.clone(), id.clone());
        self.writes.begin(id, bytes, move || !forgotten.since(&own, search), write);
    }
}

async fn put(tier: &dyn Tier, stored: &Stored) {
    match tier.put(stored).await {
        Ok(true) => {}
        Ok(false) => {
            tracing::debug!(kernel = %stored.id(), tier = tier.name(), "larger than the tier, not kept");
        }
        Err(error) => warn(tier, stored.id(), &error),
    }
}
