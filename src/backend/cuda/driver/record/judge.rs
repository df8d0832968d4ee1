//! A judge of the order of calls.

use std::{collections::HashMap, ops::Range, thread::ThreadId};

use super::{
    super::{Address, Event, Replay, Stream},
    Call, Did, Uses,
    ranges::Ranges,
};

/// How much of each stream's work is known to be done: a number of works by stream.
type Clock = HashMap<Stream, usize>;

fn join(clock: &mut Clock, other: &Clock) {
    for (&stream, &done) in other {
        let known = clock.entry(stream).or_insert(0);
        *known = done.max(*known);
    }
}

/// A use of memory: by the n-th work of a stream.
struct Past {
    range: Range<Address>,
    stream: Stream,
    nth: usize,
    wrote: bool,
}

impl Past {
    fn is_within(&self, clock: &Clock) -> bool {
        clock.get(&self.stream).copied().unwrap_or(0) >= self.nth
    }
}

fn overlap(a: &Range<Address>, b: &Range<Address>) -> bool {
    a.start < b.end && b.start < a.end
}

/// What is wrong with the order of calls, in words; nothing where it is right.
///
/// Every use of memory must come after all writers that overlap it, and every writer after all users, by stream, by
/// events or because the caller has waited. What is read must be among `known`, or have been written; what was freed
/// must not be used. A work must not write what it reads. Within a capture its thread allocates, frees and waits for
/// nothing, nobody waits for all streams, and the stream is handed launches alone. Who updates a replay hands it over
/// before another does.
pub(in crate::backend::cuda) fn judge(log: &[Call], known: &[Range<Address>]) -> Vec<String> {
    let mut judge = Judge { written: Ranges::of(known), ..Judge::default() };
    for (at, call) in log.iter().enumerate() {
        judge.at = at;
        judge.hear(call);
    }
    judge.wrong
}

#[derive(Default)]
struct Judge {
    wrong: Vec<String>,
    /// The number of the call.
    at: usize,
    /// Uses that the host does not know to be done.
    past: Vec<Past>,
    written: Ranges,
    freed: Ranges,
    allocated: HashMap<Address, Range<Address>>,
    host: Clock,
    events: HashMap<Event, Clock>,
    /// How many works each stream was handed, and what is done before the next.
    streams: HashMap<Stream, (usize, Clock)>,
    capturing: HashMap<Stream, ThreadId>,
    /// Who updated a replay and has not handed it over.
    updating: HashMap<Replay, ThreadId>,
}

impl Judge {
    fn complain(&mut self, words: String) {
        self.wrong.push(format!("call {}: {words}", self.at));
    }

    fn hear(&mut self, Call { thread, did }: &Call) {
        self.hear_in_captures(*thread, did);
        match did {
            Did::Allocate(range) => {
                self.allocated.insert(range.start, range.clone());
                self.written.remove(range);
                self.freed.remove(range);
            }
            Did::Free(address) => self.free(*address),
            Did::Waited(stream) => {
                let clock = self.clock_of(*stream);
                self.host_knows(&clock);
            }
            Did::WaitedForAll => {
                let all: Clock = self.streams.iter().map(|(&stream, &(nth, _))| (stream, nth)).collect();
                self.host_knows(&all);
            }
            Did::Record(event, stream) => {
                let clock = self.clock_of(*stream);
                self.events.insert(*event, clock);
            }
            Did::Wait(stream, event) => match self.events.get(event) {
                Some(clock) => join(&mut self.streams.entry(*stream).or_default().1, clock),
                None => self.complain(format!("{event:?} was never recorded")),
            },
            Did::Reached(event) => match self.events.get(event).cloned() {
                Some(clock) => self.host_knows(&clock),
                None => self.complain(format!("{event:?} was never recorded")),
            },
            Did::Work(stream, uses) => self.work(*stream, uses),
            Did::Update(replay, _) | Did::Replay(replay, _) => {
                if self.updating.get(replay).is_some_and(|other| other != thread) {
                    self.complain(format!("{did:?} while another thread updates it"));
                }
                match did {
                    Did::Update(..) => self.updating.insert(*replay, *thread),
                    _ => self.updating.remove(replay),
                };
            }
            Did::BeginCapture(stream) => {
                self.capturing.insert(*stream, *thread);
            }
            Did::EndCapture(stream) => {
                self.capturing.remove(stream);
            }
            Did::HostMemory(_) | Did::Captured(_) => {}
        }
    }

    /// What must not be done in a capture.
    fn hear_in_captures(&mut self, thread: ThreadId, did: &Did) {
        let is_wrong = match did {
            Did::Allocate(_) | Did::Free(_) | Did::HostMemory(_) | Did::Reached(_) => {
                self.capturing.values().any(|other| *other == thread)
            }
            Did::Waited(stream) => {
                self.capturing.iter().any(|(other, owner)| *owner == thread || other == stream)
            }
            Did::WaitedForAll => !self.capturing.is_empty(),
            Did::Record(_, stream) | Did::Wait(stream, _) | Did::Work(stream, _) | Did::Replay(_, stream) => {
                self.capturing.contains_key(stream)
            }
            Did::Captured(stream) => self.capturing.get(stream) != Some(&thread),
            Did::BeginCapture(_) | Did::EndCapture(_) | Did::Update(..) => false,
        };
        if is_wrong {
            self.complain(format!("{did:?} within a capture"));
        }
    }

    /// All that is done once a stream has come as far as it was handed work.
    fn clock_of(&mut self, stream: Stream) -> Clock {
        let (nth, mut clock) = self.streams.entry(stream).or_default().clone();
        clock.insert(stream, nth);
        clock
    }

    fn host_knows(&mut self, clock: &Clock) {
        join(&mut self.host, clock);
        self.past.retain(|past| !past.is_within(&self.host));
    }

    fn free(&mut self, address: Address) {
        // One that was allocated before the log began is known by its start alone.
        let range = self.allocated.remove(&address).unwrap_or(address..address + 1);
        if let Some(past) = self.past.iter().find(|past| overlap(&past.range, &range)) {
            let stream = past.stream;
            self.complain(format!("{address:#x} is freed before {stream:?} is done with it"));
        }
        self.past.retain(|past| !overlap(&past.range, &range));
        self.written.remove(&range);
        self.freed.insert(&range);
    }

    fn work(&mut self, stream: Stream, Uses { reads, writes }: &Uses) {
        let (nth, clock) = self.streams.entry(stream).or_default();
        *nth += 1;
        join(clock, &self.host);
        let (nth, clock) = (*nth, clock.clone());
        for (range, writing) in reads.iter().map(|r| (r, false)).chain(writes.iter().map(|w| (w, true))) {
            let clash = self.past.iter().find(|past| {
                let is_before = past.stream == stream || past.is_within(&clock);
                (past.wrote || writing) && overlap(&past.range, range) && !is_before
            });
            if let Some(past) = clash {
                let (nth, other) = (past.nth, past.stream);
                self.complain(format!(
                    "{range:x?} on {stream:?} is not ordered after work {nth} of {other:?}"
                ));
            }
            if writing && reads.iter().any(|read| overlap(read, range)) {
                self.complain(format!("{range:x?} is read and written by one launch"));
            }
            if self.freed.meets(range) {
                self.complain(format!("{range:x?} is used after it was freed"));
            } else if !writing && !self.written.covers(range) {
                self.complain(format!("{range:x?} is read before anybody has written it"));
            }
        }
        writes.iter().for_each(|range| self.written.insert(range));
        let used = |wrote| move |range: &Range<Address>| Past { range: range.clone(), stream, nth, wrote };
        self.past.extend(reads.iter().map(used(false)));
        self.past.extend(writes.iter().map(used(true)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work(stream: u64, reads: &[Range<Address>], writes: &[Range<Address>]) -> Did {
        Did::Work(Stream(stream), Uses { reads: reads.to_vec(), writes: writes.to_vec() })
    }

    /// As if all were done by this thread.
    fn judged(log: &[Did], known: &[Range<Address>]) -> usize {
        let thread = std::thread::current().id();
        let calls: Vec<_> = log.iter().map(|did| Call { thread, did: did.clone() }).collect();
        judge(&calls, known).len()
    }

    fn wrong(log: &[Did]) -> usize {
        judged(log, &[])
    }

    #[test]
    #[expect(clippy::single_range_in_vec_init, reason = "memory is a list of ranges, often of one")]
    fn the_judge_finds_what_it_is_there_for() {
        let (a, b, e) = (Stream(1), Stream(2), Event(9));
        let write = || work(1, &[], &[0..64]);
        let read = || work(2, &[32..48], &[100..101]);
        assert_eq!(wrong(&[write(), read()]), 1, "two streams and nothing between them");
        assert_eq!(wrong(&[write(), Did::Record(e, a), Did::Wait(b, e), read()]), 0);
        assert_eq!(wrong(&[Did::Record(e, a), write(), Did::Wait(b, e), read()]), 1, "recorded too early");
        assert_eq!(wrong(&[write(), Did::Record(e, a), read(), Did::Wait(b, e)]), 1, "waited too late");
        assert_eq!(wrong(&[write(), Did::Waited(a), read()]), 0, "the host has waited");
        assert_eq!(wrong(&[write(), Did::Waited(b), read()]), 1, "it has waited for another");
        assert_eq!(wrong(&[write(), Did::WaitedForAll, read()]), 0, "it has waited for all");
        assert_eq!(wrong(&[write(), Did::Record(e, a), Did::Reached(e), read()]), 0, "the mark was reached");
        assert_eq!(wrong(&[Did::Record(e, a), write(), Did::Reached(e), read()]), 1, "it was set before");
        assert_eq!(wrong(&[Did::Wait(b, e)]), 1, "never recorded");
        assert_eq!(wrong(&[Did::Reached(e)]), 1, "never recorded");
        let through = [write(), Did::Record(e, a), Did::Wait(Stream(3), e), Did::Record(Event(8), Stream(3))];
        let through = [&through[..], &[Did::Wait(b, Event(8)), read()]].concat();
        assert_eq!(wrong(&through), 0, "by way of a third");
        let read_then_written = [write(), Did::Waited(a), read(), write()];
        assert_eq!(wrong(&read_then_written), 1, "written while it may still be read");
        assert_eq!(judged(&[work(1, &[0..8], &[])], &[]), 1, "never written");
        assert_eq!(judged(&[work(1, &[0..8], &[])], &[0..4, 4..8]), 0);
        assert_eq!(judged(&[work(1, &[0..8], &[7..9])], &[0..8]), 1, "in place");
    }

    #[test]
    #[expect(clippy::single_range_in_vec_init, reason = "memory is a list of ranges, often of one")]
    fn freed_memory_is_watched() {
        let a = Stream(1);
        let write = || work(1, &[], &[8..64]);
        assert_eq!(wrong(&[Did::Allocate(0..64), write(), Did::Free(0)]), 1, "freed while in use");
        assert_eq!(wrong(&[Did::Allocate(0..64), write(), Did::Waited(a), Did::Free(0)]), 0);
        let freed = [Did::Allocate(0..64), write(), Did::WaitedForAll, Did::Free(0)];
        assert_eq!(wrong(&[&freed[..], &[write()]].concat()), 1, "used after it was freed");
        let again = [&freed[..], &[Did::Allocate(0..32)]].concat();
        assert_eq!(wrong(&[&again[..], &[work(1, &[], &[8..16])]].concat()), 0, "it was allocated again");
        let stale = [&again[..], &[work(1, &[8..16], &[])]].concat();
        assert_eq!(wrong(&stale), 1, "what was there before is gone");
    }

    #[test]
    #[expect(clippy::single_range_in_vec_init, reason = "memory is a list of ranges, often of one")]
    fn captures_and_replays_are_watched() {
        let (a, b, e, replay) = (Stream(1), Stream(2), Event(9), Replay(7));
        let (begin, end) = (Did::BeginCapture(a), Did::EndCapture(a));
        let forbidden = [
            Did::Allocate(0..1),
            Did::Free(0),
            Did::HostMemory("register"),
            Did::Waited(b),
            Did::WaitedForAll,
            Did::Record(e, a),
            work(1, &[], &[0..1]),
        ];
        for did in forbidden {
            assert_eq!(wrong(&[begin.clone(), did.clone(), end.clone()]), 1, "{did:?}");
            assert_eq!(wrong(&[begin.clone(), end.clone(), did]), 0);
        }
        assert_eq!(wrong(&[begin.clone(), Did::Captured(a), work(2, &[], &[0..1]), end.clone()]), 0);
        assert_eq!(wrong(&[Did::Captured(a)]), 1, "nothing is being captured");

        let threads = [std::thread::current().id(), std::thread::spawn(|| ()).thread().id()];
        let by = |log: &[(usize, Did)]| {
            let call = |(n, did): &(usize, Did)| Call { thread: threads[*n], did: did.clone() };
            judge(&log.iter().map(call).collect::<Vec<_>>(), &[]).len()
        };
        let amid = |did| by(&[(0, begin.clone()), (1, did), (0, end.clone())]);
        assert_eq!(amid(Did::Allocate(0..1)), 0, "another thread may");
        assert_eq!(amid(Did::Waited(b)), 0);
        assert_eq!(amid(Did::WaitedForAll), 1, "nobody may");
        assert_eq!(amid(Did::Waited(a)), 1, "nobody may wait for it");
        assert_eq!(amid(Did::Captured(a)), 1, "it is another's capture");
        let (update, hand) = (Did::Update(replay, 0), Did::Replay(replay, a));
        let hands = |who: [usize; 4]| {
            by(&[
                (who[0], update.clone()),
                (who[1], hand.clone()),
                (who[2], update.clone()),
                (who[3], hand.clone()),
            ])
        };
        assert_eq!(hands([0, 0, 1, 1]), 0);
        assert_eq!(hands([0, 1, 1, 1]), 1, "updated by one, handed over by another");
    }
}
