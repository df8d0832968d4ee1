//! How often failures of one kind are recorded.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::{Direction, Dropped};
use crate::digest::Digest;

/// So many of a kind are recorded one after the other: `engine.error_threshold` failures in a row unload a kernel, and
/// its first ones tell all there is.
const FIRST: u32 = 3;

/// After those, one is recorded when none has been for so long.
const EVERY: Duration = Duration::from_secs(3600);

/// After the folder or the disk has refused one, the next is tried when so long has passed: each try costs a copy.
const AGAIN: Duration = Duration::from_secs(60);

/// Kinds that are remembered; the one that was recorded longest ago is forgotten first.
const MAX_KINDS: usize = 1024;

/// Failures that resemble each other.
pub(super) type Kind = (u32, Digest, &'static str, Direction);

#[derive(Debug)]
struct Known {
    /// Recorded so far.
    times: u32,
    /// Admitted, and neither recorded nor lost yet.
    under_way: u32,
    /// When the last one was admitted; none where that one was lost.
    last: Option<Instant>,
    /// Why the last one was refused, and when it was admitted, where trying at once again would be in vain.
    refused: Option<(Dropped, Instant)>,
}

impl Known {
    fn check(&self, now: Instant) -> Result<(), Dropped> {
        let is_within = |at: Instant, time| now.saturating_duration_since(at) < time;
        if let Some((why, _)) = self.refused.filter(|&(_, at)| is_within(at, AGAIN)) {
            return Err(why);
        }
        let is_often = self.times.saturating_add(self.under_way) >= FIRST;
        if is_often && self.last.is_some_and(|at| is_within(at, EVERY)) {
            return Err(Dropped::Repeated);
        }
        Ok(())
    }
}

/// What has been recorded of each kind.
#[derive(Debug, Default)]
pub(super) struct Allowance(HashMap<Kind, Known>);

impl Allowance {
    /// Whether a failure is to be recorded, or why not; if so, it counts until it is [settled](Self::settle).
    pub(super) fn admit(&mut self, kind: Kind, now: Instant) -> Result<(), Dropped> {
        if let Some(known) = self.0.get_mut(&kind) {
            known.check(now)?;
            known.under_way = known.under_way.saturating_add(1);
            known.last = Some(now);
            return Ok(());
        }
        if self.0.len() >= MAX_KINDS
            && let Some(oldest) = self.0.iter().min_by_key(|(_, known)| known.last).map(|(kind, _)| *kind)
        {
            self.0.remove(&oldest);
        }
        self.0.insert(kind, Known { times: 0, under_way: 1, last: Some(now), refused: None });
        Ok(())
    }

    /// Notes what became of a failure that was admitted at a moment: what was not recorded counts no more.
    pub(super) fn settle(&mut self, kind: Kind, at: Instant, outcome: Result<(), Dropped>) {
        // It may have been forgotten meanwhile.
        let Some(known) = self.0.get_mut(&kind) else { return };
        known.under_way = known.under_way.saturating_sub(1);
        match outcome {
            Ok(()) => (known.times, known.refused) = (known.times.saturating_add(1), None),
            Err(why) => {
                known.last = None;
                known.refused = matches!(why, Dropped::Full | Dropped::Disk).then_some((why, at));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(n: usize) -> Kind {
        (7, Digest::of(&n.to_le_bytes()), "kernel.non_finite", Direction::Forward)
    }

    #[test]
    fn the_first_of_a_kind_are_recorded_and_later_ones_now_and_then() {
        let (mut allowance, start) = (Allowance::default(), Instant::now());
        let mut admit = |kind: Kind, at: Instant| {
            let admitted = allowance.admit(kind, at);
            if admitted.is_ok() {
                allowance.settle(kind, at, Ok(()));
            }
            admitted
        };
        let repeated = Err(Dropped::Repeated);
        let admitted: Vec<bool> = (0..5).map(|_| admit(kind(0), start).is_ok()).collect();
        assert_eq!(admitted, [true, true, true, false, false]);
        assert_eq!(admit(kind(1), start), Ok(()), "another kernel");
        let (uid, digest, code, _) = kind(0);
        assert_eq!(admit((uid, digest, code, Direction::Backward), start), Ok(()), "another direction");
        assert_eq!(
            admit((uid, digest, "kernel.timeout", Direction::Forward), start),
            Ok(()),
            "another error"
        );
        assert_eq!(admit((8, digest, code, Direction::Forward), start), Ok(()), "another user");
        assert_eq!(admit(kind(0), start + EVERY - Duration::from_secs(1)), repeated);
        assert_eq!(admit(kind(0), start + EVERY), Ok(()));
        assert_eq!(admit(kind(0), start + EVERY), repeated);
    }

    #[test]
    fn what_was_not_recorded_does_not_count() {
        let (mut allowance, start) = (Allowance::default(), Instant::now());
        let admitted = |allowance: &mut Allowance, at| allowance.admit(kind(0), at).is_ok();
        for _ in 0..FIRST {
            assert!(admitted(&mut allowance, start));
        }
        assert!(!admitted(&mut allowance, start), "as many are under way as are recorded at first");
        allowance.settle(kind(0), start, Err(Dropped::Busy));
        assert!(admitted(&mut allowance, start), "one of them was lost");
        (0..FIRST).for_each(|_| allowance.settle(kind(0), start, Ok(())));
        let later = start + EVERY;
        assert!(admitted(&mut allowance, later) && !admitted(&mut allowance, later));
        allowance.settle(kind(0), later, Err(Dropped::Full));
        // No copy is made in vain for each failure while nothing can be written.
        assert_eq!(allowance.admit(kind(0), later + AGAIN - Duration::from_secs(1)), Err(Dropped::Full));
        assert!(admitted(&mut allowance, later + AGAIN), "an hour is not waited for");
        allowance.settle(kind(0), later + AGAIN, Ok(()));
        assert_eq!(allowance.admit(kind(0), later + EVERY), Err(Dropped::Repeated));
        // One that does not come back keeps nobody from being recorded later.
        assert!(admitted(&mut allowance, later + AGAIN + EVERY));
        assert!(admitted(&mut allowance, later + AGAIN + 2 * EVERY));
    }

    #[test]
    fn no_more_kinds_are_remembered_than_there_is_room_for() {
        let (mut allowance, start) = (Allowance::default(), Instant::now());
        for n in 0..2 * MAX_KINDS {
            assert_eq!(allowance.admit(kind(n), start + Duration::from_millis(n as u64)), Ok(()));
        }
        assert_eq!(allowance.0.len(), MAX_KINDS);
        assert!(allowance.0.contains_key(&kind(2 * MAX_KINDS - 1)));
    }
}
