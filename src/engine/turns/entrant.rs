//! One session at the places: waits for its turn, has it, gives it back.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use super::{
    Turns,
    places::HeldSince,
    schedule::{MemberId, Next},
};

/// How long a waiting thread sleeps before it looks whether anybody still needs the turn.
const LOOK_AFTER: Duration = Duration::from_millis(100);

/// A session among those that take turns. Belongs to one thread.
#[derive(Debug)]
pub struct Entrant {
    turns: Arc<Turns>,
    member: MemberId,
    held: Arc<HeldSince>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Neither has a place nor wants one.
    Out,
    /// Waits in line, or has got its place meanwhile.
    Asked,
    /// Has a place that it took while there was one for everybody.
    Walked,
    /// Has a place that was given to it.
    Given,
}

/// A pass's turn. Ends when dropped, at a panic too.
#[derive(Debug)]
pub struct Turn<'a> {
    entrant: &'a mut Entrant,
    began: Instant,
    waited: Duration,
    is_over: bool,
}

/// The time of one pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// When its turn came.
    pub began: Instant,
    /// When it was over.
    pub ended: Instant,
    /// How long it had waited for it.
    pub waited: Duration,
}

impl Entrant {
    pub(super) fn new(turns: Arc<Turns>, member: MemberId, held: Arc<HeldSince>) -> Self {
        Self { turns, member, held, state: State::Out }
    }

    /// Waits for this session's turn. None once `give_up` says that nobody needs it any more, which is asked now and
    /// then while it waits; it stands in no line then.
    ///
    /// Blocking: while more passes want to run than may; no lock is held meanwhile.
    pub fn begin(&mut self, mut give_up: impl FnMut() -> bool) -> Option<Turn<'_>> {
        if self.state == State::Out {
            if self.turns.take_free() {
                self.state = State::Walked;
            } else {
                self.turns.ask(self.member);
                self.state = State::Asked;
            }
        }
        let mut waited = Duration::ZERO;
        if self.state == State::Asked {
            let asked = Instant::now();
            while self.held.since().is_none() {
                if give_up() {
                    self.withdraw();
                    return None;
                }
                thread::park_timeout(LOOK_AFTER);
            }
            self.state = State::Given;
            waited = asked.elapsed();
        }
        let began = Instant::now();
        self.held.begin(self.turns.ns(began));
        Some(Turn { entrant: self, began, waited, is_over: false })
    }

    /// Leaves the line, or the place that was kept for the next pass: there is none.
    pub fn withdraw(&mut self) {
        if std::mem::replace(&mut self.state, State::Out) != State::Out {
            self.turns.step_back(self.member);
        }
    }

    fn end(&mut self, began: Instant, more: bool) -> Instant {
        let ended = Instant::now();
        // Before the place is free: whoever asks in between keeps it from being freed unasked, and is served below.
        self.held.end();
        // What the schedule has given it has to be told of.
        if self.state == State::Walked && self.turns.free_unasked() {
            self.state = State::Out;
            return ended;
        }
        self.state = match self.turns.end(self.member, began, ended, more) {
            Next::Keep => State::Given,
            Next::FreeAndAsked => State::Asked,
            Next::Free => State::Out,
        };
        ended
    }
}

impl Drop for Entrant {
    fn drop(&mut self) {
        self.turns.leave(self.member);
    }
}

impl Turn<'_> {
    /// Ends it. With `more` the session's next pass is there already, and stands in line from now on: begin it next or
    /// [`withdraw`](Entrant::withdraw).
    pub fn end(mut self, more: bool) -> Used {
        self.is_over = true;
        let ended = self.entrant.end(self.began, more);
        Used { began: self.began, ended, waited: self.waited }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            self.entrant.end(self.began, false);
        }
    }
}
