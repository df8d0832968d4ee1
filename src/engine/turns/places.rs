//! The places that passes run in, and the threads that wait for one.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::Thread,
    time::{Duration, Instant},
};

use smallvec::SmallVec;

use super::{
    Entrant,
    schedule::{BESIDE, Had, MemberId, Next, Schedule},
};

/// How turns are taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TurnsSettings {
    /// Passes that may run at a time, at least 1; as many again of users none of whose passes has a place.
    pub places: usize,
    /// How long a session may keep its place while others wait, and how much time it may save up while away.
    pub quantum: Duration,
    /// How much time users get beside others, by user id; those that are not listed weigh 1.
    pub weights: Vec<(u32, u32)>,
}

impl Default for TurnsSettings {
    /// A place for each processor, 2 ms, everybody alike.
    fn default() -> Self {
        let places = std::thread::available_parallelism().map_or(1, usize::from);
        Self { places, quantum: Duration::from_millis(2), weights: Vec::new() }
    }
}

/// How many passes run, and how many wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Occupancy {
    /// Passes that may run at a time; as many again may run beside them.
    pub places: u64,
    /// Passes that run, those beside the places too.
    pub running: u64,
    /// Passes that wait for one.
    pub waiting: u64,
}

/// The places of one device. One for all sessions.
#[derive(Debug)]
pub struct Turns {
    /// Places that are taken, and above them how many passes wait. Nobody takes or frees a place here without the lock
    /// while somebody waits, so that whoever has the lock and sees somebody waiting has the word to himself.
    word: AtomicU64,
    places: u64,
    weights: Vec<(u32, u32)>,
    queue: Mutex<Queue>,
    start: Instant,
}

#[derive(Debug)]
struct Queue {
    schedule: Schedule,
    seats: Vec<Option<Seat>>,
}

/// Since when a session has a place, however it came to it. Its thread writes this at every turn, and so it has a cache
/// line of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(super) struct HeldSince(AtomicU64);

impl HeldSince {
    /// In nanoseconds since the [`Turns`] began. What was written before [`begin`](Self::begin) is seen by whoever sees it.
    pub(super) fn since(&self) -> Option<u64> {
        self.0.load(Ordering::Acquire).checked_sub(1)
    }

    pub(super) fn begin(&self, now: u64) {
        self.0.store(now.saturating_add(1), Ordering::Release);
    }

    pub(super) fn end(&self) {
        self.0.store(0, Ordering::Release);
    }
}

/// A session's thread.
#[derive(Debug)]
struct Seat {
    held: Arc<HeldSince>,
    /// Set while it waits.
    thread: Option<Thread>,
}

impl Queue {
    /// Notes that this session has no place, and whether its thread, this one, waits for one. Under the lock, so that
    /// nobody decides meanwhile by what has changed.
    fn vacate(&mut self, member: MemberId, waits: bool) {
        if let Some(Some(seat)) = self.seats.get_mut(member.0) {
            seat.held.end();
            seat.thread = waits.then(std::thread::current);
        }
    }
}

const WAITING: u64 = 1 << 32;

fn waiting(word: u64) -> u64 {
    word >> 32
}

fn taken(word: u64) -> u64 {
    word & (WAITING - 1)
}

/// Threads to be woken once the lock is free.
type Woken = SmallVec<[Thread; 4]>;

impl Turns {
    /// Places that nobody has taken.
    pub fn new(settings: TurnsSettings) -> Arc<Self> {
        let quantum = u64::try_from(settings.quantum.as_nanos()).unwrap_or(u64::MAX);
        let places = (settings.places.max(1) as u64).min(WAITING / BESIDE - 1);
        Arc::new(Self {
            word: AtomicU64::new(0),
            places,
            weights: settings.weights,
            queue: Mutex::new(Queue { schedule: Schedule::new(quantum, places), seats: Vec::new() }),
            start: Instant::now(),
        })
    }

    /// Takes a session of this user in. It leaves when the entrant is dropped.
    pub fn join(self: &Arc<Self>, uid: u32) -> Entrant {
        let weight = self.weights.iter().find(|(listed, _)| *listed == uid).map_or(1, |(_, weight)| *weight);
        let held = Arc::<HeldSince>::default();
        let mut queue = self.lock();
        let member = queue.schedule.join(uid, weight.into(), self.ns(Instant::now()));
        if queue.seats.len() <= member.0 {
            queue.seats.resize_with(member.0 + 1, || None);
        }
        queue.seats[member.0] = Some(Seat { held: held.clone(), thread: None });
        drop(queue);
        Entrant::new(self.clone(), member, held)
    }

    /// How many passes run and wait.
    pub fn occupancy(&self) -> Occupancy {
        let word = self.word.load(Ordering::Relaxed);
        Occupancy { places: self.places, running: taken(word), waiting: waiting(word) }
    }

    /// Takes a place if there is one and nobody waits.
    pub(super) fn take_free(&self) -> bool {
        let one_more = |word| (waiting(word) == 0 && taken(word) < self.places).then_some(word + 1);
        self.word.fetch_update(Ordering::AcqRel, Ordering::Relaxed, one_more).is_ok()
    }

    /// Gives a place back if nobody waits for it.
    pub(super) fn free_unasked(&self) -> bool {
        let one_less = |word| (waiting(word) == 0).then(|| word - 1);
        self.word.fetch_update(Ordering::AcqRel, Ordering::Relaxed, one_less).is_ok()
    }

    /// Waits in line. This thread is woken once the place is there.
    pub(super) fn ask(&self, member: MemberId) {
        let now = self.ns(Instant::now());
        let mut queue = self.lock();
        queue.vacate(member, true);
        queue.schedule.ask(member, now);
        self.word.fetch_add(WAITING, Ordering::AcqRel);
        self.hand_out(queue, now);
    }

    /// A pass is over.
    pub(super) fn end(&self, member: MemberId, began: Instant, ended: Instant, more: bool) -> Next {
        let now = self.ns(ended);
        let mut queue = self.lock();
        let next = queue.schedule.end(member, self.ns(began), now, more);
        if next == Next::Keep {
            if let Some(Some(seat)) = queue.seats.get_mut(member.0) {
                seat.held.begin(now);
            }
        } else {
            queue.vacate(member, next == Next::FreeAndAsked);
            if next == Next::FreeAndAsked {
                self.word.fetch_add(WAITING, Ordering::AcqRel);
            }
            self.word.fetch_sub(1, Ordering::AcqRel);
        }
        self.hand_out(queue, now);
        next
    }

    /// Gives up a request, or a place that no pass has begun in.
    pub(super) fn step_back(&self, member: MemberId) {
        let now = self.ns(Instant::now());
        let mut queue = self.lock();
        let had = queue.schedule.step_back(member, now);
        queue.vacate(member, false);
        self.after(had, queue, now);
    }

    pub(super) fn leave(&self, member: MemberId) {
        let now = self.ns(Instant::now());
        let mut queue = self.lock();
        let had = queue.schedule.leave(member, now);
        queue.seats[member.0] = None;
        self.after(had, queue, now);
    }

    fn after(&self, had: Had, queue: MutexGuard<'_, Queue>, now: u64) {
        match had {
            Had::Nothing => return,
            Had::Request => self.word.fetch_sub(WAITING, Ordering::AcqRel),
            Had::Place => self.word.fetch_sub(1, Ordering::AcqRel),
        };
        self.hand_out(queue, now);
    }

    /// Fills free places, lets users without a place run beside them, and wakes whoever may run.
    fn hand_out(&self, mut queue: MutexGuard<'_, Queue>, now: u64) {
        let mut woken = Woken::new();
        loop {
            let word = self.word.load(Ordering::Acquire);
            let next = match taken(word) {
                _ if waiting(word) == 0 => None,
                taken if taken < self.places => queue.schedule.pick(now),
                taken if taken < BESIDE * self.places => {
                    let Queue { schedule, seats } = &mut *queue;
                    schedule.pick_beside(now, |member| seats.get(member.0)?.as_ref()?.held.since())
                }
                _ => None,
            };
            let Some(next) = next else { break };
            self.word.fetch_sub(WAITING - 1, Ordering::AcqRel);
            if let Some(Some(seat)) = queue.seats.get_mut(next.0) {
                seat.held.begin(now);
                woken.extend(seat.thread.take());
            }
        }
        drop(queue);
        for thread in woken {
            thread.unpark();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A moment, in nanoseconds since these turns began.
    pub(super) fn ns(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.start).as_nanos()).unwrap_or(u64::MAX)
    }
}
