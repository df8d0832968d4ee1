//! Uses that are not in the database yet: a read must not wait for a write.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::id::KernelId;

/// Distinct kernels whose uses may wait; beyond that the uses of further ones are not counted.
const MAX_WAITING: usize = 10_000;

#[derive(Debug, Default)]
struct Waiting {
    kernels: HashMap<KernelId, Use>,
    next_turn: u64,
}

#[derive(Clone, Copy, Debug)]
struct Use {
    count: u64,
    /// Whether it was read, which moves it to the end of the order of eviction.
    last_read: Option<u64>,
}

/// One kernel's uses since they were last written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Noted {
    pub(super) id: KernelId,
    pub(super) count: u64,
    /// When this tier was last read, among all reads; none where it was only told of uses.
    pub(super) last_read: Option<u64>,
}

/// Uses that wait to be written down.
#[derive(Debug, Default)]
pub(super) struct Uses(Mutex<Waiting>);

impl Uses {
    /// Counts a read.
    pub(super) fn read(&self, id: &KernelId) {
        let mut waiting = self.lock();
        waiting.next_turn += 1;
        let turn = waiting.next_turn;
        waiting.add(id, 1, Some(turn));
    }

    /// Counts uses that took place elsewhere.
    pub(super) fn told(&self, uses: &[(KernelId, u64)]) {
        let mut waiting = self.lock();
        for (id, count) in uses {
            waiting.add(id, *count, None);
        }
    }

    /// Takes at most `limit` of them: first those that were read, the longest ago first, so that who takes portion
    /// by portion writes the reads down in their order.
    pub(super) fn take(&self, limit: usize) -> Vec<Noted> {
        let mut waiting = self.lock();
        let noted = |(id, noted): (&KernelId, &Use)| Noted {
            id: id.clone(),
            count: noted.count,
            last_read: noted.last_read,
        };
        let mut taken: Vec<Noted> = waiting.kernels.iter().map(noted).collect();
        taken.sort_by_key(|noted| (noted.last_read.is_none(), noted.last_read));
        taken.truncate(limit);
        for noted in &taken {
            waiting.kernels.remove(&noted.id);
        }
        taken
    }

    /// How many kernels' uses wait.
    pub(super) fn waiting(&self) -> usize {
        self.lock().kernels.len()
    }

    /// Gives back what could not be written.
    pub(super) fn give_back(&self, taken: Vec<Noted>) {
        let mut waiting = self.lock();
        for noted in taken {
            waiting.add(&noted.id, noted.count, noted.last_read);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn add(&mut self, id: &KernelId, count: u64, last_read: Option<u64>) {
        if let Some(known) = self.kernels.get_mut(id) {
            known.count = known.count.saturating_add(count);
            known.last_read = known.last_read.max(last_read);
        } else if self.kernels.len() < MAX_WAITING {
            self.kernels.insert(id.clone(), Use { count, last_read });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> KernelId {
        text.parse().unwrap()
    }

    #[test]
    fn uses_add_up_and_come_in_the_order_of_the_last_read() {
        let uses = Uses::default();
        for name in ["a", "b", "a"] {
            uses.read(&id(name));
        }
        uses.told(&[(id("c"), 5), (id("b"), 2)]);
        let noted = |name, count, last_read| Noted { id: id(name), count, last_read };
        let (b, a, c) = (noted("b", 3, Some(2)), noted("a", 2, Some(3)), noted("c", 5, None));
        let taken = uses.take(2);
        assert_eq!((taken.as_slice(), uses.waiting()), ([b, a.clone()].as_slice(), 1));
        uses.read(&id("b"));
        uses.give_back(taken);
        // What was given back is no newer than what was read meanwhile.
        assert_eq!(uses.take(9), [a, noted("b", 4, Some(4)), c]);
        assert!(uses.take(9).is_empty());
    }

    #[test]
    fn what_waits_is_bounded() {
        let uses = Uses::default();
        for n in 0..=MAX_WAITING {
            uses.read(&id(&format!("k{n}")));
        }
        assert_eq!(uses.take(usize::MAX).len(), MAX_WAITING);
    }
}
