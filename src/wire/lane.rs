//! A lane: one side's ends of both rings, and its doorbell.

use std::{
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{Ordering, fence},
    },
    time::{Duration, Instant},
};

use super::{
    Arena, ArenaLayout, Completion, Descriptor, Doorbell, Rung, Submission, Waker, WireError,
    arena::Counter,
    ring::{Consumer, Producer, RingPlace},
    spin::Looking,
};
use crate::failpoint::{self, Failpoint};

/// One side of a session's data path: publishes `Out`, consumes `In`. Belongs to one thread at a time.
#[derive(Debug)]
pub struct Lane<Out, In> {
    arena: Arc<Arena>,
    producer: Producer<Out>,
    consumer: Consumer<In>,
    doorbell: Doorbell,
    asleep: Counter,
    peer_asleep: Counter,
}

/// The daemon's side.
pub type DaemonLane = Lane<Completion, Submission>;
/// The client's side.
pub type ClientLane = Lane<Submission, Completion>;

/// What ended a lane's wait.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Wake<In> {
    /// A descriptor, copied out of shared memory and not yet checked.
    Item(In),
    /// A [`Waker`] was used.
    Woken,
    /// The other side is gone.
    Gone,
    /// Nothing came in time.
    TimedOut,
}

impl DaemonLane {
    /// A new arena with its lane, and the client's end of the doorbell: send the arena's file and that end
    /// with the hello's reply, then drop the end, or the client's death goes unnoticed.
    ///
    /// # Errors
    /// [`WireError::ArenaSize`]; [`WireError::System`] when the system has no memory or descriptors left.
    pub fn serve(arena_bytes: u64) -> Result<(Self, OwnedFd), WireError> {
        let arena = Arc::new(Arena::create(arena_bytes)?);
        let (doorbell, theirs) = Doorbell::pair()?;
        let lane = Self {
            producer: Producer::new(arena.clone(), RingPlace::completions(&arena)),
            consumer: Consumer::new(arena.clone(), RingPlace::submissions(&arena)),
            arena,
            doorbell,
            asleep: Counter::DaemonSleeping,
            peer_asleep: Counter::ClientSleeping,
        };
        Ok((lane, theirs))
    }

    /// Whether what the submission that was taken last reads is there, in a session whose tensors lie on a GPU: the
    /// client's streams say so when they come to it.
    pub fn is_ready(&self) -> bool {
        let taken = self.consumer.taken();
        taken.checked_sub(1).is_none_or(|last| self.arena.ready(last).load(Ordering::Acquire) >= taken)
    }

    /// How many submissions were taken.
    pub fn taken(&self) -> u64 {
        self.consumer.taken()
    }

    /// Lets the client's streams go on that wait for the submission that was taken last. `rest` is what of the client's
    /// own output goes into the layer's.
    pub fn let_streams_go_on(&self, rest: f32) {
        let taken = self.consumer.taken();
        if let Some(last) = taken.checked_sub(1) {
            self.arena.rest(last).store(rest.to_bits().into(), Ordering::Relaxed);
            self.arena.done(last).store(taken, Ordering::Release);
        }
    }
}

impl ClientLane {
    /// The client's lane over what came with the hello's reply.
    ///
    /// # Errors
    /// [`WireError::Memory`] when the arena is not what was announced; [`WireError::System`].
    pub fn join(arena: OwnedFd, doorbell: OwnedFd, layout: &ArenaLayout) -> Result<Self, WireError> {
        let arena = Arc::new(Arena::open(arena, layout)?);
        Ok(Self {
            producer: Producer::new(arena.clone(), RingPlace::submissions(&arena)),
            consumer: Consumer::new(arena.clone(), RingPlace::completions(&arena)),
            arena,
            doorbell: Doorbell::new(doorbell)?,
            asleep: Counter::ClientSleeping,
            peer_asleep: Counter::DaemonSleeping,
        })
    }
}

#[cfg(test)]
impl ClientLane {
    /// Says that there is a submission more than there is, or takes that back.
    pub fn claim_next(&self, claims: bool) {
        let tail = self.arena.counter(Counter::SubmissionTail);
        if claims {
            tail.fetch_add(1, Ordering::AcqRel)
        } else {
            tail.fetch_sub(1, Ordering::AcqRel)
        };
    }
}

impl<Out: Descriptor, In: Descriptor> Lane<Out, In> {
    /// The shared memory.
    pub fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    /// What wakes this lane's thread from elsewhere in the process.
    pub fn waker(&self) -> Waker {
        self.doorbell.waker()
    }

    /// Publishes a descriptor and wakes the other side if it sleeps. Never blocks.
    ///
    /// # Errors
    /// [`WireError::Closed`] when the other side is gone; [`WireError::Ring`] and [`WireError::RingFull`]
    /// when it does not keep to the protocol. The session is over after each of them.
    pub fn publish(&mut self, descriptor: &Out) -> Result<(), WireError> {
        self.producer.push(descriptor)?;
        failpoint::reached(Failpoint::CompletionPublished);
        // Either we see that the other side is about to sleep, or it sees our descriptor when it looks
        // once more before it does: this fence and the one in `wait` forbid that both miss.
        fence(Ordering::SeqCst);
        if self.arena.counter(self.peer_asleep).load(Ordering::Relaxed) != 0 {
            self.doorbell.ring()?;
        }
        Ok(())
    }

    /// Whether another descriptor is there, by what the other side says: [`poll`](Self::poll) believes nothing.
    pub fn has_next(&self) -> bool {
        self.consumer.has_next()
    }

    /// Whether the other side is gone. What it published before it went may still be unread.
    pub fn is_gone(&self) -> bool {
        self.doorbell.is_gone()
    }

    /// A descriptor that is there already.
    ///
    /// # Errors
    /// [`WireError::Ring`] when the other side's counter cannot be true.
    pub fn poll(&mut self) -> Result<Option<In>, WireError> {
        self.consumer.pop()
    }

    /// The next descriptor: spins for `spin`, then sleeps until the other side rings, a [`Waker`] is used,
    /// or `timeout` passes; without one, for as long as it takes.
    ///
    /// While descriptors keep coming, a waker's call is not seen here: look at what it announces between two
    /// descriptors.
    ///
    /// # Errors
    /// [`WireError::Ring`] when the other side's counter cannot be true; [`WireError::System`].
    pub fn wait(&mut self, spin: Duration, timeout: Option<Duration>) -> Result<Wake<In>, WireError> {
        if let Some(item) = self.consumer.pop()? {
            return Ok(Wake::Item(item));
        }
        if let Some(looking) = (!spin.is_zero()).then(Looking::begin).flatten() {
            let until = Instant::now() + spin;
            while Instant::now() < until {
                for _ in 0..32 {
                    std::hint::spin_loop();
                    if let Some(item) = self.consumer.pop()? {
                        return Ok(Wake::Item(item));
                    }
                }
            }
            drop(looking);
        }
        let wake_until = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let asleep = self.arena.clone();
        let asleep = asleep.counter(self.asleep);
        loop {
            asleep.store(1, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            if let Some(item) = self.consumer.pop()? {
                asleep.store(0, Ordering::Relaxed);
                return Ok(Wake::Item(item));
            }
            let left = wake_until.map(|until| until.saturating_duration_since(Instant::now()));
            let rung = self.doorbell.wait(left)?;
            // A descriptor that was published before its side died still counts.
            if let Some(item) = self.consumer.pop()? {
                asleep.store(0, Ordering::Relaxed);
                return Ok(Wake::Item(item));
            }
            let wake = match rung {
                Rung::Bell => continue,
                Rung::Woken => Wake::Woken,
                Rung::Gone => Wake::Gone,
                Rung::TimedOut => Wake::TimedOut,
            };
            asleep.store(0, Ordering::Relaxed);
            return Ok(wake);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lanes() -> (DaemonLane, ClientLane) {
        let (daemon, doorbell) = DaemonLane::serve(1 << 20).unwrap();
        let file = daemon.arena().file().try_clone_to_owned().unwrap();
        let client = ClientLane::join(file, doorbell, daemon.arena().layout()).unwrap();
        (daemon, client)
    }

    fn echo(mut daemon: DaemonLane, spin: Duration) -> u64 {
        let mut served = 0;
        loop {
            match daemon.wait(spin, None).unwrap() {
                Wake::Item(submission) => {
                    served += 1;
                    let sequence = submission.sequence;
                    daemon.publish(&Completion { sequence, ..Completion::default() }).unwrap();
                }
                Wake::Gone => return served,
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn every_submission_is_answered_asleep_or_awake() {
        for (daemon_spin, client_spin) in [(0, 0), (50, 0), (0, 50), (50, 50)]
            .map(|(a, b)| (Duration::from_micros(a), Duration::from_micros(b)))
        {
            let (daemon, mut client) = lanes();
            let daemon = std::thread::spawn(move || echo(daemon, daemon_spin));
            for sequence in 0..2_000 {
                client.publish(&Submission { sequence, ..Submission::default() }).unwrap();
                match client.wait(client_spin, None).unwrap() {
                    Wake::Item(completion) => assert_eq!(completion.sequence, sequence),
                    other => panic!("{other:?}"),
                }
            }
            drop(client);
            assert_eq!(daemon.join().unwrap(), 2_000);
        }
    }

    #[test]
    fn the_death_of_either_side_ends_the_others_wait() {
        let (daemon, mut client) = lanes();
        drop(daemon);
        assert_eq!(client.wait(Duration::ZERO, None).unwrap(), Wake::Gone);

        let (mut daemon, mut client) = lanes();
        client.publish(&Submission::default()).unwrap();
        assert!(daemon.has_next() && !daemon.is_gone());
        drop(client);
        assert!(daemon.has_next() && daemon.is_gone());
        assert!(
            matches!(daemon.wait(Duration::ZERO, None).unwrap(), Wake::Item(_)),
            "published before it died"
        );
        assert_eq!(daemon.wait(Duration::ZERO, None).unwrap(), Wake::Gone);
    }

    #[test]
    fn a_submission_is_ready_when_its_word_says_so() {
        let (mut daemon, mut client) = lanes();
        assert!(daemon.is_ready(), "none was taken");
        for sequence in 0..200 {
            client.publish(&Submission { sequence, ..Submission::default() }).unwrap();
            assert!(matches!(daemon.wait(Duration::ZERO, None).unwrap(), Wake::Item(_)));
            assert!(!daemon.is_ready(), "the word is of an earlier one");
            client.arena().set_ready(sequence);
            assert!(daemon.is_ready() && client.arena().done_and_rest(sequence).0 <= sequence);
            daemon.let_streams_go_on(0.25);
            assert_eq!(client.arena().done_and_rest(sequence), (sequence + 1, 0.25));
            daemon.publish(&Completion { sequence, ..Completion::default() }).unwrap();
            assert!(matches!(client.wait(Duration::ZERO, None).unwrap(), Wake::Item(_)));
        }
    }

    #[test]
    fn a_waker_and_a_timeout_end_a_wait() {
        let (mut daemon, _client) = lanes();
        daemon.waker().wake();
        assert_eq!(daemon.wait(Duration::ZERO, None).unwrap(), Wake::Woken);
        assert_eq!(daemon.wait(Duration::ZERO, Some(Duration::ZERO)).unwrap(), Wake::TimedOut);
    }

    #[test]
    fn a_lying_client_ends_with_an_error_of_its_own_session() {
        let (mut daemon, client) = lanes();
        client.arena().counter(Counter::SubmissionTail).store(1 << 40, Ordering::Relaxed);
        assert!(matches!(daemon.wait(Duration::ZERO, None), Err(WireError::Ring { .. })));
    }
}
