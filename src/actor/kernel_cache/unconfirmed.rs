//! Kernels in memory that came from old copies while the origin did not answer: it is asked about them until it does.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::{KernelCacheParts, parts::Loaded};
use crate::{
    cache::{Evictor, Word},
    digest::Digest,
    id::KernelId,
};

/// The kernels that the origin has not vouched for, with their digests.
#[derive(Debug, Default)]
pub struct Unconfirmed(Mutex<BTreeMap<KernelId, Digest>>);

impl Unconfirmed {
    /// Takes note of a kernel that has come into memory.
    pub(super) fn note(&self, id: &KernelId, loaded: &Loaded) {
        if loaded.is_old {
            self.lock().insert(id.clone(), loaded.kernel.digest());
        } else {
            self.lock().remove(id);
        }
    }

    fn all(&self) -> Vec<(KernelId, Digest)> {
        self.lock().iter().map(|(id, digest)| (id.clone(), *digest)).collect()
    }

    /// Forgets one, if it is still that one.
    fn remove(&self, id: &KernelId, digest: Digest) {
        let mut kernels = self.lock();
        if kernels.get(id) == Some(&digest) {
            kernels.remove(id);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<KernelId, Digest>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KernelCacheParts {
    /// Asks the origin about each. What it has withdrawn or replaced is found by nobody any more; seeds that run it go
    /// on with it.
    pub(super) async fn confirm_old(&self) {
        for (id, digest) in self.unconfirmed.all() {
            let is_here = || self.device.peek(&id).is_some_and(|kernel| kernel.digest() == digest);
            if is_here() {
                match self.lookup.confirm(&id, digest).await {
                    Ok(Word::Same) => {}
                    // Another may have come in meanwhile.
                    Ok(Word::Other) if is_here() => {
                        tracing::warn!(kernel = %id, "the origin has another kernel of this name now, or none");
                        self.device.condemn(&id, &Evictor::Origin);
                    }
                    Ok(Word::Other) => {}
                    // It is not asked about the others either.
                    Err(fault) if fault.code() == "origin.breaker_open" => return,
                    Err(_) => continue,
                }
            }
            self.unconfirmed.remove(&id, digest);
        }
    }
}
