//! What happened, told to whoever watches. Telling never waits: a watcher that is too slow loses events, and is
//! told how many.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::Notify;

use super::ActorError;
use crate::{
    clock::Clock,
    id::{LayerId, SessionId},
    wire::{Event, EventKind, EventsReport, SeedState, TransitionReport},
};

/// Events that wait for one watcher.
const BUFFER: usize = 1024;
/// Connections of trainers that may watch at a time, of all users and of each.
const WATCHERS: usize = 64;
const WATCHERS_OF_A_USER: usize = 16;
/// Connections of operators that may watch at a time: no trainer takes their places.
const OPERATORS: usize = 16;
const STATES: usize = SeedState::ALL.len();

/// Which events a watcher gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scope {
    /// Those of this user's sessions; none for everybody's.
    pub uid: Option<u32>,
    /// Those of this session; none for all.
    pub session: Option<SessionId>,
}

impl Scope {
    fn takes(&self, uid: u32, event: &Event) -> bool {
        self.uid.is_none_or(|own| own == uid) && (self.session.is_none() || self.session == event.session)
    }
}

/// Where events are told. Clones tell the same.
#[derive(Clone, Debug)]
pub struct Events(Arc<Bus>);

#[derive(Debug)]
struct Bus {
    clock: Arc<dyn Clock>,
    /// How many were told, and to whom: behind one lock, so that each watcher gets them in the order of their
    /// numbers. The control plane alone comes here, and for moments.
    told: Mutex<Told>,
    lost: AtomicU64,
    transitions: [[AtomicU64; STATES]; STATES],
}

#[derive(Debug, Default)]
struct Told {
    count: u64,
    watchers: Vec<Arc<Post>>,
}

/// A watcher's box.
#[derive(Debug)]
struct Post {
    scope: Scope,
    waiting: Mutex<Waiting>,
    came: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    events: VecDeque<Arc<Event>>,
    lost: u64,
}

fn locked<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that is done within can panic half-way.
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Events {
    /// Nothing told and nobody watching.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        let (told, lost) = (Mutex::default(), AtomicU64::new(0));
        Self(Arc::new(Bus { clock, told, lost, transitions: Default::default() }))
    }

    /// Tells of something that happened in a session of this user. Never waits for a watcher.
    pub fn tell(&self, uid: u32, event: Event) {
        if let EventKind::StateChanged { from, to, .. } = event.kind {
            self.0.transitions[from as usize][to as usize].fetch_add(1, Ordering::Relaxed);
        }
        let mut told = locked(&self.0.told);
        told.count += 1;
        let (sequence, unix_ms) = (Some(told.count), Some(self.0.clock.unix_ms()));
        let event = Arc::new(Event { sequence, unix_ms, ..event });
        for post in told.watchers.iter().filter(|post| post.scope.takes(uid, &event)) {
            self.0.lost.fetch_add(post.put(&event), Ordering::Relaxed);
        }
    }

    /// Watches from now on.
    ///
    /// # Errors
    /// [`ActorError::Watchers`] where too many do already.
    pub fn watch(&self, scope: Scope) -> Result<Watcher, ActorError> {
        let mut told = locked(&self.0.told);
        let watchers = told.watchers.iter().map(|post| post.scope.uid);
        // Those of operators among themselves, and those of trainers among themselves.
        let rivals = watchers.clone().filter(|uid| uid.is_some() == scope.uid.is_some()).count();
        let own = watchers.filter(|uid| *uid == scope.uid).count();
        let within = |count: usize, limit: usize, what| {
            if count < limit { Ok(()) } else { Err(ActorError::Watchers { what, limit }) }
        };
        if scope.uid.is_none() {
            within(rivals, OPERATORS, "operators' connections that watch")?;
        } else {
            within(rivals, WATCHERS, "connections that watch")?;
            within(own, WATCHERS_OF_A_USER, "connections of one user that watch")?;
        }
        let post = Arc::new(Post { scope, waiting: Mutex::default(), came: Notify::new() });
        told.watchers.push(post.clone());
        Ok(Watcher { events: self.clone(), post })
    }

    /// What was told so far.
    pub fn report(&self) -> EventsReport {
        let (told, watchers) = {
            let told = locked(&self.0.told);
            (told.count, told.watchers.len() as u32)
        };
        let count = |from: SeedState, to: SeedState| {
            self.0.transitions[from as usize][to as usize].load(Ordering::Relaxed)
        };
        let pairs = SeedState::ALL.iter().flat_map(|from| SeedState::ALL.iter().map(|to| (*from, *to)));
        let transitions = pairs.map(|(from, to)| TransitionReport { from, to, count: count(from, to) });
        EventsReport {
            told,
            lost: self.0.lost.load(Ordering::Relaxed),
            watchers,
            transitions: transitions.filter(|step| step.count > 0).collect(),
        }
    }
}

impl Post {
    /// Leaves an event; gives how many were lost by that.
    fn put(&self, event: &Arc<Event>) -> u64 {
        let mut waiting = locked(&self.waiting);
        if waiting.events.len() >= BUFFER {
            waiting.lost += 1;
            return 1;
        }
        waiting.settle();
        waiting.events.push_back(event.clone());
        self.came.notify_one();
        0
    }
}

impl Waiting {
    /// Puts the number of lost events where they are missing.
    fn settle(&mut self) {
        if self.lost > 0 {
            let count = std::mem::take(&mut self.lost);
            self.events.push_back(Arc::new(EventKind::Lost { count }.into()));
        }
    }
}

/// The receiving end of a watcher; it watches until it is dropped.
#[derive(Debug)]
pub struct Watcher {
    events: Events,
    post: Arc<Post>,
}

impl Watcher {
    /// The next event.
    ///
    /// Cancel safety: an event that was not given yet stays.
    pub async fn next(&mut self) -> Arc<Event> {
        loop {
            {
                let mut waiting = locked(&self.post.waiting);
                if waiting.events.is_empty() {
                    waiting.settle();
                }
                if let Some(event) = waiting.events.pop_front() {
                    return event;
                }
            }
            // It keeps one notice, so that what came since is not slept through.
            self.post.came.notified().await;
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        locked(&self.events.0.told).watchers.retain(|post| !Arc::ptr_eq(post, &self.post));
    }
}

/// Whose events are told: a session, and a layer of it.
#[derive(Clone, Debug)]
pub struct Teller {
    events: Events,
    uid: u32,
    session: SessionId,
    layer: Option<(LayerId, Arc<str>)>,
}

impl Teller {
    /// Of a session.
    pub fn new(events: Events, uid: u32, session: SessionId) -> Self {
        Self { events, uid, session, layer: None }
    }

    /// Of a layer of the session.
    pub fn of_layer(&self, layer: LayerId, name: &Arc<str>) -> Self {
        Self { layer: Some((layer, name.clone())), ..self.clone() }
    }

    /// Tells it.
    pub fn tell(&self, event: impl Into<Event>) {
        let layer = self.layer.as_ref();
        let event = Event {
            session: Some(self.session),
            layer: layer.map(|(number, _)| *number),
            layer_name: layer.map(|(_, name)| name.to_string()),
            ..event.into()
        };
        self.events.tell(self.uid, event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    const ALL: Scope = Scope { uid: None, session: None };

    fn events() -> Events {
        Events::new(Arc::new(ManualClock::default()))
    }

    fn of(events: &Events, uid: u32, session: u64) -> Teller {
        Teller::new(events.clone(), uid, SessionId(session))
    }

    async fn drain(watcher: &mut Watcher, count: usize) -> Vec<Arc<Event>> {
        let mut got = Vec::new();
        for _ in 0..count {
            got.push(watcher.next().await);
        }
        assert!(locked(&watcher.post.waiting).events.is_empty(), "there are more");
        got
    }

    #[tokio::test]
    async fn each_watcher_gets_what_it_may_see_in_order() {
        let events = events();
        of(&events, 7, 1).tell(EventKind::SessionClosed);
        let mut all = events.watch(ALL).unwrap();
        let mut own = events.watch(Scope { uid: Some(7), ..ALL }).unwrap();
        let mut one = events.watch(Scope { uid: Some(7), session: Some(SessionId(2)) }).unwrap();
        let name: Arc<str> = "fc".into();
        of(&events, 7, 1).tell(EventKind::SessionClosed);
        of(&events, 8, 2).of_layer(LayerId(3), &name).tell(EventKind::LayerClosed);
        of(&events, 7, 2).tell(EventKind::AlphaReached);
        let numbers = |got: Vec<Arc<Event>>| got.iter().map(|e| e.sequence.unwrap()).collect::<Vec<_>>();
        let got = drain(&mut all, 3).await;
        assert_eq!((got[1].layer, got[1].layer_name.as_deref()), (Some(LayerId(3)), Some("fc")));
        assert_eq!((got[0].session, got[0].layer), (Some(SessionId(1)), None));
        assert_eq!(numbers(got), [2, 3, 4]);
        assert_eq!(numbers(drain(&mut own, 2).await), [2, 4]);
        assert_eq!(numbers(drain(&mut one, 1).await), [4]);
        drop((all, own));
        assert_eq!((events.report().watchers, events.report().told), (1, 4));
    }

    #[tokio::test]
    async fn whoever_is_too_slow_is_told_how_many_are_missing_and_where() {
        let events = events();
        let mut slow = events.watch(ALL).unwrap();
        let teller = of(&events, 1, 1);
        for _ in 0..BUFFER + 5 {
            teller.tell(EventKind::AlphaReached);
        }
        assert_eq!(slow.next().await.sequence, Some(1));
        teller.tell(EventKind::SessionClosed);
        let got = drain(&mut slow, BUFFER + 1).await;
        assert_eq!(got[BUFFER - 1].kind, EventKind::Lost { count: 5 });
        assert_eq!(got[BUFFER].sequence, Some(BUFFER as u64 + 6));
        for _ in 0..BUFFER + 2 {
            teller.tell(EventKind::AlphaReached);
        }
        // Nothing comes after them, and it is told all the same.
        let got = drain(&mut slow, BUFFER).await;
        assert_eq!(got[0].kind, EventKind::AlphaReached);
        assert_eq!(slow.next().await.kind, EventKind::Lost { count: 2 });
        assert_eq!(events.report().lost, 7);
    }

    #[tokio::test]
    async fn a_watcher_that_waits_is_woken() {
        let events = events();
        let mut watcher = events.watch(ALL).unwrap();
        let waits = tokio::spawn(async move { watcher.next().await });
        tokio::task::yield_now().await;
        of(&events, 1, 1).tell(EventKind::SessionClosed);
        assert_eq!(waits.await.unwrap().kind, EventKind::SessionClosed);
    }

    #[test]
    fn steps_are_counted_whether_or_not_anybody_watches() {
        let events = events();
        let step = |from, to| EventKind::StateChanged { from, to, reason: String::new() };
        let teller = of(&events, 1, 1);
        teller.tell(step(SeedState::Dormant, SeedState::Loading));
        teller.tell(step(SeedState::Dormant, SeedState::Loading));
        teller.tell(step(SeedState::Loading, SeedState::Holding));
        let counts: Vec<_> = events.report().transitions.iter().map(|t| (t.from, t.to, t.count)).collect();
        assert_eq!(
            counts,
            [(SeedState::Dormant, SeedState::Loading, 2), (SeedState::Loading, SeedState::Holding, 1)]
        );
    }

    #[test]
    fn only_so_many_may_watch() {
        let events = events();
        let of = |uid: u32| events.watch(Scope { uid: Some(uid), ..ALL });
        let is_refused =
            |watch: Result<Watcher, ActorError>| matches!(watch, Err(ActorError::Watchers { .. }));
        let mut one: Vec<_> = (0..WATCHERS_OF_A_USER).map(|_| of(1).unwrap()).collect();
        assert!(is_refused(of(1)), "no more of one user");
        let users = (WATCHERS / WATCHERS_OF_A_USER) as u32;
        let mut all: Vec<_> = (2..=users)
            .flat_map(|uid| (0..WATCHERS_OF_A_USER).map(move |_| uid))
            .map(|uid| of(uid).unwrap())
            .collect();
        assert!(is_refused(of(99)), "no more of all users");
        let operators: Vec<_> = (0..OPERATORS).map(|_| events.watch(ALL).unwrap()).collect();
        assert!(is_refused(events.watch(ALL)), "operators have places of their own, and so many");
        one.pop();
        all.push(of(99).unwrap());
        drop(operators);
        assert!(events.watch(ALL).is_ok());
    }
}
