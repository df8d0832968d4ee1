//! How long whoever waits looks for the next descriptor before it sleeps.

use std::{
    num::NonZero,
    sync::{
        LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// As long as lately paid: all of its time after a descriptor that came soon, half as long as before after each that did
/// not. Who is spoken to now and then sleeps at once, and looks again when it is spoken to often. Of a process's threads
/// no more look at a time than half of the processors.
#[derive(Clone, Copy, Debug)]
pub struct Spin {
    most: Duration,
    next: Duration,
}

/// Less is not worth looking at the clock for.
const LEAST: Duration = Duration::from_micros(1);
/// What comes so much later than it would have been looked for came soon: where both sides sleep, waking up takes as long.
const WAKING: Duration = Duration::from_micros(100);

/// The threads that look at a time.
#[derive(Debug)]
struct Lookers {
    now: AtomicUsize,
    most: usize,
}

static LOOKERS: LazyLock<Lookers> = LazyLock::new(|| {
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    Lookers { now: AtomicUsize::new(0), most: processors / 2 }
});

/// A thread that looks now.
#[derive(Debug)]
pub(super) struct Looking(&'static AtomicUsize);

impl Looking {
    /// One more of this process, if there is a processor for it.
    pub(super) fn begin() -> Option<Self> {
        LOOKERS.one_more()
    }
}

impl Lookers {
    fn one_more(&'static self) -> Option<Looking> {
        let looking = Looking(&self.now);
        (self.now.fetch_add(1, Ordering::Relaxed) < self.most).then_some(looking)
    }
}

impl Drop for Looking {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Spin {
    /// At most so long; not at all where it is zero.
    pub const fn new(most: Duration) -> Self {
        Self { most, next: most }
    }

    /// How long to look this time.
    pub const fn next(&self) -> Duration {
        self.next
    }

    /// Takes note of how long a descriptor has taken that was waited for since `began`.
    pub fn note(&mut self, began: Instant) {
        self.learn(began.elapsed());
    }

    fn learn(&mut self, waited: Duration) {
        self.next = if waited <= self.most + WAKING { self.most } else { self.next / 2 };
        if self.next < LEAST {
            self.next = Duration::ZERO;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_looks_as_long_as_it_pays() {
        let (most, far) = (Duration::from_micros(40), Duration::from_millis(1));
        let mut spin = Spin::new(most);
        assert_eq!(spin.next, most);
        for left in [20, 10, 5] {
            spin.learn(far);
            assert_eq!(spin.next, Duration::from_micros(left));
        }
        (0..10).for_each(|_| spin.learn(far));
        assert_eq!(spin.next, Duration::ZERO);
        spin.learn(most + WAKING);
        assert_eq!(spin.next, most);
    }

    #[test]
    fn without_time_it_never_looks() {
        let mut spin = Spin::new(Duration::ZERO);
        spin.learn(Duration::ZERO);
        assert_eq!(spin.next, Duration::ZERO);
    }

    #[test]
    fn no_more_look_at_a_time_than_may() {
        static TWO: Lookers = Lookers { now: AtomicUsize::new(0), most: 2 };
        let first = TWO.one_more();
        let second = TWO.one_more();
        assert!(first.is_some() && second.is_some() && TWO.one_more().is_none());
        drop(first);
        assert!(TWO.one_more().is_some());
    }
}
