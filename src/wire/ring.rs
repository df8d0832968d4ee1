//! Rings: descriptors that pass from one side to the other in order.
//!
//! Each ring has one producer and one consumer. Each keeps its own counter to itself and publishes it, and
//! takes the other's only after checking that it can be true.

use std::{
    marker::PhantomData,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{Arena, DESCRIPTOR_BYTES, Descriptor, RING_ENTRIES, WireError, arena::Counter};
use crate::failpoint::{self, Failpoint};

/// Where one ring lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct RingPlace {
    pub(super) offset: usize,
    pub(super) tail: Counter,
    pub(super) head: Counter,
}

impl RingPlace {
    pub(super) fn submissions(arena: &Arena) -> Self {
        let offset = arena.layout().submissions_offset as usize;
        Self { offset, tail: Counter::SubmissionTail, head: Counter::SubmissionHead }
    }

    pub(super) fn completions(arena: &Arena) -> Self {
        let offset = arena.layout().completions_offset as usize;
        Self { offset, tail: Counter::CompletionTail, head: Counter::CompletionHead }
    }

    fn slot<'a>(&self, arena: &'a Arena, counter: u64) -> &'a [AtomicU64] {
        let index = (counter % RING_ENTRIES as u64) as usize;
        arena.words(self.offset + index * DESCRIPTOR_BYTES, DESCRIPTOR_BYTES / 8)
    }
}

/// The end of a ring that publishes.
#[derive(Debug)]
pub(super) struct Producer<D> {
    arena: Arc<Arena>,
    place: RingPlace,
    tail: u64,
    kind: PhantomData<D>,
}

impl<D: Descriptor> Producer<D> {
    pub(super) fn new(arena: Arc<Arena>, place: RingPlace) -> Self {
        Self { arena, place, tail: 0, kind: PhantomData }
    }

    /// Publishes one descriptor. `Ring` when the consumer's counter cannot be true, `RingFull` when there
    /// is no room.
    pub(super) fn push(&mut self, descriptor: &D) -> Result<(), WireError> {
        let head = self.arena.counter(self.place.head).load(Ordering::Acquire);
        let waiting = self.tail.wrapping_sub(head);
        if waiting > RING_ENTRIES as u64 {
            return Err(WireError::Ring { ring: D::RING, head, tail: self.tail });
        }
        if waiting == RING_ENTRIES as u64 {
            return Err(WireError::RingFull { ring: D::RING });
        }
        for (word, value) in self.place.slot(&self.arena, self.tail).iter().zip(descriptor.to_words()) {
            word.store(value, Ordering::Relaxed);
        }
        failpoint::reached(Failpoint::CompletionWritten);
        self.tail = self.tail.wrapping_add(1);
        self.arena.counter(self.place.tail).store(self.tail, Ordering::Release);
        Ok(())
    }
}

/// The end of a ring that consumes.
#[derive(Debug)]
pub(super) struct Consumer<D> {
    arena: Arc<Arena>,
    place: RingPlace,
    head: u64,
    kind: PhantomData<D>,
}

impl<D: Descriptor> Consumer<D> {
    pub(super) fn new(arena: Arc<Arena>, place: RingPlace) -> Self {
        Self { arena, place, head: 0, kind: PhantomData }
    }

    /// How many descriptors were taken.
    pub(super) fn taken(&self) -> u64 {
        self.head
    }

    /// Whether the producer says that there is another descriptor.
    pub(super) fn has_next(&self) -> bool {
        self.arena.counter(self.place.tail).load(Ordering::Relaxed) != self.head
    }

    /// A copy of the next descriptor, if there is one. `Ring` when the producer's counter cannot be true.
    pub(super) fn pop(&mut self) -> Result<Option<D>, WireError> {
        let tail = self.arena.counter(self.place.tail).load(Ordering::Acquire);
        let waiting = tail.wrapping_sub(self.head);
        if waiting > RING_ENTRIES as u64 {
            return Err(WireError::Ring { ring: D::RING, head: self.head, tail });
        }
        if waiting == 0 {
            return Ok(None);
        }
        let mut words = [0; DESCRIPTOR_BYTES / 8];
        for (value, word) in words.iter_mut().zip(self.place.slot(&self.arena, self.head)) {
            *value = word.load(Ordering::Relaxed);
        }
        failpoint::reached(Failpoint::SubmissionCopied);
        self.head = self.head.wrapping_add(1);
        self.arena.counter(self.place.head).store(self.head, Ordering::Release);
        Ok(Some(D::from_words(words)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Completion, Submission};

    fn ends() -> (Arc<Arena>, Producer<Submission>, Consumer<Submission>) {
        let arena = Arc::new(Arena::create(1 << 20).unwrap());
        let place = RingPlace::submissions(&arena);
        (arena.clone(), Producer::new(arena.clone(), place), Consumer::new(arena, place))
    }

    fn numbered(sequence: u64) -> Submission {
        Submission { sequence, ..Submission::default() }
    }

    #[test]
    fn descriptors_arrive_in_order_and_a_full_ring_says_so() {
        let (_arena, mut producer, mut consumer) = ends();
        assert!(consumer.pop().unwrap().is_none() && !consumer.has_next());
        for round in 0..3 {
            for i in 0..RING_ENTRIES as u64 {
                producer.push(&numbered(round * 100 + i)).unwrap();
            }
            assert!(matches!(producer.push(&numbered(0)), Err(WireError::RingFull { .. })));
            for i in 0..RING_ENTRIES as u64 {
                assert!(consumer.has_next());
                assert_eq!(consumer.pop().unwrap().unwrap().sequence, round * 100 + i);
            }
            assert!(consumer.pop().unwrap().is_none());
        }
    }

    #[test]
    fn a_lying_tail_is_an_error_and_nothing_is_read() {
        let (arena, mut producer, mut consumer) = ends();
        producer.push(&numbered(1)).unwrap();
        consumer.pop().unwrap();
        for lie in [0, 1 + RING_ENTRIES as u64 + 1, u64::MAX] {
            arena.counter(Counter::SubmissionTail).store(lie, Ordering::Relaxed);
            assert!(matches!(consumer.pop(), Err(WireError::Ring { .. })), "{lie}");
        }
    }

    #[test]
    fn a_lying_head_is_an_error() {
        let (arena, mut producer, _consumer) = ends();
        for lie in [1, u64::MAX] {
            arena.counter(Counter::SubmissionHead).store(lie, Ordering::Relaxed);
            let pushed = producer.push(&numbered(1));
            // A head of u64::MAX reads as one descriptor waiting before the first: it can be told apart
            // only while counters are young, and harms nobody but the liar.
            assert!(matches!(pushed, Err(WireError::Ring { .. })) || lie == u64::MAX, "{lie}");
        }
    }

    #[test]
    fn threads_on_both_ends_lose_nothing() {
        let arena = Arc::new(Arena::create(1 << 20).unwrap());
        let place = RingPlace::completions(&arena);
        let mut producer = Producer::<Completion>::new(arena.clone(), place);
        let mut consumer = Consumer::<Completion>::new(arena, place);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for sequence in 0..20_000 {
                    let completion = Completion { sequence, ticket: !sequence, ..Completion::default() };
                    while producer.push(&completion).is_err() {
                        std::thread::yield_now();
                    }
                }
            });
            for sequence in 0..20_000 {
                let completion = loop {
                    if let Some(completion) = consumer.pop().unwrap() {
                        break completion;
                    }
                    std::thread::yield_now();
                };
                assert_eq!((completion.sequence, completion.ticket), (sequence, !sequence));
            }
        });
    }
}
