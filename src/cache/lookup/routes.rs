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

/// Hits that both places need before they are compared.
const MIN_SAMPLES: u64 = 4;

/// How much slower a tier must be than the next place: less than this is noise, or soon made up for.
const MARGIN: f64 = 1.5;

/// The weight of the newest hit in the mean.
const NEWEST: f64 = 0.25;

/// How long a slow tier is passed by before one look-up tries it again.
const PASS_FOR: Duration = Duration::from_secs(60);

/// How many kernels' sizes are remembered.
const MAX_SIZES: usize = 8192;

#[derive(Clone, Copy, Debug, Default)]
struct Timing {
    mean_us: f64,
    samples: u64,
    /// While set, the place is passed by; once it is over, a look-up tries it again.
    passed_until: Option<Instant>,
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
    pub(super) fn record(&self, place: usize, id: &KernelId, bytes: usize, us: u64) {
        let class = class_of(bytes as u64);
        let mut state = self.lock();
        if state.classes.len() >= MAX_SIZES && !state.classes.contains_key(id) {
            // Rather than an order of use for a hint: who is still asked for is soon known again.
            state.classes.clear();
        }
        state.classes.insert(id.clone(), class);
        let timing = &mut state.timings[place][class];
        timing.samples += 1;
        let fresh = timing.samples == 1 || timing.passed_until.take().is_some();
        let us = us as f64;
        timing.mean_us = if fresh { us } else { timing.mean_us + NEWEST * (us - timing.mean_us) };
    }

    /// Whom to ask for a kernel. One whose size is not known yet asks every tier.
    pub(super) fn plan(&self, id: &KernelId) -> Plan {
        let mut state = self.lock();
        let mut plan = Plan::default();
        let Some(&class) = state.classes.get(id).filter(|_| self.enabled) else {
            plan.first = (0..self.tiers).collect();
            return plan;
        };
        let now = self.clock.now();
        for tier in 0..self.tiers {
            let slow = state.is_slow(tier, class);
            let behind_source = state.timings[self.tiers][class];
            let timing = &mut state.timings[tier][class];
            let trial = timing.passed_until.is_some_and(|until| now >= until);
            if !slow || trial {
                // Only this look-up tries it; where it does not hit, the next trial is a while away.
                timing.passed_until = timing.passed_until.filter(|_| slow).map(|_| now + PASS_FOR);
                plan.first.push(tier);
                continue;
            }
            timing.passed_until.get_or_insert(now + PASS_FOR);
            timing.passes += 1;
            let slower_than_source =
                behind_source.samples >= MIN_SAMPLES && timing.mean_us > behind_source.mean_us;
            if slower_than_source { &mut plan.last_resort } else { &mut plan.before_source }.push(tier);
        }
        plan
    }

    /// Whether a tier is passed by for artifacts of this size; asks without counting.
    pub(super) fn is_passed_by(&self, tier: usize, bytes: usize) -> bool {
        self.enabled && self.lock().is_slow(tier, class_of(bytes as u64))
    }

    pub(super) fn stats(&self, names: &[String]) -> Vec<RouteStats> {
        let state = self.lock();
        let mut stats = Vec::new();
        for (place, name) in names.iter().enumerate() {
            for (class, timing) in state.timings[place].iter().enumerate().filter(|(_, t)| t.samples > 0) {
                stats.push(RouteStats {
                    place: name.clone(),
                    up_to_bytes: CLASSES.get(class).copied(),
                    mean_us: timing.mean_us as u64,
                    samples: timing.samples,
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
    /// Whether the next place that was measured is faster by the margin.
    fn is_slow(&self, tier: usize, class: usize) -> bool {
        let own = self.timings[tier][class];
        let next = self.timings[tier + 1..].iter().map(|place| place[class]);
        let next = next.into_iter().find(|timing| timing.samples >= MIN_SAMPLES);
        own.samples >= MIN_SAMPLES && next.is_some_and(|next| own.mean_us > next.mean_us * MARGIN)
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
        (0..MIN_SAMPLES).for_each(|_| routes.record(place, &id("k"), bytes, us));
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
        assert_eq!(routes.plan(&id("other")), all, "its size is not known");
        assert!(routes.is_passed_by(0, 1000) && !routes.is_passed_by(0, 100_000));

        clock.advance(PASS_FOR);
        assert_eq!(routes.plan(&id("k")), all, "tried again");
        assert_eq!(routes.plan(&id("k")), passed, "by one look-up alone");
        clock.advance(PASS_FOR);
        assert_eq!(routes.plan(&id("k")), all);
        routes.record(0, &id("k"), 1000, 100);
        assert_eq!(routes.plan(&id("k")), all, "it is fast again");
        let stats = routes.stats(&["a".into(), "b".into(), "c".into()]);
        assert_eq!((stats[0].passes, stats[0].mean_us, stats[0].passed_by), (2, 100, false));
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
