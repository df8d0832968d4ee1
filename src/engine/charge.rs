//! What a kernel weighs beside its weights, however many hold a part of it.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// Bytes of a kernel's plans and of the memory that its seeds run on.
#[derive(Clone, Debug, Default)]
pub(super) struct Account(Arc<AtomicUsize>);

impl Account {
    pub(super) fn bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Bytes that are counted until the charge is dropped.
    pub(super) fn charge(&self, bytes: usize) -> Charge {
        self.0.fetch_add(bytes, Ordering::Relaxed);
        Charge { account: self.clone(), bytes }
    }
}

/// Bytes of memory that lives as long as this does.
#[derive(Debug)]
pub(super) struct Charge {
    account: Account,
    bytes: usize,
}

impl Charge {
    /// Counts so many bytes from now on.
    pub(super) fn set(&mut self, bytes: usize) {
        // The sum wraps as its parts do, and comes out right.
        self.account.0.fetch_add(bytes.wrapping_sub(self.bytes), Ordering::Relaxed);
        self.bytes = bytes;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.account.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_charged_counts_until_it_is_dropped() {
        let account = Account::default();
        let mut first = account.charge(10);
        let second = account.charge(5);
        first.set(3);
        assert_eq!(account.bytes(), 8);
        first.set(30);
        assert_eq!(account.bytes(), 35);
        drop(first);
        assert_eq!(account.bytes(), 5);
        drop(second);
        assert_eq!(account.bytes(), 0);
    }
}
