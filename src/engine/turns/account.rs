//! Time that somebody has used, beside what others have.

/// Measured time against a level: what those have used that have used least of all who wait. Two levels keep such
/// accounts, users within the daemon and sessions within a user.
///
/// Units: nanoseconds, of users divided by their weight.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Account {
    used: u64,
}

impl Account {
    /// One who has used as much as those who wait.
    pub(super) fn at(level: u64) -> Self {
        Self { used: level }
    }

    pub(super) fn used(self) -> u64 {
        self.used
    }

    /// Forgets what was saved up beyond `credit`. Who was away for long has used less than all others, and would keep
    /// them out until it has caught up.
    pub(super) fn keep_credit(&mut self, level: u64, credit: u64) {
        self.used = self.used.max(level.saturating_sub(credit));
    }

    /// Pays for a pass.
    pub(super) fn charge(&mut self, cost: u64) {
        self.used = self.used.saturating_add(cost);
    }
}
