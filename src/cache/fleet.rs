//! Telling every node that a kernel is to be forgotten.
//!
//! What has been announced stands in a log in Redis (a stream, bounded); a channel is only the bell that
//! says "read it". A node remembers how far it has read, in a file too, so after it was away, or Redis was,
//! it reads on where it stopped and knows what it missed.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture};
use redis::RedisError;
use serde::{Deserialize, Serialize};
use tokio::{sync::Mutex, time::timeout};

use super::{
    SharedFault, TierError,
    redis::{Link, RedisOptions, explain},
};
use crate::{
    backoff::{Backoff, Jitter},
    id::KernelId,
};

/// Announcements that the log keeps, about.
const MAX_LOG: usize = 10_000;

/// Announcements read at a time.
const PORTION: usize = 500;

/// How often the log is read although no bell rang: a connection may be dead without a word.
const UNASKED: Duration = Duration::from_secs(30);

/// What the part of the daemon that speaks to the other nodes has done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetStats {
    /// Whether it is listening now.
    pub listening: bool,
    /// Kernels that this node has told the others to forget.
    pub announced: u64,
    /// Kernels that others have told this node to forget.
    pub heard: u64,
    /// How often it has begun to listen anew.
    pub reconnects: u64,
    /// How often the log no longer held what this node had read last, so that it may have missed something.
    pub gaps: u64,
}

/// A node's voice and ear among the nodes that share a Redis and a prefix.
#[derive(Debug)]
pub struct Fleet {
    options: RedisOptions,
    node: String,
    cursor_file: Option<PathBuf>,
    link: Mutex<Option<Link>>,
    listening: AtomicBool,
    announced: AtomicU64,
    heard: AtomicU64,
    reconnects: AtomicU64,
    gaps: AtomicU64,
}

/// What a node learns from the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// They have had kernels forgotten: nobody is to find these any more. What is to be forgotten of each follows,
    /// however long that takes.
    Condemn {
        /// Which, and the names of who said so.
        kernels: Vec<(KernelId, String)>,
    },
    /// One of them has had a kernel forgotten, which is condemned.
    Forget {
        /// Which.
        kernel: KernelId,
        /// The name of who said so.
        node: String,
    },
    /// It may have missed something of that kind.
    Gap,
}

/// What is done about it. Where that fails, it is to be done still.
pub type Hear = Arc<dyn Fn(Heard) -> BoxFuture<'static, Result<(), SharedFault>> + Send + Sync>;

/// A place in the log, `milliseconds-number`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Cursor(u64, u64);

impl Cursor {
    fn parse(text: &str) -> Option<Self> {
        let (ms, number) = text.trim().split_once('-')?;
        Some(Self(ms.parse().ok()?, number.parse().ok()?))
    }

    fn show(self) -> String {
        format!("{}-{}", self.0, self.1)
    }
}

/// How far a node has read, and what it has not done yet of what it read.
#[derive(Debug, Default)]
struct Reading {
    cursor: Option<Cursor>,
    /// Kernels that could not be forgotten, and who said so; others are not kept waiting for them.
    owed: BTreeMap<KernelId, String>,
    /// How often it was tried to forget them.
    tries: u32,
    /// The last place at which nothing was owed. This one is saved: who starts anew reads what is owed again.
    settled: Option<Cursor>,
}

impl Reading {
    fn from(saved: Option<Cursor>) -> Self {
        Self { cursor: saved, settled: saved, ..Self::default() }
    }

    /// Notes that all up to the cursor has been seen to, if it has.
    fn settle(&mut self) {
        if self.owed.is_empty() {
            self.settled = self.cursor;
        }
    }
}

struct Entry {
    cursor: Cursor,
    node: String,
    kernel: Option<KernelId>,
}

/// An entry as Redis gives it: its place, and names and values in turn.
type RawEntry = (String, Vec<Vec<u8>>);

impl Fleet {
    /// A node that has not spoken to anybody yet. `node` is a name that no other node has; how far it has
    /// read is kept in `cursor_file`, where one is named.
    pub fn new(options: RedisOptions, node: String, cursor_file: Option<PathBuf>) -> Self {
        Self {
            options,
            node,
            cursor_file,
            link: Mutex::default(),
            listening: AtomicBool::new(false),
            announced: AtomicU64::new(0),
            heard: AtomicU64::new(0),
            reconnects: AtomicU64::new(0),
            gaps: AtomicU64::new(0),
        }
    }

    /// Counters.
    pub fn stats(&self) -> FleetStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        FleetStats {
            listening: self.listening.load(Ordering::Relaxed),
            announced: read(&self.announced),
            heard: read(&self.heard),
            reconnects: read(&self.reconnects),
            gaps: read(&self.gaps),
        }
    }

    /// Tells every other node to forget a kernel: those that listen at once, the others when they are back.
    ///
    /// # Errors
    /// [`TierError`] when it is not in the log; then no node may count on having heard it.
    pub async fn announce(&self, id: &KernelId) -> Result<(), TierError> {
        let told = async {
            let mut link = self.link().await?;
            let mut add = redis::cmd("XADD");
            add.arg(self.log()).arg("MAXLEN").arg("~").arg(MAX_LOG).arg("*");
            add.arg("node").arg(&self.node).arg("kernel").arg(id.as_str());
            let place: String = self.ask(&mut link, &add).await?;
            let mut ring = redis::cmd("PUBLISH");
            ring.arg(self.channel()).arg(place);
            if let Err(error) = self.ask::<i64>(&mut link, &ring).await {
                tracing::warn!(kernel = %id, error, "other nodes read of it later, no bell could be rung");
            }
            Ok(())
        };
        told.await.map_err(|reason| TierError::Request {
            tier: "redis",
            action: "tell the other nodes",
            reason,
        })?;
        self.announced.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Hears what others announce, for as long as the future is polled. Whatever fails is tried again, after a
    /// growing delay.
    pub async fn listen(&self, hear: Hear) {
        let (backoff, mut jitter) = (Backoff::default(), Jitter::from_process());
        let (mut reading, mut failures) = (Reading::from(self.load_cursor().await), 0u32);
        loop {
            let ended = self.listen_once(&hear, &mut reading, &mut failures, &mut jitter).await;
            if self.listening.swap(false, Ordering::Relaxed) {
                self.reconnects.fetch_add(1, Ordering::Relaxed);
            }
            failures = failures.saturating_add(1);
            let delay = backoff.delay(failures, &mut jitter);
            let delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
            if failures == 1 {
                tracing::warn!(reason = ended, delay_ms, "not listening to other nodes");
            } else {
                tracing::debug!(reason = ended, delay_ms, "still not listening to other nodes");
            }
            tokio::time::sleep(delay).await;
        }
    }

    /// Subscribes, reads what was missed, and then whatever the bell announces; says why that ended.
    async fn listen_once(
        &self,
        hear: &Hear,
        reading: &mut Reading,
        failures: &mut u32,
        jitter: &mut Jitter,
    ) -> String {
        // First the bell, then the log: what is announced in between is in one of them.
        let mut bell = match self.subscribe().await {
            Ok(bell) => bell,
            Err(reason) => return reason,
        };
        let mut messages = bell.on_message();
        let mut is_unasked = false;
        loop {
            match self.read_on(hear, reading).await {
                Err(reason) => return reason,
                // One that has lost its other end without a word stays silent for good.
                Ok(true) if is_unasked => return "what was announced rang no bell".to_owned(),
                Ok(_) => {}
            }
            *failures = 0;
            if !self.listening.swap(true, Ordering::Relaxed) {
                tracing::info!("listening to other nodes");
            }
            let patience = if reading.owed.is_empty() {
                UNASKED
            } else {
                Backoff::default().delay(reading.tries, jitter).min(UNASKED)
            };
            let rung = timeout(patience, messages.next()).await;
            is_unasked = rung.is_err();
            if matches!(rung, Ok(None)) {
                return "the connection has ended".to_owned();
            }
            // Those that rang meanwhile rang for what is read now.
            while messages.next().now_or_never().flatten().is_some() {}
        }
    }

    async fn subscribe(&self) -> Result<redis::aio::PubSub, String> {
        let client = self.options.client().await?;
        let subscribed = async {
            let mut bell = client.get_async_pubsub().await.map_err(|error| explain(&error))?;
            bell.subscribe(self.channel()).await.map_err(|error| explain(&error))?;
            Ok(bell)
        };
        let limit = self.options.connect_timeout.saturating_add(self.options.timeout);
        timeout(limit, subscribed).await.map_err(|_| "no answer within its time limit".to_owned())?
    }

    /// Forgets what is owed, and reads the log from where it was read last to its end; says whether anything was new.
    async fn read_on(&self, hear: &Hear, reading: &mut Reading) -> Result<bool, String> {
        let (before, read) = (reading.settled, reading.cursor);
        for (kernel, node) in std::mem::take(&mut reading.owed) {
            self.obey(hear, kernel, node, reading).await;
        }
        reading.tries = if reading.owed.is_empty() { 0 } else { reading.tries.saturating_add(1) };
        reading.settle();
        loop {
            // A node without a past reads all there is: forgetting once too often costs one fetch.
            let last = reading.cursor.filter(|last| *last != Cursor::default());
            let from = last.map_or_else(|| "-".to_owned(), Cursor::show);
            let mut entries = self.entries(&from, PORTION + 1).await?;
            if let Some(last) = last {
                // With it the entry read last, of the same moment: it shows that nothing between it and the next has been
                // trimmed, or lost with a server that came back empty.
                if entries.first().is_none_or(|entry| entry.cursor != last) {
                    // Where that fails, the gap is found again.
                    hear(Heard::Gap).await.map_err(|error| error.to_string())?;
                    self.gaps.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(last = last.show(), "the log of announcements has lost its past");
                    reading.cursor = None;
                    continue;
                }
                entries.remove(0);
            }
            if entries.is_empty() {
                break;
            }
            let others = entries.iter().filter(|entry| entry.node != self.node);
            let kernels = others.filter_map(|entry| Some((entry.kernel.clone()?, entry.node.clone())));
            let kernels: Vec<_> = kernels.collect();
            if !kernels.is_empty() {
                // All of them before the first is waited for. Where that fails they are read again.
                hear(Heard::Condemn { kernels }).await.map_err(|error| error.to_string())?;
            }
            for entry in entries {
                let node = entry.node;
                if let Some(kernel) = entry.kernel.filter(|_| node != self.node) {
                    if reading.owed.len() >= MAX_LOG {
                        return Err("too many kernels could not be forgotten".to_owned());
                    }
                    self.heard.fetch_add(1, Ordering::Relaxed);
                    tracing::info!(kernel = %kernel, node, "another node has a kernel forgotten");
                    self.obey(hear, kernel, node, reading).await;
                }
                reading.cursor = Some(entry.cursor);
                reading.settle();
            }
        }
        reading.cursor.get_or_insert_default();
        reading.settle();
        if reading.settled != before {
            self.save_cursor(reading.settled).await;
        }
        Ok(reading.cursor != read)
    }

    /// Has a kernel forgotten; where that fails, it is owed.
    async fn obey(&self, hear: &Hear, kernel: KernelId, node: String, reading: &mut Reading) {
        match hear(Heard::Forget { kernel: kernel.clone(), node: node.clone() }).await {
            Ok(()) => drop(reading.owed.remove(&kernel)),
            Err(error) => {
                tracing::warn!(kernel = %kernel, %error, "a kernel that was to be forgotten stays for now, tried again");
                reading.owed.insert(kernel, node);
            }
        }
    }

    async fn entries(&self, from: &str, count: usize) -> Result<Vec<Entry>, String> {
        let mut link = self.link().await?;
        let mut range = redis::cmd("XRANGE");
        range.arg(self.log()).arg(from).arg("+").arg("COUNT").arg(count);
        let raw: Vec<RawEntry> = self.ask(&mut link, &range).await?;
        Ok(raw.into_iter().filter_map(read_entry).collect())
    }

    async fn ask<T: redis::FromRedisValue>(
        &self,
        link: &mut Link,
        command: &redis::Cmd,
    ) -> Result<T, String> {
        let limit = self.options.connect_timeout.saturating_add(self.options.timeout);
        let answer: Result<T, RedisError> = timeout(limit, link.query(command))
            .await
            .map_err(|_| "no answer within its time limit".to_owned())?;
        match answer {
            Ok(value) => Ok(value),
            Err(error) => {
                // The next one is made with the password's file read again.
                *self.link.lock().await = None;
                Err(explain(&error))
            }
        }
    }

    async fn link(&self) -> Result<Link, String> {
        let mut link = self.link.lock().await;
        if let Some(link) = &*link {
            return Ok(link.clone());
        }
        let made = Link::open(&self.options).await?;
        *link = Some(made.clone());
        Ok(made)
    }

    fn log(&self) -> String {
        format!("{}:v1:fleet", self.options.prefix)
    }

    fn channel(&self) -> String {
        format!("{}:v1:invalidate", self.options.prefix)
    }

    async fn load_cursor(&self) -> Option<Cursor> {
        let text = tokio::fs::read_to_string(self.cursor_file.as_ref()?).await.ok()?;
        Cursor::parse(&text)
    }

    async fn save_cursor(&self, cursor: Option<Cursor>) {
        let (Some(path), Some(cursor)) = (&self.cursor_file, cursor) else { return };
        let beside = path.with_extension("new");
        let saved = async {
            tokio::fs::write(&beside, cursor.show()).await?;
            tokio::fs::rename(&beside, path).await
        };
        if let Err(error) = saved.await {
            // It will read again what it has read already.
            tracing::warn!(path = %path.display(), %error, "place in the log of announcements not saved");
        }
    }
}

/// An entry of the log; one that is none of ours is passed over, but counts as read.
fn read_entry((place, fields): RawEntry) -> Option<Entry> {
    let cursor = Cursor::parse(&place)?;
    let field = |name: &[u8]| {
        let value = fields.chunks_exact(2).find(|pair| pair[0] == name).map(|pair| pair[1].as_slice())?;
        str::from_utf8(value).ok()
    };
    let kernel = field(b"kernel").and_then(|id| id.parse().ok());
    Some(Entry { cursor, node: field(b"node").unwrap_or_default().to_owned(), kernel })
}
