//! Who is next. Knows no thread and no clock: the time is passed in, in nanoseconds.

use smallvec::SmallVec;

use super::account::Account;

/// How many times as many passes as there are places may run where users without a place run beside.
pub(super) const BESIDE: u64 = 2;

/// A session's number among those that take turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MemberId(pub(super) usize);

/// What becomes of a place whose pass is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// The session keeps it for its next pass, which is there already.
    Keep,
    /// It is free, and the session waits for another.
    FreeAndAsked,
    /// It is free.
    Free,
}

/// What a member had when it stepped back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Had {
    Nothing,
    Request,
    Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Away,
    Waiting,
    /// Has a place, by a decision of ours that was made then.
    Placed {
        since: u64,
    },
}

#[derive(Debug)]
struct Member {
    user: usize,
    account: Account,
    state: State,
    /// When it last came or was served, in steps of the schedule: decides between equals.
    order: u64,
}

#[derive(Debug)]
struct User {
    uid: u32,
    weight: u64,
    account: Account,
    /// What those of its sessions have used that have used least of all that wait.
    level: u64,
    members: usize,
    order: u64,
}

/// Users, their sessions, and what each has used.
#[derive(Debug)]
pub(super) struct Schedule {
    /// How long a session may keep its place, and how much may be saved up while away.
    quantum: u64,
    places: u64,
    members: Vec<Option<Member>>,
    users: Vec<User>,
    /// What those users have used that have used least of all that wait.
    level: u64,
    /// The longest pass of late, and when that was noted.
    longest: (u64, u64),
    waiting: usize,
    /// Since when nobody waits.
    quiet_since: u64,
    steps: u64,
}

impl Schedule {
    pub(super) fn new(quantum: u64, places: u64) -> Self {
        let (members, users) = (Vec::new(), Vec::new());
        Self {
            quantum,
            places,
            members,
            users,
            level: 0,
            longest: (0, 0),
            waiting: 0,
            quiet_since: 0,
            steps: 0,
        }
    }

    /// Takes a session in. Its user's past counts as long as it owes something.
    pub(super) fn join(&mut self, uid: u32, weight: u64, now: u64) -> MemberId {
        self.fade(now);
        let known = self.users.iter().position(|user| user.uid == uid);
        let user = known.unwrap_or_else(|| {
            let is_done = |user: &User| user.members == 0 && user.account.used() <= self.level;
            let account = Account::at(self.level);
            let user = User { uid, weight: weight.max(1), account, level: 0, members: 0, order: 0 };
            match self.users.iter().position(is_done) {
                Some(free) => {
                    self.users[free] = user;
                    free
                }
                None => {
                    self.users.push(user);
                    self.users.len() - 1
                }
            }
        });
        self.users[user].members += 1;
        let account = Account::at(self.users[user].level);
        let member = Some(Member { user, account, state: State::Away, order: 0 });
        match self.members.iter().position(Option::is_none) {
            Some(free) => {
                self.members[free] = member;
                MemberId(free)
            }
            None => {
                self.members.push(member);
                MemberId(self.members.len() - 1)
            }
        }
    }

    /// Strikes a session off. A place that it still has is free then.
    pub(super) fn leave(&mut self, id: MemberId, now: u64) -> Had {
        let had = self.step_back(id, now);
        if let Some(member) = self.members[id.0].take() {
            self.users[member.user].members -= 1;
        }
        had
    }

    /// A session wants a place.
    pub(super) fn ask(&mut self, id: MemberId, now: u64) {
        self.fade(now);
        self.come_back(id, now);
        self.wait(id);
    }

    fn wait(&mut self, id: MemberId) {
        self.steps += 1;
        let steps = self.steps;
        let Some(member) = &mut self.members[id.0] else { return };
        if member.state != State::Waiting {
            (member.state, member.order) = (State::Waiting, steps);
            self.waiting += 1;
        }
    }

    /// Gives a place to the one that has used least, of the user that has; where several have, to the one that was
    /// served longest ago.
    pub(super) fn pick(&mut self, now: u64) -> Option<MemberId> {
        let picked = self.first(|_| true)?;
        self.place(picked, now)
    }

    /// Gives one a place beside those that there are: to whom a place of users without any would be given, if that user
    /// has used no more than one with a place has by now. Whoever uses less than his part is then not kept waiting by the
    /// length of another's pass. `since` knows since when a session has a place, of those taken without the schedule too.
    pub(super) fn pick_beside(
        &mut self,
        now: u64,
        since: impl Fn(MemberId) -> Option<u64>,
    ) -> Option<MemberId> {
        // By user: what it has used with what is under way, where it has a place.
        let mut placed: SmallVec<[Option<u64>; 16]> = SmallVec::from_elem(None, self.users.len());
        for (n, member) in self.members.iter().enumerate() {
            let Some(member) = member else { continue };
            let Some(since) = since(MemberId(n)) else { continue };
            let user = &self.users[member.user];
            let used = placed[member.user].get_or_insert(user.account.used());
            if member.state == State::Away {
                // It has run without the schedule, while nobody waited: nothing is saved up by that.
                *used = (*used).max(self.level);
            }
            *used = used.saturating_add(now.saturating_sub(since) / user.weight);
        }
        let most = placed.iter().flatten().max()?;
        let picked = self.first(|member| placed[member.user].is_none())?;
        let user = self.members[picked].as_ref()?.user;
        if self.users[user].account.used() <= *most { self.place(picked, now) } else { None }
    }

    /// Who is first of those that wait and are asked for.
    fn first(&self, is_asked_for: impl Fn(&Member) -> bool) -> Option<usize> {
        let waiting = self.members.iter().enumerate().filter_map(|(n, member)| {
            let waits = |member: &&Member| member.state == State::Waiting && is_asked_for(member);
            let member = member.as_ref().filter(waits)?;
            let user = &self.users[member.user];
            Some(((user.account.used(), user.order, member.account.used(), member.order), n))
        });
        waiting.min().map(|(_, first)| first)
    }

    fn place(&mut self, picked: usize, now: u64) -> Option<MemberId> {
        self.steps += 1;
        let member = self.members[picked].as_mut()?;
        (member.state, member.order) = (State::Placed { since: now }, self.steps);
        self.users[member.user].order = self.steps;
        self.waiting -= 1;
        self.quiet_since = now;
        self.rise();
        Some(MemberId(picked))
    }

    /// A pass is over; `more` where the session's next is there already.
    ///
    /// The pass may have had its place without the schedule, while there were places for all.
    pub(super) fn end(&mut self, id: MemberId, began: u64, now: u64, more: bool) -> Next {
        self.come_back(id, now);
        let cost = now.saturating_sub(began);
        self.longest = (self.longest(now).max(cost), now);
        let (waiting, quantum) = (self.waiting, self.quantum);
        let Some(member) = &mut self.members[id.0] else { return Next::Free };
        let user = &mut self.users[member.user];
        member.account.charge(cost);
        user.account.charge(cost / user.weight);
        let since = if let State::Placed { since } = member.state { since } else { began };
        if more && waiting > 0 && now.saturating_sub(since) < quantum {
            member.state = State::Placed { since };
            return Next::Keep;
        }
        member.state = State::Away;
        if more && waiting > 0 {
            self.wait(id);
            return Next::FreeAndAsked;
        }
        Next::Free
    }

    /// A session wants no place any more.
    pub(super) fn step_back(&mut self, id: MemberId, now: u64) -> Had {
        let Some(member) = &mut self.members[id.0] else { return Had::Nothing };
        let had = match std::mem::replace(&mut member.state, State::Away) {
            State::Away => Had::Nothing,
            State::Waiting => Had::Request,
            State::Placed { .. } => Had::Place,
        };
        if had == Had::Request {
            self.waiting -= 1;
            self.quiet_since = now;
        }
        self.rise();
        had
    }

    /// Limits what a session that was away has saved up, and its user where all of its sessions were.
    fn come_back(&mut self, id: MemberId, now: u64) {
        let Some(member) = &self.members[id.0] else { return };
        if member.state != State::Away {
            return;
        }
        let user = member.user;
        let is_active = |other: &Member| other.user == user && other.state != State::Away;
        let is_active = self.members.iter().flatten().any(is_active);
        let credit = if is_active { self.most_credit(now) } else { self.quantum };
        self.users[user].account.keep_credit(self.level, credit);
        let level = self.users[user].level;
        if let Some(member) = &mut self.members[id.0] {
            member.account.keep_credit(level, self.quantum);
        }
    }

    /// As far as one may be behind others who never was away: each of all places, and what runs beside them, may be
    /// another's for a quantum and a pass. Whoever is behind by more has too few sessions to fill its part.
    fn most_credit(&self, now: u64) -> u64 {
        let each = self.quantum.saturating_add(self.longest(now));
        each.saturating_mul(BESIDE * self.places).saturating_add(self.quantum)
    }

    /// The longest pass of late: one of a second counts for sixteen, less and less.
    fn longest(&self, now: u64) -> u64 {
        let (longest, noted) = self.longest;
        longest.saturating_sub(now.saturating_sub(noted) / 16)
    }

    /// While nobody waits there is enough for all, and what was used fades as time goes by.
    fn fade(&mut self, now: u64) {
        if self.waiting > 0 {
            return;
        }
        let quiet = now.saturating_sub(self.quiet_since);
        self.quiet_since = now;
        self.level = self.level.saturating_add(quiet);
        for user in &mut self.users {
            user.level = user.level.saturating_add(quiet);
        }
    }

    /// Lifts the levels to those who have used least of all that still wait. Who runs whenever it asks has used as much
    /// as it could, and others need not wait for it to have used more.
    fn rise(&mut self) {
        let mut least = u64::MAX;
        for (n, user) in self.users.iter_mut().enumerate() {
            let waiting = self.members.iter().flatten().filter(|m| m.user == n && m.state == State::Waiting);
            if let Some(used) = waiting.map(|member| member.account.used()).min() {
                user.level = user.level.max(used);
                least = least.min(user.account.used());
            }
        }
        if least < u64::MAX {
            self.level = self.level.max(least);
        }
    }
}
