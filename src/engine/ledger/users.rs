//! What all sessions of a user hold together.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use super::{
    Holdings, QuotaLimits, QuotaSpent, SessionLedger, Whose,
    allowance::{Allowances, Passed},
};

/// What one user's sessions hold.
#[derive(Debug)]
pub(super) struct UserLedger {
    uid: u32,
    held: Allowances,
}

impl UserLedger {
    pub(super) fn new(uid: u32, limits: Holdings) -> Self {
        Self { uid, held: Allowances::new(limits) }
    }

    pub(super) fn uid(&self) -> u32 {
        self.uid
    }

    pub(super) fn take(&self, asked: &Holdings) -> Result<(), QuotaSpent> {
        self.held.take(asked).map_err(|Passed { what, limit, used }| QuotaSpent {
            key: what.user_key(),
            limit,
            used,
            asked: asked.of(what),
            what,
            whose: Whose::User(self.uid),
        })
    }

    pub(super) fn add(&self, amounts: &Holdings) {
        self.held.add(amounts);
    }

    pub(super) fn give_back(&self, amounts: &Holdings) {
        self.held.give_back(amounts);
    }
}

/// A user with what their sessions hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserHoldings {
    /// Who.
    pub uid: u32,
    /// What they hold.
    pub held: Holdings,
}

/// The ledgers of every user with a session.
#[derive(Debug)]
pub struct Ledgers {
    limits: QuotaLimits,
    users: Mutex<BTreeMap<u32, Weak<UserLedger>>>,
}

impl Ledgers {
    /// Ledgers in which nothing is entered.
    pub fn new(limits: QuotaLimits) -> Self {
        Self { limits, users: Mutex::default() }
    }

    /// The ledger of a new session of this user.
    ///
    /// # Errors
    /// [`QuotaSpent`] when the user has as many sessions as are allowed.
    pub fn open(&self, uid: u32) -> Result<Arc<SessionLedger>, QuotaSpent> {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        users.retain(|_, user| user.strong_count() > 0);
        let user = users.get(&uid).and_then(Weak::upgrade).unwrap_or_else(|| {
            let user = Arc::new(UserLedger::new(uid, self.limits.user));
            users.insert(uid, Arc::downgrade(&user));
            user
        });
        SessionLedger::open(user, self.limits.session)
    }

    /// Every user with a session, in order.
    pub fn users(&self) -> Vec<UserHoldings> {
        let users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        let there = users.values().filter_map(Weak::upgrade);
        there.map(|user| UserHoldings { uid: user.uid, held: user.held.used() }).collect()
    }

    /// What is allowed.
    pub fn limits(&self) -> &QuotaLimits {
        &self.limits
    }
}
