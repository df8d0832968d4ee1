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
    /// Whether this tier was read, beside uses that were told to it.
    pub(super) read: bool,
}

/// Uses that wait to be written down.
#[derive(Debug, Default)]
pub(super) struct Uses(Mutex<Waiting>);

impl Uses {
    /// Counts a read.
    pub(super) fn read(&self, id: &KernelId) {
        self.lock().add(id, 1, true);
    }

    /// Counts uses that took place elsewhere.
    pub(super) fn told(&self, uses: &[(KernelId, u64)]) {
        let mut waiting = self.lock();
        for (id, count) in uses {
            waiting.add(id, *count, false);
        }
    }

    /// Takes all of them, those read last at the end.
    pub(super) fn take(&self) -> Vec<Noted> {
        let mut taken: Vec<_> = std::mem::take(&mut self.lock().kernels).into_iter().collect();
        taken.sort_by_key(|(_, noted)| noted.last_read);
        let noted =
            |(id, noted): (KernelId, Use)| Noted { id, count: noted.count, read: noted.last_read.is_some() };
        taken.into_iter().map(noted).collect()
    }

    /// Gives back what could not be written.
    pub(super) fn give_back(&self, taken: Vec<Noted>) {
        let mut waiting = self.lock();
        for noted in taken {
            waiting.add(&noted.id, noted.count, noted.read);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn add(&mut self, id: &KernelId, count: u64, read: bool) {
        self.next_turn += 1;
        let turn = read.then_some(self.next_turn);
        if let Some(known) = self.kernels.get_mut(id) {
            known.count = known.count.saturating_add(count);
            known.last_read = turn.or(known.last_read);
        } else if self.kernels.len() < MAX_WAITING {
            self.kernels.insert(id.clone(), Use { count, last_read: turn });
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
    fn uses_add_up_and_the_last_read_comes_last() {
        let uses = Uses::default();
        for name in ["a", "b", "a"] {
            uses.read(&id(name));
        }
        uses.told(&[(id("c"), 5), (id("b"), 2)]);
        let noted = |name, count, read| Noted { id: id(name), count, read };
        let expected = [noted("c", 5, false), noted("b", 3, true), noted("a", 2, true)];
        let taken = uses.take();
        assert_eq!(taken, expected);
        assert!(uses.take().is_empty());
        uses.read(&id("a"));
        uses.give_back(taken);
        assert_eq!(uses.take().iter().map(|noted| noted.count).sum::<u64>(), 11);
    }

    #[test]
    fn what_waits_is_bounded() {
        let uses = Uses::default();
        for n in 0..=MAX_WAITING {
            uses.read(&id(&format!("k{n}")));
        }
        assert_eq!(uses.take().len(), MAX_WAITING);
    }
}
