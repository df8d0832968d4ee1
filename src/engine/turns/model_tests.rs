//! The schedule on a clock of its own: random sessions, random passes.
//!
//! What is asked of it: no place is empty while somebody waits; users who want all they can get have used the same,
//! but for a quantum and a pass; and everybody comes to run.

use std::{collections::BTreeMap, ops::RangeInclusive};

use proptest::prelude::*;

use super::schedule::{BESIDE, Had, MemberId, Next, Schedule};

/// Nanoseconds.
const QUANTUM: u64 = 2_000_000;

/// How a session behaves.
#[derive(Clone, Debug)]
struct Behaviour {
    uid: u32,
    /// Lengths of its passes, over and over.
    costs: Vec<u64>,
    /// How long it takes to come with its next pass; none where that is always at hand.
    away: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
    Away { until: u64 },
    Waiting { since: u64 },
    Running { began: u64, ends: u64 },
}

struct Session {
    id: MemberId,
    behaviour: Behaviour,
    doing: Doing,
    passes: usize,
}

struct World {
    /// Whether users without a place run beside.
    beside: bool,
    schedule: Schedule,
    places: usize,
    sessions: Vec<Session>,
    now: u64,
    used: BTreeMap<u32, u64>,
    longest_wait: u64,
}

impl World {
    fn new(places: usize, sessions: &[Behaviour], weights: &BTreeMap<u32, u64>) -> Self {
        let mut schedule = Schedule::new(QUANTUM, places as u64);
        let sessions = sessions.iter().map(|behaviour| {
            let weight = weights.get(&behaviour.uid).copied().unwrap_or(1);
            let id = schedule.join(behaviour.uid, weight, 0);
            Session { id, behaviour: behaviour.clone(), doing: Doing::Away { until: 0 }, passes: 0 }
        });
        let sessions = sessions.collect();
        Self { beside: false, schedule, places, sessions, now: 0, used: BTreeMap::new(), longest_wait: 0 }
    }

    /// More sessions, from now on.
    fn open(&mut self, sessions: &[Behaviour]) {
        for behaviour in sessions {
            let id = self.schedule.join(behaviour.uid, 1, self.now);
            let doing = Doing::Away { until: self.now };
            self.sessions.push(Session { id, behaviour: behaviour.clone(), doing, passes: 0 });
        }
    }

    fn running(&self) -> usize {
        self.sessions.iter().filter(|s| matches!(s.doing, Doing::Running { .. })).count()
    }

    fn run(&mut self, n: usize) {
        let session = &mut self.sessions[n];
        let cost = session.behaviour.costs[session.passes % session.behaviour.costs.len()];
        session.passes += 1;
        session.doing = Doing::Running { began: self.now, ends: self.now + cost };
    }

    /// Fills free places; afterwards none is empty while somebody waits.
    fn fill(&mut self) {
        loop {
            let id = match self.running() {
                running if running < self.places => self.schedule.pick(self.now),
                running if self.beside && running < BESIDE as usize * self.places => {
                    let since = |id: MemberId| {
                        let session = self.sessions.iter().find(|session| session.id == id)?;
                        if let Doing::Running { began, .. } = session.doing { Some(began) } else { None }
                    };
                    self.schedule.pick_beside(self.now, since)
                }
                _ => None,
            };
            let Some(id) = id else { break };
            let n = self.sessions.iter().position(|session| session.id == id).unwrap();
            let Doing::Waiting { since } = self.sessions[n].doing else { panic!("{id:?} does not wait") };
            self.longest_wait = self.longest_wait.max(self.now - since);
            self.run(n);
        }
        let waits = self.sessions.iter().any(|s| matches!(s.doing, Doing::Waiting { .. }));
        assert!(self.running() >= self.places || !waits, "a place is empty while somebody waits");
    }

    /// Goes on to what happens next.
    fn step(&mut self) {
        let next = self.sessions.iter().enumerate().filter_map(|(n, session)| match session.doing {
            Doing::Away { until } => Some((until, n)),
            Doing::Running { ends, .. } => Some((ends, n)),
            Doing::Waiting { .. } => None,
        });
        let (at, n) = next.min().expect("there is always somebody who runs or will come");
        self.now = self.now.max(at);
        match self.sessions[n].doing {
            Doing::Away { .. } => {
                self.schedule.ask(self.sessions[n].id, self.now);
                self.sessions[n].doing = Doing::Waiting { since: self.now };
            }
            Doing::Running { began, .. } => self.end(n, began),
            Doing::Waiting { .. } => {}
        }
        self.fill();
    }

    fn end(&mut self, n: usize, began: u64) {
        let (id, away) = (self.sessions[n].id, self.sessions[n].behaviour.away);
        *self.used.entry(self.sessions[n].behaviour.uid).or_default() += self.now - began;
        match (self.schedule.end(id, began, self.now, away.is_none()), away) {
            (Next::Keep, _) => self.run(n),
            (Next::FreeAndAsked, _) => self.sessions[n].doing = Doing::Waiting { since: self.now },
            // Its next pass is at hand, but nobody else waits.
            (Next::Free, None) => {
                self.schedule.ask(id, self.now);
                self.sessions[n].doing = Doing::Waiting { since: self.now };
            }
            (Next::Free, Some(away)) => self.sessions[n].doing = Doing::Away { until: self.now + away },
        }
    }

    fn run_until(&mut self, end: u64) {
        while self.now < end {
            self.step();
        }
    }
}

fn largest(sessions: &[Behaviour]) -> u64 {
    sessions.iter().flat_map(|session| &session.costs).copied().max().unwrap_or(0)
}

fn costs() -> impl Strategy<Value = Vec<u64>> {
    // From 20 µs to 20 ms, short ones more often.
    let cost = prop_oneof![3 => 20_000..1_000_000u64, 1 => 1_000_000..20_000_000u64];
    prop::collection::vec(cost, 1..5)
}

fn greedy(uid: u32, sessions: RangeInclusive<usize>) -> impl Strategy<Value = Vec<Behaviour>> {
    let one = costs().prop_map(move |costs| Behaviour { uid, costs, away: None });
    prop::collection::vec(one, sessions)
}

fn passer_by() -> impl Strategy<Value = Behaviour> {
    (100..103u32, costs(), 10_000..30_000_000u64).prop_map(|(uid, costs, away)| Behaviour {
        uid,
        costs,
        away: Some(away),
    })
}

const LONG: u64 = 3_000_000_000;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn users_who_want_all_they_can_get_have_used_the_same(
        users in (greedy(1, 1..=6), greedy(2, 1..=2), greedy(3, 1..=1)),
        others in prop::collection::vec(passer_by(), 0..4),
    ) {
        let sessions: Vec<_> = [users.0, users.1, users.2, others].concat();
        let bound = QUANTUM + largest(&sessions);
        let mut world = World::new(1, &sessions, &BTreeMap::new());
        while world.now < LONG {
            world.step();
            let used: Vec<u64> = (1..=3).map(|uid| world.used.get(&uid).copied().unwrap_or(0)).collect();
            let (least, most) = (used.iter().min().unwrap(), used.iter().max().unwrap());
            prop_assert!(most - least <= bound, "{used:?} differ by more than {bound}");
        }
        prop_assert!(world.used[&1] > LONG / 100, "and that is not because nobody ran");
    }

    #[test]
    fn with_several_places_too_where_everybody_can_fill_his_part(
        users in (greedy(1, 3..=6), greedy(2, 3..=6)),
        places in 2..=3usize,
    ) {
        let sessions: Vec<_> = [users.0, users.1].concat();
        // Each place may be kept for a quantum and a pass, and what is under way in the others is not charged yet.
        let bound = places as u64 * (QUANTUM + largest(&sessions)) + largest(&sessions);
        let mut world = World::new(places, &sessions, &BTreeMap::new());
        while world.now < LONG {
            world.step();
            let used = [1, 2].map(|uid| world.used.get(&uid).copied().unwrap_or(0));
            prop_assert!(used[0].abs_diff(used[1]) <= bound, "{used:?} differ by more than {bound}");
        }
    }

    #[test]
    fn and_where_users_without_a_place_run_beside(
        users in (greedy(1, 1..=6), greedy(2, 1..=6), greedy(3, 1..=2)),
        others in prop::collection::vec(passer_by(), 0..4),
    ) {
        let sessions: Vec<_> = [users.0, users.1, users.2, others].concat();
        // Two at a time: each may be kept for a quantum and a pass, and what is under way is not charged yet.
        let bound = 2 * (QUANTUM + largest(&sessions)) + largest(&sessions);
        let mut world = World { beside: true, ..World::new(1, &sessions, &BTreeMap::new()) };
        while world.now < LONG {
            world.step();
            let used: Vec<u64> = (1..=3).map(|uid| world.used.get(&uid).copied().unwrap_or(0)).collect();
            let (least, most) = (used.iter().min().unwrap(), used.iter().max().unwrap());
            prop_assert!(most - least <= bound, "{used:?} differ by more than {bound}");
        }
    }

    #[test]
    fn everybody_comes_to_run(
        users in (greedy(1, 1..=4), greedy(2, 1..=2)),
        others in prop::collection::vec(passer_by(), 1..6),
        places in 1..4usize,
    ) {
        let sessions: Vec<_> = [users.0, users.1, others].concat();
        let mut world = World::new(places, &sessions, &BTreeMap::new());
        world.run_until(LONG);
        // Before it is the turn of a session, each of the others may use up what it is behind: a quantum saved, a
        // quantum kept, and what a pass in every place can owe.
        let each = 2 * QUANTUM + (places as u64 + 1) * largest(&sessions);
        let bound = 2 * sessions.len() as u64 * each;
        prop_assert!(world.longest_wait <= bound, "{} ns, more than {bound}", world.longest_wait);
        for session in &world.sessions {
            prop_assert!(session.passes > 0);
        }
    }

    #[test]
    fn sessions_of_one_user_share_what_is_the_users(users in greedy(1, 1..=5), other in greedy(2, 1..=2)) {
        let count = users.len();
        let sessions: Vec<_> = [users, other].concat();
        let bound = QUANTUM + largest(&sessions);
        let mut used = vec![0u64; count];
        let mut world = World::new(1, &sessions, &BTreeMap::new());
        while world.now < LONG {
            let before: Vec<_> = world.sessions.iter().map(|session| session.doing).collect();
            world.step();
            for n in 0..count {
                if let Doing::Running { began, ends } = before[n]
                    && ends == world.now
                    && world.sessions[n].doing != before[n]
                {
                    used[n] += ends - began;
                }
            }
            let (least, most) = (used.iter().min().unwrap(), used.iter().max().unwrap());
            prop_assert!(most - least <= bound, "{used:?} differ by more than {bound}");
        }
    }
}

fn steady(uid: u32, cost: u64) -> Behaviour {
    Behaviour { uid, costs: vec![cost], away: None }
}

#[test]
fn ten_sessions_of_one_user_get_as_much_as_one_of_another() {
    let mut sessions = vec![steady(1, 5_000_000); 10];
    sessions.push(steady(2, 300_000));
    let mut world = World::new(1, &sessions, &BTreeMap::new());
    world.run_until(LONG);
    let [many, one] = [1, 2].map(|uid| world.used[&uid]);
    assert!(many.abs_diff(one) <= QUANTUM + 5_000_000, "{many} {one}");
}

#[test]
fn a_session_that_comes_back_does_not_cost_its_user_what_others_owe() {
    let coming = Behaviour { uid: 2, costs: vec![300_000], away: Some(400_000) };
    let sessions = [steady(1, 20_000_000), steady(2, 300_000), coming];
    let mut world = World::new(1, &sessions, &BTreeMap::new());
    world.run_until(LONG);
    let [long, short] = [1, 2].map(|uid| world.used[&uid]);
    assert!(long.abs_diff(short) <= QUANTUM + 20_000_000, "{long} {short}");
}

#[test]
fn weights_are_shares() {
    let sessions = [steady(1, 700_000), steady(2, 1_100_000)];
    for beside in [false, true] {
        let mut world = World { beside, ..World::new(1, &sessions, &BTreeMap::from([(1, 3)])) };
        world.run_until(LONG);
        let [three, one] = [1, 2].map(|uid| world.used[&uid] as f64);
        let share = three / (three + one);
        assert!((share - 0.75).abs() < 0.01, "{share}, beside: {beside}");
    }
}

#[test]
fn a_quiet_user_waits_for_no_long_pass_of_a_noisy_one() {
    // Passes of a second, and one after the other of 100 us.
    let mut sessions = vec![steady(1, 1_000_000_000); 4];
    sessions.push(Behaviour { uid: 2, costs: vec![100_000], away: Some(20_000) });
    let mut world = World { beside: true, ..World::new(2, &sessions, &BTreeMap::new()) };
    world.run_until(LONG);
    let passes = world.sessions[4].passes as u64;
    assert!(passes >= LONG / 120_000 - 1, "{passes} passes");
}

#[test]
fn a_trainer_that_asks_for_one_pass_at_a_time_waits_for_one_pass_of_others() {
    let mut sessions = vec![steady(1, 5_000_000); 8];
    sessions.push(Behaviour { uid: 2, costs: vec![1_000_000], away: Some(1_000_000) });
    let mut world = World::new(1, &sessions, &BTreeMap::new());
    world.run_until(LONG);
    // It uses less than its half, so that it is next whenever it comes: 5 ms at most, then its own 1 ms, then 1 ms away.
    let passes = world.sessions[8].passes as u64;
    assert!(passes >= LONG / 7_000_000 - 1, "{passes} passes");
}

#[test]
fn what_is_saved_up_while_away_is_a_quantum_at_most() {
    // Of another user, and of the same. A quantum saved, and as much as the other has had in one go.
    for uid in [1, 2] {
        let sessions = [steady(1, 1_000_000), Behaviour { uid, costs: vec![1_000_000], away: Some(LONG) }];
        let mut world = World::new(1, &sessions, &BTreeMap::new());
        world.run_until(LONG - QUANTUM);
        // Back after a long time, and now with no end of passes at hand.
        world.sessions[1].behaviour.away = None;
        let (others, own) = (world.sessions[0].passes, world.sessions[1].passes);
        while world.sessions[1].passes == own {
            world.step();
        }
        let others_meanwhile = world.sessions[0].passes - others;
        while world.sessions[0].passes == others + others_meanwhile {
            world.step();
        }
        let at_once = world.sessions[1].passes - own;
        assert!((2..=5).contains(&at_once), "{at_once} passes of 1 ms before the other's next, user {uid}");
    }
}

#[test]
fn who_could_not_fill_his_part_has_saved_up_nothing_by_that() {
    let mut sessions = vec![steady(1, 1_000_000); 6];
    sessions.push(steady(2, 1_000_000));
    let mut world = World::new(4, &sessions, &BTreeMap::new());
    world.run_until(LONG);
    assert!(world.used[&1] > 2 * world.used[&2]);
    world.open(&vec![steady(2, 1_000_000); 6]);
    let before = world.used.clone();
    world.run_until(LONG + LONG / 10);
    let gained = [1, 2].map(|uid| world.used[&uid] - before[&uid]);
    assert!(gained[0].abs_diff(gained[1]) < LONG / 50, "{gained:?}");
}

#[test]
fn who_has_filled_places_that_nobody_wanted_owes_nothing_for_them() {
    // User 2 has one session and can fill one of four places; user 1 fills the other three for a long time.
    let mut sessions = vec![steady(1, 1_000_000); 6];
    sessions.push(steady(2, 1_000_000));
    let mut world = World::new(4, &sessions, &BTreeMap::new());
    world.run_until(LONG);
    assert!(world.used[&1] > 2 * world.used[&2]);
    world.open(&vec![steady(3, 1_000_000); 6]);
    let before = world.used.clone();
    world.run_until(LONG + LONG / 10);
    let gained = world.used[&1] - before[&1];
    // A tenth of the time in four places: a third of them and more, since user 2 cannot fill more than one.
    assert!(gained * 4 >= LONG / 10 * 4, "{gained}");
}

#[test]
fn what_was_used_while_nobody_waited_is_forgotten() {
    let mut schedule = Schedule::new(QUANTUM, 1);
    let (first, second) = (schedule.join(1, 1, 0), schedule.join(2, 1, 0));
    // A long pass that the other waited for.
    schedule.ask(first, 0);
    assert_eq!(schedule.pick(0), Some(first));
    schedule.ask(second, 1);
    assert_eq!(schedule.end(first, 0, 5_000_000_000, false), Next::Free);
    assert_eq!(schedule.pick(5_000_000_000), Some(second));
    assert_eq!(schedule.end(second, 5_000_000_000, 5_000_000_001, false), Next::Free);
    // An hour of peace, then both come at once: the first does not pay for its past.
    let mut now = 3_600_000_000_000;
    schedule.ask(first, now);
    schedule.ask(second, now);
    let mut gained = [0u64, 0];
    let mut placed = schedule.pick(now).unwrap();
    for _ in 0..100 {
        gained[placed.0] += 1_000_000;
        now += 1_000_000;
        if schedule.end(placed, now - 1_000_000, now, true) == Next::FreeAndAsked {
            placed = schedule.pick(now).unwrap();
        }
    }
    assert!(gained[0].abs_diff(gained[1]) <= 2 * QUANTUM, "{gained:?}");
}

#[test]
fn members_that_leave_leave_nothing_but_what_their_user_owes() {
    let mut schedule = Schedule::new(QUANTUM, 1);
    let (first, other) = (schedule.join(1, 1, 0), schedule.join(2, 1, 0));
    schedule.ask(other, 0);
    schedule.ask(first, 0);
    assert_eq!(schedule.pick(0), Some(other));
    schedule.ask(first, 0);
    assert_eq!(schedule.end(other, 0, 50_000_000, true), Next::FreeAndAsked);
    // Leaving and coming back as another session of the same user does not pay a debt.
    assert_eq!(schedule.leave(other, 50_000_000), Had::Request);
    let again = schedule.join(2, 1, 50_000_000);
    schedule.ask(again, 50_000_000);
    assert_eq!(schedule.pick(50_000_000), Some(first));
    assert_eq!(schedule.end(first, 50_000_000, 60_000_000, true), Next::FreeAndAsked);
    assert_eq!(schedule.pick(60_000_000), Some(first), "user 2 is still behind by 40 ms");
    assert_eq!(schedule.leave(first, 60_000_000), Had::Place);
    assert_eq!(schedule.leave(first, 60_000_000), Had::Nothing);
}

#[test]
fn whose_user_has_no_place_runs_beside_if_it_has_used_less() {
    let mut schedule = Schedule::new(QUANTUM, 1);
    let (greedy, again, quiet) = (schedule.join(1, 1, 0), schedule.join(1, 1, 0), schedule.join(2, 1, 0));
    let since = |member: MemberId| (member == greedy).then_some(0);
    schedule.ask(greedy, 0);
    assert_eq!(schedule.pick(0), Some(greedy));
    schedule.ask(again, 0);
    assert_eq!(schedule.pick_beside(0, since), None, "its user has a place");
    schedule.ask(quiet, 0);
    assert_eq!(schedule.pick_beside(0, since), Some(quiet));
    // It has used 10 ms, and the greedy one nothing that is charged yet: what is under way counts.
    assert_eq!(schedule.end(quiet, 0, 10_000_000, true), Next::FreeAndAsked);
    assert_eq!(schedule.pick_beside(10_000_000, since), Some(quiet), "as much as the other by now");
    assert_eq!(schedule.end(quiet, 9_000_000, 11_000_000, true), Next::Keep);
    assert_eq!(schedule.end(quiet, 11_000_000, 18_000_000, true), Next::FreeAndAsked);
    assert_eq!(schedule.pick_beside(18_000_000, since), None, "more than the other");
    assert_eq!(schedule.pick_beside(19_000_000, |_| None), None, "nobody is seen to have a place");
    assert_eq!(schedule.pick_beside(19_000_000, since), Some(quiet));
}
