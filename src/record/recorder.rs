//! The thread that writes records, and what it is handed them through.
//!
//! Whoever has a failing pass at hand asks for a [`Place`] first, which takes a short lock and copies nothing; then copies
//! what the pass was given and hands it over. Neither waits for the disk: where the writer is behind, the record is left
//! out and counted.

use std::{
    fmt,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::{
    Direction, MAX_BYTES, Record, RecordError,
    allowance::{Allowance, Kind},
    folder::{Folder, Used},
};
use crate::{clock::Clock, digest::Digest, telemetry::Counter};

/// Records that may wait for the writer.
const QUEUE: usize = 8;

/// Bytes that records may hold together which wait for a part of theirs: it may never come, and others fail too.
const MAX_LATE_BYTES: u64 = MAX_BYTES / 4;

/// How often the log tells of records that were left out.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// Where records go, and how many.
#[derive(Clone, Debug)]
pub struct RecorderOptions {
    /// The folder. Made if it is missing.
    pub folder: PathBuf,
    /// The most bytes that its files may take together, those of the user at hand counted twice: one user's failures
    /// leave room for another's. Nothing is ever deleted: what nobody has looked at yet must not make room for what
    /// failed later, mostly for the same reason.
    pub max_bytes: u64,
}

/// Why a failing pass was not recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// The same kernel has failed in the same way and direction often enough.
    Repeated,
    /// The writer was behind.
    Busy,
    /// It would have more bytes than a record may have.
    Large,
    /// The folder is full, or the user has the share of one.
    Full,
    /// The disk did not take it.
    Disk,
    /// What the pass was given was not to be had any more.
    Lost,
}

impl Dropped {
    /// Every reason, in the order they are told.
    pub const ALL: [Self; 6] = [Self::Repeated, Self::Busy, Self::Large, Self::Full, Self::Disk, Self::Lost];

    /// The reason as a metric's label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Repeated => "repeated",
            Self::Busy => "busy",
            Self::Large => "large",
            Self::Full => "full",
            Self::Disk => "disk",
            Self::Lost => "lost",
        }
    }
}

/// What became of failing passes since the daemon started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Records written.
    pub written: u64,
    /// Failing passes that were not recorded, by reason as in [`Dropped::ALL`].
    pub dropped: [u64; Dropped::ALL.len()],
}

enum Message {
    Write(Box<Record>, Place),
    /// Something was left out.
    Look,
    Stop,
}

/// Counted by whoever leaves something out.
#[derive(Debug, Default)]
struct Tally {
    written: Counter,
    dropped: [Counter; Dropped::ALL.len()],
    /// Bytes of records that are copied and not yet written.
    waiting_bytes: AtomicU64,
    /// Those of them that wait for a part of theirs.
    late_bytes: AtomicU64,
    /// Whether the writer is to look at the counts and has not yet.
    is_told: AtomicBool,
}

impl Tally {
    fn dropped(&self) -> u64 {
        self.dropped.iter().map(Counter::get).sum()
    }
}

/// Takes failing passes and has them written.
pub struct Recorder {
    queue: Sender<Message>,
    tally: Arc<Tally>,
    allowance: Arc<Mutex<Allowance>>,
    clock: Arc<dyn Clock>,
    done: Receiver<()>,
    /// Absent in tests of what happens while nobody writes.
    _thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Recorder({:?})", self.counts())
    }
}

impl Recorder {
    /// Makes the folder and starts the writer.
    ///
    /// Blocking: looks through the folder.
    ///
    /// # Errors
    /// [`RecordError::Folder`] where it cannot be written to, [`RecordError::Thread`].
    pub fn start(options: RecorderOptions, clock: Arc<dyn Clock>) -> Result<Arc<Self>, RecordError> {
        let folder = Folder::open(&options.folder)?;
        let (queue, mailbox) = bounded(QUEUE);
        let (ended, done) = bounded(1);
        let tally = Arc::<Tally>::default();
        let max_bytes = options.max_bytes;
        let writer = Writer { folder, max_bytes, tally: tally.clone(), told: 0, trouble: None };
        let builder = std::thread::Builder::new().name("kasmina-records".to_owned());
        let thread = builder.spawn(move || {
            writer.run(&mailbox);
            // Nobody may wait for it.
            let _ = ended.send(());
        });
        let _thread = Some(thread.map_err(|source| RecordError::Thread { source })?);
        let allowance = Arc::default();
        Ok(Arc::new(Self { queue, tally, allowance, clock, done, _thread }))
    }

    /// A place for a user's record of so many bytes, if the failure is to be recorded and there is room for it.
    ///
    /// Never waits for the writer.
    pub fn place(
        &self,
        uid: u32,
        digest: Digest,
        code: &'static str,
        direction: Direction,
        bytes: u64,
    ) -> Option<Place> {
        let (kind, at) = ((uid, digest, code, direction), self.clock.now());
        let admitted = match bytes {
            _ if bytes > MAX_BYTES => Err(Dropped::Large),
            _ if self.queue.is_full() => Err(Dropped::Busy),
            _ => self.allowance.lock().unwrap_or_else(PoisonError::into_inner).admit(kind, at),
        };
        if let Err(why) = admitted {
            leave_out(&self.queue, &self.tally, why);
            return None;
        }
        // One that is dropped gives back what it has taken so far.
        let mut place = Place {
            queue: self.queue.clone(),
            tally: self.tally.clone(),
            allowance: self.allowance.clone(),
            kind,
            at,
            bytes: 0,
            late_bytes: 0,
            outcome: Err(Dropped::Busy),
        };
        take(&self.tally.waiting_bytes, bytes, MAX_BYTES)?;
        (place.bytes, place.outcome) = (bytes, Err(Dropped::Lost));
        Some(place)
    }

    /// Counts a failing pass of which nothing can be recorded any more.
    pub fn lose(&self) {
        leave_out(&self.queue, &self.tally, Dropped::Lost);
    }

    /// What has become of failing passes so far.
    pub fn counts(&self) -> Counts {
        let dropped = std::array::from_fn(|n| self.tally.dropped[n].get());
        Counts { written: self.tally.written.get(), dropped }
    }

    /// The calendar's time, for headers.
    pub fn unix_ms(&self) -> i64 {
        self.clock.unix_ms()
    }

    /// Has everything written that was handed over, and ends the writer.
    ///
    /// Blocking: no longer than `patience`. A disk that hangs must not keep the daemon from leaving.
    pub fn close(&self, patience: Duration) {
        let until = Instant::now() + patience;
        if self.queue.send_deadline(Message::Stop, until).is_err() || self.done.recv_deadline(until).is_err()
        {
            tracing::warn!("left with records of failing passes unwritten");
        }
    }
}

fn leave_out(queue: &Sender<Message>, tally: &Tally, why: Dropped) {
    tally.dropped[why as usize].increment();
    // Where the queue is full the writer looks when it comes to the end of it.
    if !tally.is_told.swap(true, Ordering::AcqRel) && queue.try_send(Message::Look).is_err() {
        tally.is_told.store(false, Ordering::Release);
    }
}

/// Adds to a sum that is not to pass a limit.
fn take(sum: &AtomicU64, bytes: u64, limit: u64) -> Option<()> {
    let more = |held: u64| held.checked_add(bytes).filter(|&sum| sum <= limit);
    sum.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).ok().map(drop)
}

/// Room for one record. What became of it is counted when it is dropped: without a record it was lost.
#[derive(Debug)]
pub struct Place {
    queue: Sender<Message>,
    tally: Arc<Tally>,
    allowance: Arc<Mutex<Allowance>>,
    kind: Kind,
    /// When it was given.
    at: Instant,
    bytes: u64,
    late_bytes: u64,
    outcome: Result<(), Dropped>,
}

impl Place {
    /// Keeps it for a record that waits for a part of its own, which may never come: `None`, and counted, where such
    /// records hold as much already as they may.
    pub fn wait(mut self) -> Option<Self> {
        self.outcome = Err(Dropped::Busy);
        take(&self.tally.late_bytes, self.bytes, MAX_LATE_BYTES)?;
        (self.late_bytes, self.outcome) = (self.bytes, Err(Dropped::Lost));
        Some(self)
    }

    /// Hands the record over.
    pub fn hand(self, record: Record) {
        let queue = self.queue.clone();
        // Places are given while the queue has one, by several lanes at a time: it may be taken by now.
        if let Err(refused) = queue.try_send(Message::Write(Box::new(record), self))
            && let Message::Write(_, mut place) = refused.into_inner()
        {
            place.outcome = Err(Dropped::Busy);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.tally.waiting_bytes.fetch_sub(self.bytes, Ordering::AcqRel);
        self.tally.late_bytes.fetch_sub(self.late_bytes, Ordering::AcqRel);
        let mut allowance = self.allowance.lock().unwrap_or_else(PoisonError::into_inner);
        allowance.settle(self.kind, self.at, self.outcome);
        drop(allowance);
        match self.outcome {
            Ok(()) => self.tally.written.increment(),
            Err(why) => leave_out(&self.queue, &self.tally, why),
        }
    }
}

struct Writer {
    folder: Folder,
    max_bytes: u64,
    tally: Arc<Tally>,
    /// Failing passes that the log has told were left out.
    told: u64,
    /// What the system said last when it did not take one, until that is told.
    trouble: Option<String>,
}

impl Writer {
    fn run(mut self, mailbox: &Receiver<Message>) {
        // When the log may tell again of what was left out; `None` while it has nothing to tell.
        let mut tell_at: Option<Instant> = None;
        let mut told_at: Option<Instant> = None;
        loop {
            let message = match tell_at {
                None => mailbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(at) => mailbox.recv_deadline(at),
            };
            match message {
                Ok(Message::Write(record, mut place)) => {
                    place.outcome = self.write(&record);
                    drop(place);
                }
                Ok(Message::Look) | Err(RecvTimeoutError::Timeout) => {}
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => break,
            }
            self.tally.is_told.store(false, Ordering::Release);
            let now = Instant::now();
            let may_tell = told_at.is_none_or(|at| now >= at + TELL_EVERY);
            if self.tally.dropped() > self.told && may_tell {
                self.tell();
                told_at = Some(now);
            }
            let is_behind = self.tally.dropped() > self.told;
            tell_at = told_at.filter(|_| is_behind).map(|at| at + TELL_EVERY);
        }
        if self.tally.dropped() > self.told {
            self.tell();
        }
    }

    fn write(&mut self, record: &Record) -> Result<(), Dropped> {
        let header = &record.header;
        let used = self.folder.used_bytes(header.uid);
        let Used { all, own } = used.map_err(|error| self.fail(error.to_string()))?;
        if all.saturating_add(own).saturating_add(record.file_bytes()) > self.max_bytes {
            return Err(Dropped::Full);
        }
        let path = self.folder.write(record).map_err(|error| self.fail(error.to_string()))?;
        tracing::warn!(
            file = %path.display(),
            kernel = %header.kernel,
            session = %header.session,
            layer = %header.layer,
            seed = %header.seed,
            code = header.code,
            direction = %header.direction,
            "a failing pass was recorded",
        );
        Ok(())
    }

    fn fail(&mut self, trouble: String) -> Dropped {
        self.trouble = Some(trouble);
        Dropped::Disk
    }

    /// Tells what was left out since it was told last.
    fn tell(&mut self) {
        let dropped = self.tally.dropped();
        let reasons: Vec<String> = Dropped::ALL
            .into_iter()
            .map(|why| (why.as_str(), self.tally.dropped[why as usize].get()))
            .filter(|(_, count)| *count > 0)
            .map(|(why, count)| format!("{why} {count}"))
            .collect();
        tracing::warn!(
            passes = dropped - self.told,
            folder = %self.folder.path().display(),
            since_start = reasons.join(", "),
            trouble = self.trouble.take(),
            "failing passes were not recorded",
        );
        self.told = dropped;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{clock::ManualClock, record::samples::record};

    /// A recorder, what a writer would take from it, and what a writer would end.
    fn without_a_writer() -> (Recorder, Receiver<Message>, Sender<()>) {
        let (queue, mailbox) = bounded(QUEUE);
        let (ended, done) = bounded(1);
        let clock = Arc::new(ManualClock::default());
        let (tally, allowance) = Default::default();
        (Recorder { queue, tally, allowance, clock, done, _thread: None }, mailbox, ended)
    }

    #[test]
    fn whoever_fails_does_not_wait_for_a_writer_that_is_behind() {
        let (recorder, mailbox, _ended) = without_a_writer();
        let fail = |n: usize| {
            let place = recorder.place(7, Digest::of(&[n as u8]), "kernel.timeout", Direction::Forward, 10);
            place.map(|place| place.hand(record())).is_some()
        };
        assert_eq!((0..QUEUE + 5).filter(|&n| fail(n)).count(), QUEUE);
        assert_eq!(recorder.counts().dropped[Dropped::Busy as usize], 5);
        // Two had a place while there was but one left.
        let place =
            |n: u8| recorder.place(7, Digest::of(&[100 + n]), "kernel.timeout", Direction::Forward, 10);
        let write_one = || match mailbox.try_recv() {
            Ok(Message::Write(_, mut place)) => place.outcome = Ok(()),
            other => panic!("{:?} is no record", other.is_ok()),
        };
        write_one();
        let (one, other) = (place(0).unwrap(), place(1).unwrap());
        one.hand(record());
        other.hand(record());
        assert_eq!(recorder.counts().dropped[Dropped::Busy as usize], 6);
        assert_eq!(recorder.tally.waiting_bytes.load(Ordering::Relaxed), 10 * QUEUE as u64);
        // What was left out for want of a place is not counted as recorded.
        write_one();
        assert!(fail(QUEUE));
        recorder.close(Duration::ZERO);
    }

    #[test]
    fn what_may_never_be_complete_leaves_room_for_others() {
        let (recorder, _mailbox, _ended) = without_a_writer();
        let place = |n: u8, bytes| {
            recorder.place(7, Digest::of(&[n]), "kernel.timeout", Direction::Backward, bytes).unwrap()
        };
        let late = place(0, MAX_LATE_BYTES - 1).wait().unwrap();
        let last = place(1, 1).wait().unwrap();
        assert!(place(2, 1).wait().is_none());
        assert_eq!(recorder.counts().dropped[Dropped::Busy as usize], 1);
        place(3, MAX_BYTES - MAX_LATE_BYTES).hand(record());
        drop(late);
        assert!(place(2, 1).wait().is_some());
        last.hand(record());
        assert_eq!(recorder.tally.late_bytes.load(Ordering::Relaxed), 1, "until it is written");
        assert_eq!(recorder.counts().dropped[Dropped::Lost as usize], 2);
    }
}
