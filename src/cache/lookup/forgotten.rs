//! What was forgotten of late: neither a search that began before, nor a copy from before, is what is wanted since.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::{clock::Clock, id::KernelId};

/// How many kernels are remembered by name.
const MOST: usize = 4096;

/// Longer than any load takes that was under way.
const LONGEST_LOAD: Duration = Duration::from_secs(15 * 60);

/// When a search began, among all that was forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Search(u64);

/// One forgetting: its number, and when.
#[derive(Clone, Copy, Debug)]
struct Mark {
    number: u64,
    at: Instant,
}

#[derive(Debug, Default)]
struct State {
    numbers: u64,
    kernels: HashMap<KernelId, Mark>,
    /// The same, the earliest first; what was forgotten anew since stands here twice.
    order: VecDeque<(KernelId, Mark)>,
    /// What counts for all kernels: all was forgotten, or there were too many to be remembered by name.
    all: Option<Mark>,
    /// When any may have been forgotten without a word to this node.
    doubt: Option<Mark>,
}

/// Kernels by when they were forgotten. Where there are too many, the earliest counts for all: that costs a question
/// to the origin, and is never wrong.
#[derive(Debug)]
pub(super) struct Forgotten {
    kept_for: Duration,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

impl Forgotten {
    /// Copies that the origin vouched for longer ago than `fresh_for` need no memory: they are asked about anyway.
    pub(super) fn new(fresh_for: Duration, clock: Arc<dyn Clock>) -> Self {
        Self { kept_for: fresh_for.max(LONGEST_LOAD), clock, state: Mutex::default() }
    }

    /// The number of a search that begins now.
    pub(super) fn search(&self) -> Search {
        Search(self.lock().numbers)
    }

    /// Notes that a kernel is forgotten from now on.
    pub(super) fn note(&self, id: &KernelId) {
        let now = self.clock.now();
        let mut state = self.lock();
        let mark = state.mark(now);
        state.kernels.insert(id.clone(), mark);
        state.order.push_back((id.clone(), mark));
        while let Some((_, first)) = state.order.front() {
            let over = now.saturating_duration_since(first.at) > self.kept_for;
            if !over && state.order.len() <= MOST {
                break;
            }
            state.drop_first(!over);
        }
    }

    /// Notes that every kernel is.
    pub(super) fn note_all(&self) {
        let now = self.clock.now();
        let mut state = self.lock();
        state.all = Some(state.mark(now));
        state.kernels.clear();
        state.order.clear();
    }

    /// Notes that any kernel may have been: its copies serve only once the origin has been asked about them, or does
    /// not answer.
    pub(super) fn doubt(&self) {
        let now = self.clock.now();
        let mut state = self.lock();
        state.doubt = Some(state.mark(now));
    }

    /// Whether a kernel was forgotten, or may have been, after a search for it had begun.
    pub(super) fn since(&self, id: &KernelId, search: Search) -> bool {
        let state = self.lock();
        state.last(id).into_iter().chain(state.doubt).any(|mark| mark.number > search.0)
    }

    /// Whether a kernel may have been forgotten after the origin had vouched for a copy.
    pub(super) fn is_doubted(&self, confirmed_unix_ms: i64) -> bool {
        let doubt = self.lock().doubt;
        doubt.is_some_and(|mark| self.is_before(mark, confirmed_unix_ms))
    }

    /// Whether any kernel may have been forgotten so short a time ago.
    pub(super) fn has_doubted_within(&self, time: Duration) -> bool {
        let doubt = self.lock().doubt;
        doubt.is_some_and(|mark| self.clock.now().saturating_duration_since(mark.at) <= time)
    }

    /// Whether a kernel was forgotten after the origin had vouched for a copy, by the calendar as it stands now.
    pub(super) fn is_older(&self, id: &KernelId, confirmed_unix_ms: i64) -> bool {
        let last = self.lock().last(id);
        last.is_some_and(|mark| self.is_before(mark, confirmed_unix_ms))
    }

    fn is_before(&self, mark: Mark, confirmed_unix_ms: i64) -> bool {
        let ago = self.clock.now().saturating_duration_since(mark.at);
        if ago > self.kept_for {
            return false;
        }
        let ago_ms = i64::try_from(ago.as_micros().div_ceil(1000)).unwrap_or(i64::MAX);
        confirmed_unix_ms < self.clock.unix_ms().saturating_sub(ago_ms)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn mark(&mut self, at: Instant) -> Mark {
        self.numbers += 1;
        Mark { number: self.numbers, at }
    }

    fn last(&self, id: &KernelId) -> Option<Mark> {
        let own = self.kernels.get(id).copied();
        own.into_iter().chain(self.all).max_by_key(|mark| mark.number)
    }

    fn drop_first(&mut self, counts_for_all: bool) {
        let Some((id, mark)) = self.order.pop_front() else { return };
        if self.kernels.get(&id).is_some_and(|known| known.number == mark.number) {
            self.kernels.remove(&id);
        }
        if counts_for_all {
            self.all = Some(mark);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    fn id(text: &str) -> KernelId {
        text.parse().unwrap()
    }

    #[test]
    fn a_search_is_old_where_the_kernel_was_forgotten_since_it_began() {
        let clock = ManualClock::default();
        let forgotten = Forgotten::new(Duration::from_secs(3600), Arc::new(clock.clone()));
        let before = forgotten.search();
        forgotten.note(&id("a"));
        let after = forgotten.search();
        assert!(forgotten.since(&id("a"), before) && !forgotten.since(&id("a"), after));
        assert!(!forgotten.since(&id("b"), before));
        forgotten.note_all();
        assert!(forgotten.since(&id("a"), after) && forgotten.since(&id("b"), after));
        assert!(!forgotten.since(&id("a"), forgotten.search()));
    }

    #[test]
    fn a_copy_is_old_by_the_calendar_as_it_stands_and_for_a_while() {
        let clock = ManualClock::default();
        let forgotten = Forgotten::new(Duration::from_secs(3600), Arc::new(clock.clone()));
        let start = clock.unix_ms();
        forgotten.note(&id("a"));
        assert!(forgotten.is_older(&id("a"), start - 1) && !forgotten.is_older(&id("a"), start));
        clock.advance(Duration::from_secs(10));
        assert!(forgotten.is_older(&id("a"), start - 1) && !forgotten.is_older(&id("a"), start));
        // What is confirmed after the calendar was set back is not older than the forgetting.
        clock.set_unix_ms(start - 1_000_000);
        assert!(!forgotten.is_older(&id("a"), start - 1_000_000));
        clock.set_unix_ms(start + 10_000);
        clock.advance(Duration::from_secs(3600));
        assert!(!forgotten.is_older(&id("a"), start - 1), "it is too old in any case");
    }

    #[test]
    fn what_may_have_been_forgotten_is_doubted_and_not_known_to_be_old() {
        let clock = ManualClock::default();
        let forgotten = Forgotten::new(Duration::from_secs(3600), Arc::new(clock.clone()));
        let (before, start) = (forgotten.search(), clock.unix_ms());
        assert!(!forgotten.is_doubted(start - 1));
        forgotten.doubt();
        assert!(forgotten.since(&id("a"), before) && !forgotten.since(&id("a"), forgotten.search()));
        assert!(forgotten.is_doubted(start - 1) && !forgotten.is_doubted(start));
        assert!(!forgotten.is_older(&id("a"), start - 1));
        clock.advance(Duration::from_secs(60));
        assert!(forgotten.has_doubted_within(Duration::from_secs(60)));
        assert!(!forgotten.has_doubted_within(Duration::from_secs(59)));
        clock.advance(Duration::from_secs(3541));
        assert!(!forgotten.is_doubted(start - 1), "it is too old in any case");
    }

    #[test]
    fn beyond_the_bound_the_earliest_counts_for_all() {
        let clock = ManualClock::default();
        let forgotten = Forgotten::new(Duration::from_secs(3600), Arc::new(clock.clone()));
        let before = forgotten.search();
        for n in 0..MOST {
            forgotten.note(&id(&format!("k{n}")));
        }
        assert!(!forgotten.since(&id("other"), before));
        forgotten.note(&id("one-more"));
        assert!(forgotten.since(&id("other"), before) && forgotten.since(&id("k0"), before));
        let state = forgotten.lock();
        assert_eq!((state.kernels.len(), state.order.len()), (MOST, MOST));
        drop(state);
        // What is long past makes room without counting for anybody.
        clock.advance(Duration::from_secs(3601));
        forgotten.note(&id("late"));
        assert_eq!(forgotten.lock().order.len(), 1);
    }
}
