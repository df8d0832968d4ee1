//! What one session holds.

use std::sync::Arc;

use super::{
    Held, Holdings, QuotaLimits, QuotaSpent, Whose,
    allowance::{Allowances, Passed},
    users::UserLedger,
};

/// What one session holds, within its own limits and those of its user.
///
/// As long as anybody keeps it (the session's actor, its lane, a share) the session counts among those of its user.
#[derive(Debug)]
pub struct SessionLedger {
    user: Arc<UserLedger>,
    held: Allowances,
}

impl SessionLedger {
    /// A ledger of a user of its own: for lanes outside a daemon.
    pub fn alone(limits: QuotaLimits) -> Arc<Self> {
        let opened = Self::open(Arc::new(UserLedger::new(0, limits.user)), limits.session);
        opened.expect("a user without a session may have one, whatever the limit")
    }

    pub(super) fn open(user: Arc<UserLedger>, limits: Holdings) -> Result<Arc<Self>, QuotaSpent> {
        user.take(&Holdings { sessions: 1, ..Holdings::NONE })?;
        Ok(Arc::new(Self { user, held: Allowances::new(limits) }))
    }

    /// The user whose session it is.
    pub fn uid(&self) -> u32 {
        self.user.uid()
    }

    /// What the session holds now.
    pub fn held(&self) -> Holdings {
        Holdings { sessions: 1, ..self.held.used() }
    }

    /// Takes all that is asked for or nothing, until the share is dropped.
    ///
    /// # Errors
    /// [`QuotaSpent`] with the first limit that it would pass.
    pub fn take(self: &Arc<Self>, asked: Holdings) -> Result<Share, QuotaSpent> {
        self.enter(&asked)?;
        Ok(Share { ledger: self.clone(), held: asked })
    }

    /// As [`take`](Self::take), for one who gives it back by hand.
    pub(in crate::engine) fn enter(&self, asked: &Holdings) -> Result<(), QuotaSpent> {
        self.held.take(asked).map_err(|Passed { what, limit, used }| QuotaSpent {
            key: what.session_key(),
            limit,
            used,
            asked: asked.of(what),
            what,
            whose: Whose::Session,
        })?;
        self.user.take(asked).inspect_err(|_| self.held.give_back(asked))
    }

    /// Enters what is there already, beyond the limits too.
    pub(in crate::engine) fn enter_anyway(&self, amounts: &Holdings) {
        self.held.add(amounts);
        self.user.add(amounts);
    }

    /// Strikes off.
    pub(in crate::engine) fn strike(&self, amounts: &Holdings) {
        self.held.give_back(amounts);
        self.user.give_back(amounts);
    }
}

impl Drop for SessionLedger {
    fn drop(&mut self) {
        // Shares and tickets' quotas keep the ledger, so that nothing is left but the session's own place.
        let place = Holdings { sessions: 1, ..Holdings::NONE };
        self.user.give_back(&place);
    }
}

/// Part of what a session holds, given back when dropped.
#[derive(Debug)]
pub struct Share {
    ledger: Arc<SessionLedger>,
    held: Holdings,
}

impl Share {
    /// How much of one kind it is.
    pub fn of(&self, what: Held) -> u64 {
        self.held.of(what)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.ledger.strike(&self.held);
    }
}
