//! Which tiers a look-up asks: one that has shown itself slower than the next place, for artifacts of this
//! size, is passed by and tried again later.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::report::RouteStats;
use crate::{clock::Clock, id::KernelId};

/// The largest artifact of each class of sizes; one more class has no limit.
const CLASSES: [u64; 3] = [64 << 10, 1 << 20, 16 << 20];

/// Answers of a kind that a place needs before it is compared.
const MIN_SAMPLES: u64 = 4;

/// How much slower a tier must be than the next place: less than this is noise, or soon made up for.
const MARGIN: f64 = 1.5;

/// The weight of the newest answer in a mean.
const NEWEST: f64 = 0.25;

/// How long a slow tier is passed by before one look-up tries it again.
const PASS_FOR: Duration = Duration::from_secs(60);

/// How many kernels' sizes are remembered.
const MAX_SIZES: usize = 8192;

/// What answers of one kind took, as a mean of the last ones.
#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    us: f64,
    samples: u64,
}

impl Mean {
    fn add(&mut self, us: u64, anew: bool) {
        let us = us as f64;
        self.samples += 1;
        self.us = if anew || self.samples == 1 { us } else { self.us + NEWEST * (us - self.us) };
    }

    fn known(&self) -> Option<f64> {
        (self.samples >= MIN_SAMPLES).then_some(self.us)
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Timing {
    hits: Mean,
    misses: Mean,
    /// While set, the place is passed by; once it is over, a look-up tries it again.
    passed_until: Option<Instant>,
    /// Whether a look-up is trying it: what it says begins its measurement anew.
    on_trial: bool,
    passes: u64,
}

#[derive(Debug, Default)]
struct State {
    /// By place, the source last, then by class.
    timings: Vec<[Timing; CLASSES.len() + 1]>,
    classes: HashMap<KernelId, usize>,
}

/// The order in which a look-up asks, as places of the tiers.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Asked first, one after the other.
    pub(super) first: Vec<usize>,
    /// Passed by, but still faster than the source: asked before it.
    pub(super) before_source: Vec<usize>,
    /// Slower than the source: asked where the source fails.
    pub(super) last_resort: Vec<usize>,
}

/// What the places were measured at.
#[derive(Debug)]
pub(super) struct Routes {
    tiers: usize,
    enabled: bool,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

fn class_of(bytes: u64) -> usize {
    CLASSES.iter().position(|&limit| bytes <= limit).unwrap_or(CLASSES.len())
}

impl Routes {
    pub(super) fn new(tiers: usize, enabled: bool, clock: Arc<dyn Clock>) -> Self {
        let state = State { timings: vec![Default::default(); tiers + 1], classes: HashMap::new() };
        Self { tiers, enabled, clock, state: Mutex::new(state) }
    }

    /// The place of the source.
    pub(super) fn source(&self) -> usize {
        self.tiers
    }

    /// Notes what a hit took; a tier that was tried again begins anew with it.
    pub(super) fn record_hit(&self, place: usize, id: &KernelId, bytes: usize, us: u64) {
        let class = class_of(bytes as u64);
        let mut state = self.lock();
        if state.classes.len() >= MAX_SIZES && !state.classes.contains_key(id) {
            // Rather than an order of use for a hint: who is still asked for is soon known again.
            state.classes.clear();
        }
        state.classes.insert(id.clone(), class);
        let timing = &mut state.timings[place][class];
        let trial = std::mem::take(&mut timing.on_trial);
        timing.hits.add(us, trial);
        if trial {
            timing.passed_until = None;
        }
    }

    /// Notes what it took a tier to say that it has no copy of what turned out to be so large. That alone has no tier
    /// passed by, for it may have the next. But one that was tried again has shown nothing of its hits: unless it was
    /// slow even so, it is asked until it has.
    pub(super) fn record_miss(&self, tier: usize, bytes: usize, us: u64) {
        let class = class_of(bytes as u64);
        let mut state = self.lock();
        let next = state.next_us(tier, class);
        let timing = &mut state.timings[tier][class];
        let trial = std::mem::take(&mut timing.on_trial);
        timing.misses.add(us, trial);
        if trial && next.is_none_or(|next| us as f64 <= next * MARGIN) {
            (timing.passed_until, timing.hits) = (None, Mean::default());
        }
    }

    /// Whom to ask for a kernel. Where its size is not known yet, a tier is passed by that is slow with every size
    /// that was measured.
    pub(super) fn plan(&self, id: &KernelId) -> Plan {
        let mut state = self.lock();
        let mut plan = Plan::default();
        if !self.enabled {
            plan.first = (0..self.tiers).collect();
            return plan;
        }
        let now = self.clock.now();
        let known = state.classes.get(id).copied();
        for tier in 0..self.tiers {
            let measured = |class: &usize| state.timings[tier][*class].hits.known().is_some();
            let classes: Vec<usize> = match known {
                Some(class) => vec![class],
                None => (0..=CLASSES.len()).filter(measured).collect(),
            };
            let slow = !classes.is_empty() && classes.iter().all(|&class| state.is_slow(tier, class));
            if !slow {
                if let Some(class) = known {
                    let timing = &mut state.timings[tier][class];
                    (timing.passed_until, timing.on_trial) = (None, false);
                }
                plan.first.push(tier);
                continue;
            }
            let due =
                |class: &usize| state.timings[tier][*class].passed_until.is_some_and(|until| now >= until);
            let tried: Vec<usize> = classes.iter().copied().filter(due).collect();
            if !tried.is_empty() {
                // Only this look-up tries it; where it gets no answer, the next trial is a while away.
                for class in tried {
                    let timing = &mut state.timings[tier][class];
                    (timing.passed_until, timing.on_trial) = (Some(now + PASS_FOR), true);
                }
                plan.first.push(tier);
                continue;
            }
            for &class in &classes {
                let timing = &mut state.timings[tier][class];
                timing.passed_until.get_or_insert(now + PASS_FOR);
                timing.passes += 1;
            }
            let slower = classes.iter().all(|&class| state.is_slower_than_source(tier, class));
            if slower { &mut plan.last_resort } else { &mut plan.before_source }.push(tier);
        }
        plan
    }

    pub(super) fn stats(&self, names: &[String]) -> Vec<RouteStats> {
        let state = self.lock();
        let mut stats = Vec::new();
        for (place, name) in names.iter().enumerate() {
            let seen = |timing: &Timing| timing.hits.samples + timing.misses.samples > 0;
            for (class, timing) in state.timings[place].iter().enumerate().filter(|(_, t)| seen(t)) {
                stats.push(RouteStats {
                    place: name.clone(),
                    up_to_bytes: CLASSES.get(class).copied(),
                    mean_us: timing.hits.us as u64,
                    samples: timing.hits.samples,
                    miss_us: timing.misses.us as u64,
                    misses: timing.misses.samples,
                    passed_by: self.enabled && place < self.tiers && state.is_slow(place, class),
                    passes: timing.passes,
                });
            }
        }
        stats
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// What a hit takes at the next place whose hits were measured.
    fn next_us(&self, tier: usize, class: usize) -> Option<f64> {
        self.timings[tier + 1..].iter().find_map(|place| place[class].hits.known())
    }

    /// Whether that is faster by the margin.
    fn is_slow(&self, tier: usize, class: usize) -> bool {
        let (own, next) = (self.timings[tier][class].hits.known(), self.next_us(tier, class));
        own.zip(next).is_some_and(|(own, next)| own > next * MARGIN)
    }

    fn is_slower_than_source(&self, tier: usize, class: usize) -> bool {
        let source = self.timings[self.timings.len() - 1][class].hits.known();
        self.timings[tier][class].hits.known().zip(source).is_some_and(|(own, source)| own > source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    fn id(text: &str) -> KernelId {
        text.parse().unwrap()
    }

    fn routes(clock: &ManualClock) -> Routes {
        Routes::new(2, true, Arc::new(clock.clone()))
    }

    fn measure(routes: &Routes, place: usize, bytes: usize, us: u64) {
        (0..MIN_SAMPLES).for_each(|_| routes.record_hit(place, &id("k"), bytes, us));
    }

    #[test]
    fn a_tier_slower_than_the_next_place_is_passed_by_for_that_size_and_tried_again() {
        let clock = ManualClock::default();
        let routes = routes(&clock);
        let all = Plan { first: vec![0, 1], ..Plan::default() };
        assert_eq!(routes.plan(&id("k")), all, "nothing is known");
        measure(&routes, 0, 1000, 900);
        assert_eq!(routes.plan(&id("k")), all, "the next place was not measured");
        measure(&routes, 1, 1000, 500);
        let passed = Plan { first: vec![1], before_source: vec![0], ..Plan::default() };
        assert_eq!(routes.plan(&id("k")), passed);
        assert_eq!(routes.plan(&id("other")), passed, "its size is not known, and the tier is slow with all");
        routes.record_hit(1, &id("large"), 100_000, 100);
        assert_eq!(routes.plan(&id("large")), all, "of this size nothing is known");

        clock.advance(PASS_FOR);
        assert_eq!(routes.plan(&id("k")), all, "tried again");
        assert_eq!(routes.plan(&id("k")), passed, "by one look-up alone");
        clock.advance(PASS_FOR);
        assert_eq!(routes.plan(&id("k")), all);
        routes.record_hit(0, &id("k"), 1000, 100);
        assert_eq!(routes.plan(&id("k")), all, "it is fast again");
        let stats = routes.stats(&["a".into(), "b".into(), "c".into()]);
        assert_eq!((stats[0].passes, stats[0].mean_us, stats[0].passed_by), (3, 100, false));
    }

    #[test]
    fn a_trial_that_misses_ends_the_passing_by_and_one_that_misses_slowly_does_not() {
        for (miss_us, expected) in [(50, vec![0, 1]), (5000, vec![1])] {
            let clock = ManualClock::default();
            let routes = routes(&clock);
            measure(&routes, 0, 1000, 900);
            measure(&routes, 1, 1000, 500);
            (0..MIN_SAMPLES).for_each(|_| routes.record_miss(0, 1000, miss_us));
            assert_eq!(routes.plan(&id("k")).first, [1]);
            routes.record_miss(0, 1000, miss_us);
            assert_eq!(routes.plan(&id("k")).first, [1], "that was no trial");
            clock.advance(PASS_FOR);
            assert_eq!(routes.plan(&id("k")).first, [0, 1]);
            routes.record_miss(0, 1000, miss_us);
            assert_eq!(routes.plan(&id("k")).first, expected, "{miss_us}");
        }
    }

    #[test]
    fn misses_are_measured_and_have_no_tier_passed_by() {
        let clock = ManualClock::default();
        let routes = routes(&clock);
        measure(&routes, 1, 1000, 500);
        (0..MIN_SAMPLES).for_each(|_| routes.record_miss(0, 1000, 8000));
        assert_eq!(routes.plan(&id("k")).first, [0, 1]);
        let stats = routes.stats(&["a".into(), "b".into(), "c".into()]);
        assert_eq!((stats[0].samples, stats[0].misses, stats[0].miss_us), (0, MIN_SAMPLES, 8000));
    }

    #[test]
    fn what_is_slow_with_one_size_alone_is_asked_for_an_unknown_one() {
        let clock = ManualClock::default();
        let routes = routes(&clock);
        let measured = |place, name: &str, bytes, us| {
            (0..MIN_SAMPLES).for_each(|_| routes.record_hit(place, &id(name), bytes, us));
        };
        measured(0, "k", 1000, 900);
        measured(1, "k", 1000, 500);
        assert_eq!(routes.plan(&id("new")).first, [1]);
        measured(0, "large", 100_000, 900);
        measured(1, "large", 100_000, 900);
        assert_eq!(routes.plan(&id("new")).first, [0, 1]);
        assert_eq!(routes.plan(&id("k")).first, [1]);
        measured(1, "large", 100_000, 9);
        assert_eq!(routes.plan(&id("new")).first, [1]);
        clock.advance(PASS_FOR);
        assert_eq!(routes.plan(&id("new")).first, [0, 1], "tried again, with every size");
        assert_eq!(routes.plan(&id("k")).first, [1], "by one look-up alone");
        routes.record_hit(0, &id("new"), 1000, 10);
        assert_eq!((routes.plan(&id("k")).first, routes.plan(&id("large")).first), (vec![0, 1], vec![1]));
    }

    #[test]
    fn one_slower_than_the_source_is_the_last_resort() {
        let clock = ManualClock::default();
        let routes = routes(&clock);
        measure(&routes, 0, 1000, 900);
        measure(&routes, 1, 1000, 2000);
        measure(&routes, routes.source(), 1000, 400);
        // The first is faster than the second, which is what stands next to it.
        let plan = Plan { first: vec![0], last_resort: vec![1], ..Plan::default() };
        assert_eq!(routes.plan(&id("k")), plan);
        let off = Routes::new(2, false, Arc::new(clock));
        measure(&off, 0, 1000, 900);
        measure(&off, 1, 1000, 10);
        assert_eq!(off.plan(&id("k")), Plan { first: vec![0, 1], ..Plan::default() });
    }
}
