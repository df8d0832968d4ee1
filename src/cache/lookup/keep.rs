//! What the tiers are told of a kernel that was found: it was accepted, or it is not to be had.

use std::{sync::Arc, time::Duration};

use super::{Found, Lookup, lock, warn};
use crate::{
    cache::{Negative, Stored, Tier},
    fault::{ErrorClass, Fault},
    id::KernelId,
    validation::Verdict,
};

impl Lookup {
    /// Tells the tiers that want it of an artifact that was accepted, and by which verdict.
    pub fn keep(&self, found: &Found, verdict: Arc<Verdict>) {
        let id = found.stored.id();
        let known = found.stored.verdict.as_ref().map(|verdict| &verdict.policy);
        if let Some(holder) = found.holder.filter(|_| known != Some(&verdict.policy)) {
            let (tier, id, verdict) = (self.tiers[holder].clone(), id.clone(), verdict.clone());
            self.writes.begin(async move {
                if let Err(error) = tier.put_verdict(&id, verdict.digest, &verdict).await {
                    warn(tier.as_ref(), &id, &error);
                }
            });
        }
        let stored = Arc::new(Stored { verdict: Some(verdict), ..found.stored.clone() });
        for &place in &found.behind {
            let (tier, stored) = (self.tiers[place].clone(), stored.clone());
            self.writes.begin(async move {
                // A node keeps what it runs, so that it has it when what nodes share is out of reach.
                let held = tier.about(stored.id()).await;
                if held.is_ok_and(|held| held.is_none_or(|held| held.digest != stored.digest)) {
                    put(tier.as_ref(), &stored).await;
                }
            });
        }
        for &place in &found.wanting {
            if self.routes.is_passed_by(place, stored.bytes.len()) {
                continue;
            }
            let (tier, stored) = (self.tiers[place].clone(), stored.clone());
            self.writes.begin(async move { put(tier.as_ref(), &stored).await });
        }
    }

    /// Tells the tiers of a rejection, which is believed for a while; what they hold of the kernel goes.
    pub fn reject(&self, id: &KernelId, rejection: &dyn Fault) {
        self.remember(id, rejection.code(), rejection.to_string(), self.options.rejected_for);
    }

    pub(super) fn remember_fault(&self, id: &KernelId, fault: &dyn Fault) {
        let lifetime = match fault.class() {
            ErrorClass::NotFound => self.options.not_found_for,
            ErrorClass::Invalid => self.options.rejected_for,
            _ => return,
        };
        self.remember(id, fault.code(), fault.to_string(), lifetime);
    }

    fn remember(&self, id: &KernelId, code: &str, reason: String, lifetime: Duration) {
        let lifetime_ms = i64::try_from(lifetime.as_millis()).unwrap_or(i64::MAX);
        let until_unix_ms = self.clock.unix_ms().saturating_add(lifetime_ms);
        let negative = Negative { code: code.to_owned(), reason, until_unix_ms };
        lock(&self.negatives).insert(id.clone(), negative.clone(), self.clock.as_ref());
        for tier in &self.tiers {
            let (tier, id, negative) = (tier.clone(), id.clone(), negative.clone());
            self.writes.begin(async move {
                if let Err(error) = tier.put_negative(&id, &negative).await {
                    warn(tier.as_ref(), &id, &error);
                }
            });
        }
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
