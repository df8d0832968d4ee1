//! Kernels in memory that came from old copies while the origin did not answer: it is asked about them until it does.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use super::KernelCacheParts;
use crate::{
    cache::{Evictor, Found},
    digest::Digest,
    fault::{ErrorClass, Fault as _},
    id::KernelId,
};

/// The kernels that the origin has not vouched for, with their digests.
#[derive(Debug, Default)]
pub struct Unconfirmed(Mutex<BTreeMap<KernelId, Digest>>);

impl Unconfirmed {
    /// Takes note of what a load found.
    pub(super) fn note(&self, found: &Found) {
        let mut kernels = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if found.stale {
            kernels.insert(found.stored.id().clone(), found.stored.digest);
        } else {
            kernels.remove(found.stored.id());
        }
    }

    fn all(&self) -> Vec<(KernelId, Digest)> {
        let kernels = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kernels.iter().map(|(id, digest)| (id.clone(), *digest)).collect()
    }

    /// Forgets one, if it is still that one.
    fn remove(&self, id: &KernelId, digest: Digest) {
        let mut kernels = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kernels.get(id) == Some(&digest) {
            kernels.remove(id);
        }
    }
}

impl KernelCacheParts {
    /// Asks the origin about each, until it does not answer. What it has withdrawn or replaced is found by nobody any
    /// more; seeds that run it go on with it.
    pub(super) async fn confirm_old(&self) {
        for (id, digest) in self.unconfirmed.all() {
            let Some(kernel) = self.device.peek(&id).filter(|kernel| kernel.digest() == digest) else {
                self.unconfirmed.remove(&id, digest);
                continue;
            };
            match self.lookup.find(&id).await {
                Ok(found) if found.stale => return,
                Ok(found) if found.stored.digest == digest => {
                    if let Some(verdict) = kernel.verdict() {
                        // Written with its new date.
                        self.lookup.keep(&found, Arc::new(verdict.clone()));
                    }
                }
                Err(unfound)
                    if !matches!(
                        unfound.class(),
                        ErrorClass::NotFound | ErrorClass::Invalid | ErrorClass::Corrupt
                    ) =>
                {
                    return;
                }
                Ok(_) | Err(_) => {
                    tracing::warn!(kernel = %id, "the origin has another kernel of this name now, or none");
                    // Only what was asked about: another may have come in meanwhile.
                    if self.device.peek(&id).is_some_and(|now| now.digest() == digest) {
                        self.device.condemn(&id, &Evictor::Origin);
                    }
                }
            }
            self.unconfirmed.remove(&id, digest);
        }
    }
}
