//! The supervisor's roll of sessions: who is there, and what all have done, those that have ended included.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
};

use actix::Addr;

use super::Session;
use crate::{engine::LaneGauges, id::SessionId, wire::TotalsReport};

/// Where a session leaves its lane's numbers when it has a lane. The roll reads them whether or not the session
/// still answers, so that no pass is lost from the totals when a session ends, however it does.
pub type LaneNumbers = Arc<OnceLock<Arc<LaneGauges>>>;

#[derive(Debug)]
struct Member<A> {
    address: A,
    numbers: LaneNumbers,
}

/// Every open session with its address, and the totals.
#[derive(Debug)]
pub(super) struct Roll<A = Addr<Session>> {
    open: BTreeMap<SessionId, Member<A>>,
    last: u64,
    ended: TotalsReport,
}

impl<A: Clone> Roll<A> {
    pub(super) fn new() -> Self {
        Self { open: BTreeMap::new(), last: 0, ended: TotalsReport::default() }
    }

    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    /// The number of the next session.
    pub(super) fn next(&mut self) -> SessionId {
        self.last += 1;
        SessionId(self.last)
    }

    pub(super) fn enter(&mut self, id: SessionId, address: A, numbers: LaneNumbers) {
        self.open.insert(id, Member { address, numbers });
    }

    /// Strikes a session off; what it has done stays in the totals.
    pub(super) fn strike(&mut self, id: SessionId) {
        if let Some(member) = self.open.remove(&id) {
            add(&mut self.ended, &member.numbers);
        }
    }

    /// Strikes off every session that is not there any more.
    pub(super) fn strike_absent(&mut self, is_there: impl Fn(&A) -> bool) {
        let absent: Vec<_> =
            self.open.iter().filter(|(_, member)| !is_there(&member.address)).map(|(id, _)| *id).collect();
        absent.into_iter().for_each(|id| self.strike(id));
    }

    pub(super) fn addresses(&self) -> Vec<A> {
        self.open.values().map(|member| member.address.clone()).collect()
    }

    /// What all sessions have done. No number ever falls.
    pub(super) fn totals(&self) -> TotalsReport {
        let mut totals = TotalsReport { sessions: self.last, ..self.ended };
        self.open.values().for_each(|member| add(&mut totals, &member.numbers));
        totals
    }
}

fn add(totals: &mut TotalsReport, numbers: &LaneNumbers) {
    if let Some(gauges) = numbers.get() {
        totals.forward_passes += gauges.forwards();
        totals.backward_passes += gauges.backwards();
        totals.refused_passes += gauges.refusals();
        totals.supply_waits += gauges.supply_waits().get();
        totals.pass_plans += gauges.pass_plans();
        totals.compute_us += u64::try_from(gauges.computed().as_micros()).unwrap_or(u64::MAX);
        totals.turn_wait_us += u64::try_from(gauges.waited().as_micros()).unwrap_or(u64::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_keep_what_ended_sessions_have_done() {
        let mut roll = Roll::<&str>::new();
        let [first, second, silent] = [(); 3].map(|()| roll.next());
        let numbers: LaneNumbers = Arc::default();
        roll.enter(first, "first", numbers.clone());
        roll.enter(second, "second", Arc::default());
        roll.enter(silent, "silent", Arc::default());
        assert_eq!(roll.totals(), TotalsReport { sessions: 3, ..TotalsReport::default() });
        let gauges = Arc::new(LaneGauges::default());
        numbers.set(gauges.clone()).unwrap();
        gauges.supply_waits().increment();
        assert_eq!(roll.totals().supply_waits, 1);
        roll.strike(first);
        roll.strike(first);
        roll.strike_absent(|address| *address == "second");
        assert_eq!((roll.len(), roll.addresses()), (1, vec!["second"]));
        assert_eq!(roll.totals(), TotalsReport { sessions: 3, supply_waits: 1, ..TotalsReport::default() });
        assert_eq!(roll.next(), SessionId(4));
    }
}
