//! The tier over Redis.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use redis::RedisError;
use tokio::sync::Mutex;

use super::{
    Link, RedisOptions,
    record::{self, Description, Read, Values},
    trouble::{explain, is_foreign, is_overloaded, is_refusal},
};
use crate::{
    cache::{
        Answer, Held, Negative, Stored, Tier, TierError, TierStats, counters::Counters, seal::verdict_json,
    },
    clock::Clock,
    digest::Digest,
    id::KernelId,
    validation::Verdict,
};

const TIER: &str = "redis";

/// Keys dropped at a time when everything is forgotten.
const PORTION: usize = 500;

/// Artifacts in Redis, for all nodes with the same prefix.
///
/// Making one asks nothing: a connection is made by the first request, and anew by each while that fails.
/// Every record carries seals over all that it says, so a reader notices what is damaged or not ours, and
/// drops it. How much is kept is Redis's business; the tier gives each kernel a lifetime and passes over
/// what is larger than its limit. It counts no uses: [`most_used`](Tier::most_used) knows none.
#[derive(Debug)]
pub struct RedisTier {
    options: RedisOptions,
    clock: Arc<dyn Clock>,
    counters: Counters,
    link: Mutex<Option<Link>>,
}

/// What ended a request.
enum Failure {
    Tier(TierError),
    Redis(RedisError),
}

impl From<TierError> for Failure {
    fn from(error: TierError) -> Self {
        Self::Tier(error)
    }
}

impl From<RedisError> for Failure {
    fn from(error: RedisError) -> Self {
        Self::Redis(error)
    }
}

impl RedisTier {
    /// A tier in a server that nobody has asked yet.
    pub fn new(options: RedisOptions, clock: Arc<dyn Clock>) -> Self {
        Self { options, clock, counters: Counters::default(), link: Mutex::default() }
    }

    /// Asks whether the server is there, so that the first request finds a connection.
    ///
    /// # Errors
    /// [`TierError`] when it is not, or refuses; the next request tries again.
    pub async fn open(&self) -> Result<(), TierError> {
        let work = async { Ok(self.link().await?.query::<()>(&redis::cmd("PING")).await?) };
        self.request("answer", work).await
    }

    async fn link(&self) -> Result<Link, TierError> {
        let mut link = self.link.lock().await;
        if let Some(link) = &*link {
            return Ok(link.clone());
        }
        let place = self.options.url.clone();
        let made = Link::open(&self.options).await;
        let made = made.map_err(|reason| TierError::Open { tier: TIER, place, reason })?;
        *link = Some(made.clone());
        Ok(made)
    }

    /// Has the next request make a new connection, and read the password's file again. On the present one a spoilt
    /// answer may have left the rest of itself to be read as the next, and one that does not answer may have lost its
    /// other end without a word.
    async fn leave_link(&self) {
        *self.link.lock().await = None;
    }

    fn key(&self, id: &KernelId) -> String {
        record::key(&self.options.prefix, id)
    }

    fn ttl_ms(&self) -> i64 {
        i64::try_from(self.options.ttl.as_millis()).unwrap_or(i64::MAX / 4)
    }

    /// Waits for a request and counts it where it fails. The limit of a single command is the link's; this
    /// one holds for all of them.
    async fn request<T>(
        &self,
        action: &'static str,
        work: impl Future<Output = Result<T, Failure>> + Send,
    ) -> Result<T, TierError> {
        let limit = self.options.connect_timeout.saturating_add(self.options.timeout.saturating_mul(2));
        match tokio::time::timeout(limit, work).await {
            Ok(result) => self.counted(action, result).await,
            Err(_) => {
                self.leave_link().await;
                let reason = format!("no answer within {} ms", limit.as_millis());
                Err(self.counters.failed(TierError::Request { tier: TIER, action, reason }))
            }
        }
    }

    /// Counts a request where it failed, and notes what that means.
    async fn counted<T>(&self, action: &'static str, result: Result<T, Failure>) -> Result<T, TierError> {
        let error = match result {
            Ok(value) => return Ok(value),
            Err(Failure::Tier(error)) => error,
            Err(Failure::Redis(error)) if is_overloaded(&error) => {
                TierError::Overloaded { tier: TIER, action, reason: explain(&error) }
            }
            Err(Failure::Redis(error)) => {
                if is_refusal(&error) || error.is_unrecoverable_error() || error.is_timeout() {
                    self.leave_link().await;
                }
                TierError::Request { tier: TIER, action, reason: explain(&error) }
            }
        };
        Err(self.counters.failed(error))
    }

    async fn look_up(&self, id: &KernelId) -> Result<Answer, Failure> {
        let mut link = self.link().await?;
        let key = self.key(id);
        let command = record::read(&key, self.options.max_artifact_bytes);
        let values = match link.query::<Option<Values>>(&command).await {
            Err(error) if is_foreign(&error) => None,
            result => match result? {
                Some(values) => Some(values),
                // Larger than this node's limit.
                None => return Ok(Answer::Miss),
            },
        };
        let (owned, now) = (id.clone(), self.clock.unix_ms());
        let drop_damaged = record::drop_damaged(&key, values.as_ref());
        // Hashing some megabytes would hold up every task of this thread.
        let read = match values {
            Some(values) => {
                let read = tokio::task::spawn_blocking(move || record::unseal(&owned, &values, now)).await;
                read.unwrap_or(Read::Damaged)
            }
            None => Read::Damaged,
        };
        Ok(match read {
            Read::Nothing => Answer::Miss,
            Read::Kernel(stored) => Answer::Hit(stored),
            Read::Negative(negative) => Answer::Negative(negative),
            Read::Damaged => {
                // Whether it can be dropped or not, it is not given out.
                if let Err(error) = link.query::<u64>(&drop_damaged).await {
                    tracing::warn!(kernel = %id, tier = TIER, %error, "damaged copy stays");
                }
                Answer::Corrupt
            }
        })
    }

    async fn add_verdict(&self, id: &KernelId, digest: Digest, verdict: &Verdict) -> Result<bool, Failure> {
        let mut link = self.link().await?;
        let key = self.key(id);
        let values: Values = link.query(&Description::read(&key)).await?;
        let Some(description) = Description::of(values, digest) else { return Ok(false) };
        let verdict = verdict_json(verdict);
        let seal = description.sealed_with(id, &verdict);
        // Another node may put another artifact here meanwhile, or add the same verdict.
        let script = "if redis.call('HGET', KEYS[1], 'seal') ~= ARGV[1] then return 0 end
                      redis.call('HSET', KEYS[1], 'verdict', ARGV[2], 'seal', ARGV[3])
                      return 1";
        let mut add = redis::cmd("EVAL");
        add.arg(script).arg(1).arg(&key).arg(&description.seal).arg(&verdict).arg(seal.as_bytes().as_slice());
        Ok(link.query::<u64>(&add).await? == 1)
    }

    async fn forget_all(&self) -> Result<u64, Failure> {
        let mut link = self.link().await?;
        let mut gone = 0;
        let keys = link.keys(&record::every_key(&self.options.prefix)).await?;
        for portion in keys.chunks(PORTION) {
            // The client splits it by slot where it is a cluster.
            gone += link.query::<u64>(redis::cmd("UNLINK").arg(portion)).await?;
        }
        Ok(gone)
    }

    async fn contents(&self) -> Result<TierStats, Failure> {
        let mut link = self.link().await?;
        let entries: u64 = link.query(&redis::cmd("DBSIZE")).await?;
        let said: redis::Value = link.query(redis::cmd("INFO").arg("memory")).await?;
        let mut texts = Vec::new();
        collect_texts(&said, &mut texts);
        let sum = |name: &str| texts.iter().filter_map(|text| number_of(text, name)).sum();
        Ok(TierStats {
            entries,
            bytes: sum("used_memory_dataset"),
            max_bytes: sum("maxmemory"),
            ..self.counters.read(TIER)
        })
    }
}

/// The texts of an answer; a cluster gives one for each server.
fn collect_texts(value: &redis::Value, texts: &mut Vec<String>) {
    match value {
        redis::Value::Map(pairs) => pairs.iter().for_each(|(_, value)| collect_texts(value, texts)),
        redis::Value::Array(values) => values.iter().for_each(|value| collect_texts(value, texts)),
        redis::Value::BulkString(bytes) => texts.push(String::from_utf8_lossy(bytes).into_owned()),
        redis::Value::SimpleString(text) | redis::Value::VerbatimString { text, .. } => {
            texts.push(text.clone());
        }
        _ => {}
    }
}

fn number_of(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.trim().parse().ok())
}

impl Tier for RedisTier {
    fn name(&self) -> &str {
        TIER
    }

    fn shared(&self) -> bool {
        true
    }

    fn largest_bytes(&self) -> Option<u64> {
        Some(self.options.max_artifact_bytes)
    }

    fn get<'a>(&'a self, id: &'a KernelId) -> BoxFuture<'a, Result<Answer, TierError>> {
        Box::pin(async move {
            let answer = self.request("read a kernel", self.look_up(id)).await?;
            self.counters.answered(&answer);
            Ok(answer)
        })
    }

    fn put<'a>(&'a self, stored: &'a Stored) -> BoxFuture<'a, Result<bool, TierError>> {
        Box::pin(async move {
            let fits = stored.bytes.len() as u64 <= self.options.max_artifact_bytes;
            if fits {
                let work = async {
                    let commands =
                        record::write(&self.key(stored.id()), stored, self.clock.unix_ms(), self.ttl_ms());
                    Ok(self.link().await?.change(&commands).await?)
                };
                self.request("store a kernel", work).await?;
            }
            self.counters.put(fits);
            Ok(fits)
        })
    }

    fn put_verdict<'a>(
        &'a self,
        id: &'a KernelId,
        digest: Digest,
        verdict: &'a Verdict,
    ) -> BoxFuture<'a, Result<bool, TierError>> {
        Box::pin(self.request("store a verdict", self.add_verdict(id, digest, verdict)))
    }

    fn put_negative<'a>(
        &'a self,
        id: &'a KernelId,
        negative: &'a Negative,
    ) -> BoxFuture<'a, Result<(), TierError>> {
        let work = async move {
            let (key, now) = (self.key(id), self.clock.unix_ms());
            let commands = record::write_negative(&key, id, negative, now, self.ttl_ms());
            Ok(self.link().await?.change(&commands).await?)
        };
        Box::pin(self.request("store a negative result", work))
    }

    fn remove<'a>(&'a self, id: &'a KernelId) -> BoxFuture<'a, Result<bool, TierError>> {
        Box::pin(async move {
            let work =
                async { Ok(self.link().await?.query::<u64>(redis::cmd("UNLINK").arg(self.key(id))).await?) };
            let gone = self.request("remove a kernel", work).await?;
            self.counters.evicted(gone);
            Ok(gone > 0)
        })
    }

    fn about<'a>(&'a self, id: &'a KernelId) -> BoxFuture<'a, Result<Option<Held>, TierError>> {
        let work = async move {
            let found = self.link().await?.query(&record::about(&self.key(id))).await?;
            Ok(record::held(found))
        };
        Box::pin(self.request("look for a kernel", work))
    }

    fn negative<'a>(&'a self, id: &'a KernelId) -> BoxFuture<'a, Result<Option<Negative>, TierError>> {
        let work = async move {
            let values = self.link().await?.query::<Values>(&record::read_negative(&self.key(id))).await?;
            Ok(record::believed_negative(id, &values, self.clock.unix_ms()))
        };
        Box::pin(self.request("look for a negative result", work))
    }

    fn clear(&self) -> BoxFuture<'_, Result<u64, TierError>> {
        Box::pin(async move {
            // As long as it takes: each of its commands has the link's limit, and a server may hold millions of
            // keys of others.
            let gone = self.forget_all().await;
            let gone = self.counted("forget everything", gone).await?;
            self.counters.evicted(gone);
            Ok(gone)
        })
    }

    fn most_used(&self, _: i64, _: u32) -> BoxFuture<'_, Result<Option<Vec<KernelId>>, TierError>> {
        Box::pin(std::future::ready(Ok(None)))
    }

    fn counters(&self) -> TierStats {
        self.counters.read(self.name())
    }

    fn stats(&self) -> BoxFuture<'_, Result<TierStats, TierError>> {
        Box::pin(self.request("sum its contents up", self.contents()))
    }
}
