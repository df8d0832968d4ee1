//! Numbers that may rise to a limit, from any thread.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{Held, Holdings};

/// What is held of each kind, below its limits.
#[derive(Debug)]
pub(super) struct Allowances {
    limits: Holdings,
    used: [AtomicU64; Held::ALL.len()],
}

/// One number would have passed its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Passed {
    pub(super) what: Held,
    pub(super) limit: u64,
    pub(super) used: u64,
}

impl Allowances {
    pub(super) fn new(limits: Holdings) -> Self {
        Self { limits, used: [const { AtomicU64::new(0) }; Held::ALL.len()] }
    }

    /// Adds all of it or nothing. No number is seen above its limit meanwhile.
    pub(super) fn take(&self, asked: &Holdings) -> Result<(), Passed> {
        for (n, what) in Held::ALL.into_iter().enumerate() {
            let (amount, limit) = (asked.of(what), self.limits.of(what));
            if amount == 0 {
                continue;
            }
            let fits = |used: u64| {
                let sum = used.checked_add(amount)?;
                (limit == 0 || sum <= limit).then_some(sum)
            };
            let added = self.used[n].fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits);
            if let Err(used) = added {
                let before = |other: Held| if (other as usize) < n { asked.of(other) } else { 0 };
                self.give_back(&Holdings::from_fn(before));
                return Err(Passed { what, limit, used });
            }
        }
        Ok(())
    }

    /// Adds what cannot be refused any more, beyond a limit too.
    pub(super) fn add(&self, amounts: &Holdings) {
        for (n, what) in Held::ALL.into_iter().enumerate() {
            if amounts.of(what) > 0 {
                self.used[n].fetch_add(amounts.of(what), Ordering::Relaxed);
            }
        }
    }

    pub(super) fn give_back(&self, amounts: &Holdings) {
        for (n, what) in Held::ALL.into_iter().enumerate() {
            if amounts.of(what) > 0 {
                self.used[n].fetch_sub(amounts.of(what), Ordering::Relaxed);
            }
        }
    }

    pub(super) fn used(&self) -> Holdings {
        Holdings::from_fn(|what| self.used[what as usize].load(Ordering::Relaxed))
    }
}
