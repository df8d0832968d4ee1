//! The tier over either database: opened when it is first asked, and again whenever it has been lost.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use futures_util::future::BoxFuture;
use tokio::sync::Mutex;

use super::{
    PostgresOptions, SqliteOptions,
    connection::Pool,
    statements,
    trouble::{Trouble, trouble},
    uses::Uses,
};
use crate::{
    cache::{Answer, Held, Negative, Stored, Tier, TierError, TierStats, counters::Counters},
    clock::Clock,
    digest::Digest,
    id::KernelId,
    validation::Verdict,
};

/// Which database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Database {
    /// A file of this node.
    Sqlite(SqliteOptions),
    /// A server that nodes share.
    Postgres(PostgresOptions),
}

impl From<SqliteOptions> for Database {
    fn from(options: SqliteOptions) -> Self {
        Self::Sqlite(options)
    }
}

impl From<PostgresOptions> for Database {
    fn from(options: PostgresOptions) -> Self {
        Self::Postgres(options)
    }
}

impl Database {
    fn tier(&self) -> &'static str {
        match self {
            Self::Sqlite(_) => "sqlite",
            Self::Postgres(_) => "postgres",
        }
    }

    fn place(&self) -> String {
        match self {
            Self::Sqlite(options) => options.path.display().to_string(),
            Self::Postgres(options) => options.url.clone(),
        }
    }

    fn max_bytes(&self) -> u64 {
        match self {
            Self::Sqlite(options) => options.max_bytes,
            Self::Postgres(options) => options.max_bytes,
        }
    }

    async fn open(&self) -> Result<Pool, String> {
        match self {
            Self::Sqlite(options) => options.open().await,
            Self::Postgres(options) => options.open().await,
        }
    }
}

/// Artifacts in a database.
///
/// Making one asks nothing: the database is opened by the first request, tried again by each while that
/// fails, and opened anew where its tables are gone or its file turns out to be damaged. Every artifact is
/// compared with its digest when it is read, and its description with a seal of its own. A process that is
/// killed at any moment loses at most what it had not been told was stored. Nodes may share a database:
/// writers take turns, and what one reads while it writes stays true until it is done.
#[derive(Clone)]
pub struct SqlTier(Arc<Inner>);

struct Inner {
    database: Database,
    clock: Arc<dyn Clock>,
    counters: Counters,
    uses: Uses,
    writing_uses: AtomicBool,
    state: Mutex<State>,
}

enum State {
    NotOpen,
    Open(Pool),
    Closed,
}

/// What ended a request.
enum Failure {
    Tier(TierError),
    Sql(sqlx::Error),
    TooLong,
}

impl From<TierError> for Failure {
    fn from(error: TierError) -> Self {
        Self::Tier(error)
    }
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self::Sql(error)
    }
}

impl fmt::Debug for SqlTier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SqlTier({} at {})", self.0.database.tier(), self.0.database.place())
    }
}

impl SqlTier {
    /// A tier in a database that nobody has opened yet.
    pub fn new(database: impl Into<Database>, clock: Arc<dyn Clock>) -> Self {
        Self(Arc::new(Inner {
            database: database.into(),
            clock,
            counters: Counters::default(),
            uses: Uses::default(),
            writing_uses: AtomicBool::new(false),
            state: Mutex::new(State::NotOpen),
        }))
    }

    /// Opens the database where it is not open, so that the first request finds it so.
    ///
    /// # Errors
    /// [`TierError::Open`] when it cannot be reached; the next request tries again.
    pub async fn open(&self) -> Result<(), TierError> {
        self.0.pool().await.map(drop).map_err(|error| self.0.counters.failed(error))
    }

    /// Writes down what is still to be written, waits for requests under way, and closes the database for
    /// good.
    pub async fn close(&self) {
        if self.0.is_open().await {
            self.0.write_uses().await;
        }
        let state = std::mem::replace(&mut *self.0.state.lock().await, State::Closed);
        if let State::Open(pool) = state {
            pool.close().await;
        }
    }
}

#[cfg(test)]
impl SqlTier {
    /// Lets the file of an SQLite tier grow no more.
    pub(super) async fn limit_pages(&self) {
        let pool = self.0.pool().await.expect("it is open");
        let mut writer = pool.writer().await.expect("nobody writes");
        let pages = writer.rows("PRAGMA page_count", &[]).await.expect("it is a number");
        assert!(pages[0].int(0).is_ok_and(|pages| pages < 40), "it is small");
        writer.rows("PRAGMA max_page_count = 40", &[]).await.expect("a limit can be set");
        writer.commit().await.expect("nothing was written");
    }
}

impl Inner {
    async fn is_open(&self) -> bool {
        matches!(*self.state.lock().await, State::Open(_))
    }

    /// The database, opened where it is not. One opens it, the others wait for that.
    async fn pool(&self) -> Result<Pool, TierError> {
        let mut state = self.state.lock().await;
        match &*state {
            State::Open(pool) => return Ok(pool.clone()),
            State::Closed => {
                let (tier, reason) = (self.database.tier(), "it has been closed".to_owned());
                return Err(TierError::Request { tier, action: "answer", reason });
            }
            State::NotOpen => {}
        }
        let opened = self.database.open().await;
        let pool = opened.map_err(|reason| TierError::Open {
            tier: self.database.tier(),
            place: self.database.place(),
            reason,
        })?;
        *state = State::Open(pool.clone());
        tracing::info!(tier = self.database.tier(), place = self.database.place(), "cache tier open");
        Ok(pool)
    }

    /// Waits for a request; gives up on a server or a disk that hangs, and notes what a failure means.
    async fn request<T>(
        &self,
        action: &'static str,
        work: impl Future<Output = Result<T, Failure>> + Send,
    ) -> Result<T, TierError> {
        let limit = match &self.database {
            Database::Sqlite(options) => options.limit(),
            Database::Postgres(options) => options.connect_timeout.saturating_add(options.timeout),
        };
        match tokio::time::timeout(limit, work).await.unwrap_or(Err(Failure::TooLong)) {
            Ok(value) => Ok(value),
            Err(failure) => Err(self.counters.failed(self.explain(action, failure).await)),
        }
    }

    async fn explain(&self, action: &'static str, failure: Failure) -> TierError {
        let tier = self.database.tier();
        let error = match failure {
            Failure::Tier(error) => return error,
            Failure::TooLong => {
                return TierError::Request { tier, action, reason: "no answer within its time limit".into() };
            }
            Failure::Sql(error) => error,
        };
        let (trouble, advice) = trouble(&error);
        let reason = match advice {
            Some(advice) => format!("{error}; {advice}"),
            None => error.to_string(),
        };
        match (trouble, &error) {
            // Its one writer is busy for longer than the time to wait.
            (_, sqlx::Error::PoolTimedOut) if tier == "sqlite" => {
                TierError::Overloaded { tier, action, reason: "others are writing".into() }
            }
            (Trouble::NoRoom, _) => TierError::Overloaded { tier, action, reason },
            (Trouble::Reopen, _) => {
                let mut state = self.state.lock().await;
                if let State::Open(pool) = &*state {
                    let lost = pool.clone();
                    *state = State::NotOpen;
                    drop(state);
                    // It waits for requests under way, for which this one need not.
                    tokio::spawn(async move { lost.close().await });
                }
                TierError::Request { tier, action, reason }
            }
            (Trouble::Unavailable, _) => TierError::Request { tier, action, reason },
        }
    }

    async fn look_up(&self, id: &KernelId) -> Result<Answer, Failure> {
        let pool = self.pool().await?;
        let Some(row) = statements::kernel(&pool, id).await? else {
            let negative = statements::negative(&pool, id, self.clock.unix_ms()).await?;
            return Ok(negative.map_or(Answer::Miss, Answer::Negative));
        };
        // Hashing some megabytes would hold up every task of this thread.
        let owned = id.clone();
        let unsealed = tokio::task::spawn_blocking(move || (statements::unseal(&owned, &row), row)).await;
        match unsealed {
            Ok((Some(stored), _)) => Ok(Answer::Hit(stored)),
            Ok((None, row)) => {
                // Whether it can be dropped or not, it is not given out.
                if let Err(error) = statements::drop_damaged(&pool, id, &row).await {
                    tracing::warn!(kernel = %id, tier = self.database.tier(), %error, "damaged copy stays");
                }
                Ok(Answer::Corrupt)
            }
            Err(_) => Ok(Answer::Corrupt),
        }
    }

    async fn store(&self, stored: &Stored) -> Result<bool, Failure> {
        let Some(room) = self.database.max_bytes().checked_sub(statements::size_of(stored)) else {
            return Ok(false);
        };
        let pool = self.pool().await?;
        self.counters.evicted(statements::store(&pool, stored, room, self.clock.as_ref()).await?);
        Ok(true)
    }

    /// Begins to write uses down, unless that is under way.
    fn begin_writing_uses(self: &Arc<Self>) {
        if !self.writing_uses.swap(true, Ordering::AcqRel) {
            let inner = self.clone();
            tokio::spawn(async move {
                while inner.write_uses().await {
                    inner.writing_uses.store(false, Ordering::Release);
                    // What was noted between the two would wait for the next.
                    if inner.uses.waiting() == 0 || inner.writing_uses.swap(true, Ordering::AcqRel) {
                        return;
                    }
                }
                inner.writing_uses.store(false, Ordering::Release);
            });
        }
    }

    /// Writes all uses down, portion by portion, until one fails; `false` where they wait on. Returns after those
    /// are written that another is about to write.
    async fn write_uses(&self) -> bool {
        while self.write_some_uses().await {
            if self.uses.waiting() == 0 {
                return true;
            }
        }
        false
    }

    /// Writes a portion of the uses down, in the time of one request; `false` where they wait on.
    async fn write_some_uses(&self) -> bool {
        let work =
            async { Ok(statements::note_uses(&self.pool().await?, &self.uses, self.clock.as_ref()).await?) };
        let written = self.request("note uses", work).await;
        if let Err(error) = &written {
            tracing::debug!(%error, "uses are written down later");
        }
        written.is_ok()
    }
}

impl Tier for SqlTier {
    fn name(&self) -> &str {
        self.0.database.tier()
    }

    fn shared(&self) -> bool {
        matches!(self.0.database, Database::Postgres(_))
    }

    fn get<'a>(&'a self, id: &'a KernelId) -> BoxFuture<'a, Result<Answer, TierError>> {
        Box::pin(async move {
            let answer = self.0.request("read a kernel", self.0.look_up(id)).await?;
            self.0.counters.answered(&answer);
            if let Answer::Hit(_) = &answer {
                self.0.uses.read(id);
                self.0.begin_writing_uses();
            }
            Ok(answer)
        })
    }

    fn put<'a>(&'a self, stored: &'a Stored) -> BoxFuture<'a, Result<bool, TierError>> {
        Box::pin(async move {
            // What was used since counts before anything is put out; where it cannot be written, the order of use is
            // a little older than it might be.
            if self.0.uses.waiting() > 0 && self.0.is_open().await {
                self.0.write_some_uses().await;
            }
            let taken = self.0.request("store a kernel", self.0.store(stored)).await?;
            self.0.counters.put(taken);
            Ok(taken)
        })
    }

    fn put_verdict<'a>(
        &'a self,
        id: &'a KernelId,
        digest: Digest,
        verdict: &'a Verdict,
    ) -> BoxFuture<'a, Result<bool, TierError>> {
        let work =
            async move { Ok(statements::store_verdict(&self.0.pool().await?, id, digest, verdict).await?) };
        Box::pin(self.0.request("store a verdict", work))
    }

    fn put_negative<'a>(
        &'a self,
        id: &'a KernelId,
        negative: &'a Negative,
    ) -> BoxFuture<'a, Result<(), TierError>> {
        let work = async move {
            let pool = self.0.pool().await?;
            Ok(statements::store_negative(&pool, id, negative, self.0.clock.unix_ms()).await?)
        };
        Box::pin(self.0.request("store a negative result", work))
    }

    fn remove<'a>(&'a self, id: &'a KernelId) -> BoxFuture<'a, Result<bool, TierError>> {
        Box::pin(async move {
            let work = async { Ok(statements::forget(&self.0.pool().await?, id).await?) };
            let (kernels, negatives) = self.0.request("remove a kernel", work).await?;
            self.0.counters.evicted(kernels);
            Ok(kernels + negatives > 0)
        })
    }

    fn about<'a>(&'a self, id: &'a KernelId) -> BoxFuture<'a, Result<Option<Held>, TierError>> {
        let work = async move { Ok(statements::about(&self.0.pool().await?, id).await?) };
        Box::pin(self.0.request("look for a kernel", work))
    }

    fn negative<'a>(&'a self, id: &'a KernelId) -> BoxFuture<'a, Result<Option<Negative>, TierError>> {
        let work = async move {
            let pool = self.0.pool().await?;
            Ok(statements::negative(&pool, id, self.0.clock.unix_ms()).await?)
        };
        Box::pin(self.0.request("look for a negative result", work))
    }

    fn clear(&self) -> BoxFuture<'_, Result<u64, TierError>> {
        Box::pin(async move {
            // In portions, each within its own limit: a store of gigabytes is not forgotten in one request, and
            // others write in between.
            let mut gone = 0;
            loop {
                let work = async { Ok(statements::forget_some(&self.0.pool().await?).await?) };
                let (kernels, is_all) = self.0.request("forget everything", work).await?;
                self.0.counters.evicted(kernels);
                gone += kernels;
                if is_all {
                    return Ok(gone);
                }
            }
        })
    }

    fn note_uses<'a>(&'a self, uses: &'a [(KernelId, u64)]) -> BoxFuture<'a, Result<(), TierError>> {
        self.0.uses.told(uses);
        self.0.begin_writing_uses();
        Box::pin(std::future::ready(Ok(())))
    }

    fn most_used(
        &self,
        since_unix_ms: i64,
        limit: u32,
    ) -> BoxFuture<'_, Result<Option<Vec<KernelId>>, TierError>> {
        Box::pin(async move {
            self.0.write_uses().await;
            let now = self.0.clock.unix_ms();
            let work = async {
                let pool = self.0.pool().await?;
                Ok(Some(statements::most_used(&pool, since_unix_ms, now, limit).await?))
            };
            self.0.request("list kernels", work).await
        })
    }

    fn counters(&self) -> TierStats {
        self.0.counters.read(self.name())
    }

    fn stats(&self) -> BoxFuture<'_, Result<TierStats, TierError>> {
        Box::pin(async move {
            let work = async { Ok(statements::contents(&self.0.pool().await?).await?) };
            let (entries, bytes) = self.0.request("sum its contents up", work).await?;
            Ok(TierStats { entries, bytes, max_bytes: self.0.database.max_bytes(), ..self.counters() })
        })
    }
}
