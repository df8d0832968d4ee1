//! Who holds which kernel: every lease of a seed with the seed's name on it.

use std::{
    collections::BTreeMap,
    ops::Deref,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::KernelLease;
use crate::{
    digest::Digest,
    engine::Kernel,
    id::{Generation, KernelId, LayerId, SeedIndex, SessionId},
};

/// A seed's place, and which of its kernels a lease is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The session.
    pub session: SessionId,
    /// The layer.
    pub layer: LayerId,
    /// The seed.
    pub seed: SeedIndex,
    /// Which of the seed's kernels.
    pub generation: Generation,
}

/// The leases that seeds have, and that tickets have of kernels that have left their seed.
#[derive(Debug, Default)]
pub struct Holders(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    last: u64,
    by_number: BTreeMap<u64, (KernelId, Digest, Holder)>,
}

/// A kernel in a seed's use. While it is held, the kernel is not evicted, and it is known for whom.
#[derive(Debug)]
pub struct HeldKernel {
    lease: KernelLease,
    number: u64,
    holders: Arc<Holders>,
}

impl Holders {
    pub(super) fn enter(self: &Arc<Self>, lease: KernelLease, holder: Holder) -> HeldKernel {
        let mut table = self.lock();
        table.last += 1;
        let number = table.last;
        table.by_number.insert(number, (lease.id().clone(), lease.digest(), holder));
        drop(table);
        HeldKernel { lease, number, holders: self.clone() }
    }

    /// Who holds a kernel, whichever version of it, the earliest first.
    pub(super) fn of(&self, id: &KernelId) -> Vec<(Digest, Holder)> {
        let table = self.lock();
        let of_it = table.by_number.values().filter(|(kernel, ..)| kernel == id);
        of_it.map(|&(_, digest, holder)| (digest, holder)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Nothing that could panic runs under this lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Deref for HeldKernel {
    type Target = Arc<Kernel>;

    fn deref(&self) -> &Arc<Kernel> {
        &self.lease
    }
}

impl Drop for HeldKernel {
    fn drop(&mut self) {
        self.holders.lock().by_number.remove(&self.number);
    }
}
