//! Streams of a device that is the host: work in its order, marks between them, and some that are held back.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::super::{Address, Event, Function, RoutineArguments, RoutineSpec, Stream};

/// A launch.
#[derive(Clone, Debug)]
pub(super) enum Kept {
    /// Of a kernel, its arguments in words as its record is aligned.
    Kernel {
        function: Function,
        grid: u32,
        block: u32,
        arguments: Vec<u64>,
    },
    Routine(RoutineSpec, RoutineArguments),
}

/// What a stream does.
#[derive(Debug)]
pub(super) enum Work {
    Launch(Kept),
    Copy {
        to: Address,
        from: Address,
        bytes: usize,
    },
    /// A copy of bytes that were put aside.
    Write {
        to: Address,
        bytes: Vec<u8>,
    },
    Fill {
        to: Address,
        byte: u8,
        bytes: usize,
    },
}

#[derive(Debug)]
enum Item {
    Work(Work),
    /// The n-th time that an event is recorded.
    Record(Event, u64),
    Wait(Event, u64),
}

/// How often an event was recorded, and which time was reached last.
#[derive(Clone, Copy, Debug, Default)]
struct Mark {
    recorded: u64,
    reached: u64,
}

/// What streams have yet to do.
#[derive(Debug, Default)]
pub(super) struct Streams {
    /// By stream; in the order of their numbers, so that a test sees the same every time.
    lines: BTreeMap<u64, VecDeque<Item>>,
    /// How much the streams that are held back may do.
    held: BTreeMap<u64, usize>,
    marks: HashMap<Event, Mark>,
}

impl Streams {
    pub(super) fn push(&mut self, stream: Stream, work: Work) {
        self.lines.entry(stream.0).or_default().push_back(Item::Work(work));
    }

    pub(super) fn record(&mut self, event: Event, stream: Stream) {
        let mark = self.marks.entry(event).or_default();
        mark.recorded += 1;
        self.lines.entry(stream.0).or_default().push_back(Item::Record(event, mark.recorded));
    }

    pub(super) fn wait(&mut self, stream: Stream, event: Event) {
        let recorded = self.marks.entry(event).or_default().recorded;
        self.lines.entry(stream.0).or_default().push_back(Item::Wait(event, recorded));
    }

    pub(super) fn reached(&self, event: Event) -> bool {
        self.marks.get(&event).is_none_or(|mark| mark.reached >= mark.recorded)
    }

    /// Whether a stream, or all, have nothing left to do.
    pub(super) fn is_idle(&self, stream: Option<Stream>) -> bool {
        match stream {
            Some(stream) => self.lines.get(&stream.0).is_none_or(VecDeque::is_empty),
            None => self.lines.values().all(VecDeque::is_empty),
        }
    }

    pub(super) fn hold(&mut self, stream: Stream) {
        self.held.insert(stream.0, 0);
    }

    /// Lets a stream that is held back do so much more.
    pub(super) fn allow(&mut self, stream: Stream, items: usize) {
        *self.held.entry(stream.0).or_default() += items;
    }

    pub(super) fn let_go(&mut self, stream: Stream) {
        self.held.remove(&stream.0);
    }

    /// Does all that may be done.
    pub(super) fn go_on(&mut self, mut work: impl FnMut(&Work)) {
        let mut has_moved = true;
        while has_moved {
            has_moved = false;
            for (stream, line) in &mut self.lines {
                while let Some(item) = line.front() {
                    let mut allowed = self.held.get_mut(stream);
                    if allowed.as_ref().is_some_and(|allowed| **allowed == 0) {
                        break;
                    }
                    match item {
                        Item::Work(item) => work(item),
                        Item::Record(event, nth) => {
                            let mark = self.marks.entry(*event).or_default();
                            mark.reached = mark.reached.max(*nth);
                        }
                        Item::Wait(event, nth) => {
                            if self.marks.get(event).is_some_and(|mark| mark.reached < *nth) {
                                break;
                            }
                        }
                    }
                    if let Some(allowed) = &mut allowed {
                        **allowed -= 1;
                    }
                    line.pop_front();
                    has_moved = true;
                }
            }
        }
    }
}
