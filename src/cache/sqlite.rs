//! L3: artifacts in an SQLite file, which outlive the daemon.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use sqlx::{
    ConnectOptions as _, Row, SqlSafeStr, SqlitePool,
    migrate::{Migration, MigrationType, Migrator},
    query, query_scalar,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous},
};

use super::{Answer, Held, Negative, Stored, Tier, TierError, TierStats};
use crate::{
    clock::Clock,
    digest::Digest,
    id::KernelId,
    validation::{Metadata, Verdict},
};

const TIER: &str = "sqlite";

/// Where the file is and how large it may become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SqliteOptions {
    /// The file; its folder is made where it is missing.
    pub path: PathBuf,
    /// The most bytes of artifacts and their descriptions together. The file itself is somewhat larger.
    pub max_bytes: u64,
    /// How long a request waits for another process that has the file locked.
    pub busy_timeout: Duration,
}

impl SqliteOptions {
    /// A file with 4 GiB and 5 s of patience.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), max_bytes: 4 << 30, busy_timeout: Duration::from_secs(5) }
    }
}

/// Artifacts in an SQLite file.
///
/// The file is in WAL mode: a process that is killed at any moment loses at most what it had not been told
/// was stored. Several processes may share it. Every artifact is compared with its digest when it is read,
/// and its description with a seal of its own.
#[derive(Debug)]
pub struct SqliteTier {
    pool: SqlitePool,
    max_bytes: u64,
    clock: Arc<dyn Clock>,
    counters: Counters,
}

#[derive(Debug, Default)]
struct Counters {
    hits: AtomicU64,
    misses: AtomicU64,
    negative_hits: AtomicU64,
    admissions: AtomicU64,
    evictions: AtomicU64,
    corrupt: AtomicU64,
    failures: AtomicU64,
}

impl SqliteTier {
    /// Opens the file, brings its tables up to date, and makes it where it is missing.
    ///
    /// A file that SQLite finds damaged as a whole is set aside under the name `….corrupt` and a new one
    /// begun: what it held can be fetched again.
    ///
    /// # Errors
    /// [`TierError::Open`] when the folder or the file cannot be used.
    pub async fn open(options: &SqliteOptions, clock: Arc<dyn Clock>) -> Result<Self, TierError> {
        let failed = |reason: String| TierError::Open {
            tier: TIER,
            place: options.path.display().to_string(),
            reason,
        };
        if let Some(folder) = options.path.parent() {
            tokio::fs::create_dir_all(folder).await.map_err(|error| failed(error.to_string()))?;
        }
        let pool = match connect(options).await {
            Err(OpenFailure { damaged: true, reason }) => {
                let aside = set_aside(&options.path).await.map_err(|error| failed(error.to_string()))?;
                tracing::warn!(path = %options.path.display(), aside = %aside.display(), reason, "damaged cache file set aside");
                connect(options).await
            }
            result => result,
        };
        let pool = pool.map_err(|failure| failed(failure.reason))?;
        Ok(Self { pool, max_bytes: options.max_bytes, clock, counters: Counters::default() })
    }

    /// Waits for requests under way and closes the file.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    async fn look_up(&self, id: &KernelId) -> Result<Answer, sqlx::Error> {
        let now = self.clock.unix_ms();
        let negative = query("SELECT code, reason, until_ms FROM negatives WHERE id = ? AND until_ms > ?")
            .bind(id.as_str())
            .bind(now)
            .fetch_optional(&self.pool)
            .await?;
        if let Some(row) = negative {
            let until_unix_ms = row.try_get("until_ms")?;
            let (code, reason) = (row.try_get("code")?, row.try_get("reason")?);
            return Ok(Answer::Negative(Negative { code, reason, until_unix_ms }));
        }
        let row = query(
            "SELECT digest, metadata, verdict, confirmed_at_ms, seal, bytes FROM kernels JOIN artifacts USING (id) WHERE id = ?",
        )
        .bind(id.as_str())
        .fetch_optional(&self.pool)
        .await?;
        let Some(row) = row else {
            return Ok(Answer::Miss);
        };
        // Hashing some megabytes would hold up every task of this thread.
        let owned = id.clone();
        let stored = tokio::task::spawn_blocking(move || unseal(&owned, &row)).await.ok().flatten();
        let Some(stored) = stored else {
            query("DELETE FROM kernels WHERE id = ?").bind(id.as_str()).execute(&self.pool).await?;
            return Ok(Answer::Corrupt);
        };
        let used = query(
            "UPDATE kernels SET uses = uses + 1, used_at_ms = ?,
                    use_order = (SELECT MAX(use_order) + 1 FROM kernels) WHERE id = ?",
        )
        .bind(now)
        .bind(id.as_str());
        // A full disk must not keep good bytes from being used.
        if let Err(error) = used.execute(&self.pool).await {
            self.counters.failures.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(kernel = %id, tier = TIER, %error, "use of a kernel not noted");
        }
        Ok(Answer::Hit(stored))
    }

    async fn store(&self, stored: &Stored) -> Result<bool, sqlx::Error> {
        let id = stored.id().as_str();
        let metadata = stored.metadata.to_json();
        let verdict = stored.verdict.as_ref().map(|verdict| to_json(verdict));
        let seal = seal(id, stored.digest, &metadata, verdict.as_deref(), stored.confirmed_unix_ms);
        let size = stored.bytes.len() + metadata.len() + verdict.as_ref().map_or(0, String::len);
        let Some(room) = self.max_bytes.checked_sub(size as u64) else {
            return Ok(false);
        };
        let now = self.clock.unix_ms();
        // Immediate, because a transaction that first reads and then writes fails when another writes
        // between.
        let mut change = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        query("DELETE FROM negatives WHERE id = ? OR until_ms <= ?")
            .bind(id)
            .bind(now)
            .execute(&mut *change)
            .await?;
        query("DELETE FROM kernels WHERE id = ?").bind(id).execute(&mut *change).await?;
        // Keeps the longest row of most recently used kernels that fits beside the newcomer.
        let evicted = query(
            "DELETE FROM kernels WHERE id IN (
                 SELECT id FROM (SELECT id, SUM(size_bytes) OVER (ORDER BY use_order DESC) AS newer FROM kernels)
                 WHERE newer > ?)",
        )
        .bind(to_i64(room))
        .execute(&mut *change)
        .await?
        .rows_affected();
        query(
            "INSERT INTO kernels (id, digest, metadata, verdict, seal, size_bytes, confirmed_at_ms, stored_at_ms, used_at_ms, use_order)
             SELECT ?, ?, ?, ?, ?, ?, ?, ?, ?, COALESCE(MAX(use_order), 0) + 1 FROM kernels",
        )
        .bind(id)
        .bind(stored.digest.as_bytes().as_slice())
        .bind(metadata)
        .bind(verdict)
        .bind(seal.as_bytes().as_slice())
        .bind(to_i64(size as u64))
        .bind(stored.confirmed_unix_ms)
        .bind(now)
        .bind(now)
        .execute(&mut *change)
        .await?;
        query("INSERT INTO artifacts (id, bytes) VALUES (?, ?)")
            .bind(id)
            .bind(&stored.bytes[..])
            .execute(&mut *change)
            .await?;
        change.commit().await?;
        self.counters.admissions.fetch_add(1, Ordering::Relaxed);
        self.counters.evictions.fetch_add(evicted, Ordering::Relaxed);
        Ok(true)
    }

    async fn store_verdict(
        &self,
        id: &KernelId,
        digest: Digest,
        verdict: &Verdict,
    ) -> Result<bool, sqlx::Error> {
        let mut change = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let row = query("SELECT metadata, confirmed_at_ms FROM kernels WHERE id = ? AND digest = ?")
            .bind(id.as_str())
            .bind(digest.as_bytes().as_slice())
            .fetch_optional(&mut *change)
            .await?;
        let Some(row) = row else {
            return Ok(false);
        };
        let verdict = to_json(verdict);
        let (metadata, confirmed) = (row.try_get("metadata")?, row.try_get("confirmed_at_ms")?);
        let seal = seal(id.as_str(), digest, metadata, Some(&verdict), confirmed);
        query("UPDATE kernels SET verdict = ?, seal = ? WHERE id = ?")
            .bind(verdict)
            .bind(seal.as_bytes().as_slice())
            .bind(id.as_str())
            .execute(&mut *change)
            .await?;
        change.commit().await?;
        Ok(true)
    }

    async fn store_negative(&self, id: &KernelId, negative: &Negative) -> Result<(), sqlx::Error> {
        let mut change = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        query("DELETE FROM kernels WHERE id = ?").bind(id.as_str()).execute(&mut *change).await?;
        query("INSERT OR REPLACE INTO negatives (id, code, reason, until_ms) VALUES (?, ?, ?, ?)")
            .bind(id.as_str())
            .bind(&negative.code)
            .bind(&negative.reason)
            .bind(negative.until_unix_ms)
            .execute(&mut *change)
            .await?;
        change.commit().await
    }

    async fn describe(&self, id: &KernelId) -> Result<Option<Held>, sqlx::Error> {
        let row = query(
            "SELECT digest, LENGTH(bytes) AS bytes, confirmed_at_ms, stored_at_ms, used_at_ms
             FROM kernels JOIN artifacts USING (id) WHERE id = ?",
        )
        .bind(id.as_str())
        .fetch_optional(&self.pool)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let digest: &[u8] = row.try_get("digest")?;
        let Ok(digest) = digest.try_into() else { return Ok(None) };
        Ok(Some(Held {
            digest: Digest::from_bytes(digest),
            bytes: row.try_get::<i64, _>("bytes")?.unsigned_abs(),
            stored_unix_ms: row.try_get("stored_at_ms")?,
            used_unix_ms: Some(row.try_get("used_at_ms")?),
            confirmed_unix_ms: row.try_get("confirmed_at_ms")?,
        }))
    }

    async fn forget(&self, id: Option<&KernelId>) -> Result<(u64, u64), sqlx::Error> {
        let id = id.map(KernelId::as_str);
        let mut change = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let mut gone = [0; 2];
        let statements = [
            "DELETE FROM kernels WHERE ?1 IS NULL OR id = ?1",
            "DELETE FROM negatives WHERE ?1 IS NULL OR id = ?1",
        ];
        for (gone, statement) in gone.iter_mut().zip(statements) {
            *gone = query(statement).bind(id).execute(&mut *change).await?.rows_affected();
        }
        change.commit().await?;
        self.counters.evictions.fetch_add(gone[0], Ordering::Relaxed);
        Ok((gone[0], gone[1]))
    }

    /// Waits for a request and counts it where it fails.
    async fn request<T>(
        &self,
        action: &'static str,
        work: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, TierError> {
        work.await.map_err(|error| {
            self.counters.failures.fetch_add(1, Ordering::Relaxed);
            TierError::Request { tier: TIER, action, reason: error.to_string() }
        })
    }
}

impl Tier for SqliteTier {
    fn name(&self) -> &str {
        TIER
    }

    fn get<'a>(&'a self, id: &'a KernelId) -> BoxFuture<'a, Result<Answer, TierError>> {
        Box::pin(async move {
            let answer = self.request("read a kernel", self.look_up(id)).await?;
            let counter = match &answer {
                Answer::Hit(_) => &self.counters.hits,
                Answer::Negative(_) => &self.counters.negative_hits,
                Answer::Miss => &self.counters.misses,
                Answer::Corrupt => &self.counters.corrupt,
            };
            counter.fetch_add(1, Ordering::Relaxed);
            Ok(answer)
        })
    }

    fn put<'a>(&'a self, stored: &'a Stored) -> BoxFuture<'a, Result<bool, TierError>> {
        Box::pin(self.request("store a kernel", self.store(stored)))
    }

    fn put_verdict<'a>(
        &'a self,
        id: &'a KernelId,
        digest: Digest,
        verdict: &'a Verdict,
    ) -> BoxFuture<'a, Result<bool, TierError>> {
        Box::pin(self.request("store a verdict", self.store_verdict(id, digest, verdict)))
    }

    fn put_negative<'a>(
        &'a self,
        id: &'a KernelId,
        negative: &'a Negative,
    ) -> BoxFuture<'a, Result<(), TierError>> {
        Box::pin(self.request("store a negative result", self.store_negative(id, negative)))
    }

    fn remove<'a>(&'a self, id: &'a KernelId) -> BoxFuture<'a, Result<bool, TierError>> {
        Box::pin(async move {
            let (kernels, negatives) = self.request("remove a kernel", self.forget(Some(id))).await?;
            Ok(kernels + negatives > 0)
        })
    }

    fn about<'a>(&'a self, id: &'a KernelId) -> BoxFuture<'a, Result<Option<Held>, TierError>> {
        Box::pin(self.request("look for a kernel", self.describe(id)))
    }

    fn clear(&self) -> BoxFuture<'_, Result<u64, TierError>> {
        Box::pin(async move { Ok(self.request("clear the file", self.forget(None)).await?.0) })
    }

    fn most_used(&self, since_unix_ms: i64, limit: u32) -> BoxFuture<'_, Result<Vec<KernelId>, TierError>> {
        let ids = query_scalar::<_, String>(
            "SELECT id FROM kernels WHERE used_at_ms >= ? ORDER BY uses DESC, use_order DESC LIMIT ?",
        );
        let ids = ids.bind(since_unix_ms).bind(limit).fetch_all(&self.pool);
        Box::pin(async move {
            let ids = self.request("list kernels", ids).await?;
            Ok(ids.iter().filter_map(|id| id.parse().ok()).collect())
        })
    }

    fn stats(&self) -> BoxFuture<'_, Result<TierStats, TierError>> {
        let sums = query("SELECT COUNT(*) AS entries, COALESCE(SUM(size_bytes), 0) AS bytes FROM kernels");
        Box::pin(async move {
            let totals = async {
                let row = sums.fetch_one(&self.pool).await?;
                Ok((row.try_get::<i64, _>("entries")?, row.try_get::<i64, _>("bytes")?))
            };
            let (entries, bytes) = self.request("sum its contents up", totals).await?;
            let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            Ok(TierStats {
                tier: TIER.to_owned(),
                entries: entries.unsigned_abs(),
                bytes: bytes.unsigned_abs(),
                max_bytes: self.max_bytes,
                hits: read(&self.counters.hits),
                misses: read(&self.counters.misses),
                negative_hits: read(&self.counters.negative_hits),
                admissions: read(&self.counters.admissions),
                evictions: read(&self.counters.evictions),
                corrupt: read(&self.counters.corrupt),
                failures: read(&self.counters.failures),
                ..TierStats::default()
            })
        })
    }
}

struct OpenFailure {
    damaged: bool,
    reason: String,
}

async fn connect(options: &SqliteOptions) -> Result<SqlitePool, OpenFailure> {
    let connection = SqliteConnectOptions::new()
        .filename(&options.path)
        .create_if_missing(true)
        .foreign_keys(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Normal)
        .busy_timeout(options.busy_timeout)
        .disable_statement_logging();
    // Each connection is a thread; two let a look-up pass beside a store.
    let pool = SqlitePoolOptions::new().max_connections(2).acquire_timeout(options.busy_timeout);
    let pool = pool.connect_with(connection).await;
    let pool = pool.map_err(|error| OpenFailure { damaged: is_damage(&error), reason: error.to_string() })?;
    let first = include_str!("migrations/0001_kernels.sql").into_sql_str();
    let migrations = vec![Migration::new(1, "kernels".into(), MigrationType::Simple, first, false)];
    if let Err(error) = Migrator::with_migrations(migrations).run(&pool).await {
        pool.close().await;
        let damaged = matches!(&error, sqlx::migrate::MigrateError::Execute(cause) if is_damage(cause));
        return Err(OpenFailure { damaged, reason: error.to_string() });
    }
    Ok(pool)
}

/// Whether SQLite says that the file is no database or a broken one (`SQLITE_CORRUPT`, `SQLITE_NOTADB`).
fn is_damage(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code()?.parse::<i32>().ok());
    code.is_some_and(|code| matches!(code & 0xff, 11 | 26))
}

async fn set_aside(path: &Path) -> std::io::Result<PathBuf> {
    let beside = |suffix: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    let aside = beside(".corrupt");
    tokio::fs::rename(path, &aside).await?;
    // A log without its file, or with another one, would be replayed into the new file.
    for suffix in ["-wal", "-shm"] {
        match tokio::fs::remove_file(beside(suffix)).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(aside)
}

/// Reads a row back; `None` where anything in it differs from what was stored.
fn unseal(id: &KernelId, row: &SqliteRow) -> Option<Stored> {
    let digest = Digest::from_bytes(row.try_get::<&[u8], _>("digest").ok()?.try_into().ok()?);
    let metadata: &str = row.try_get("metadata").ok()?;
    let verdict: Option<&str> = row.try_get("verdict").ok()?;
    let bytes: &[u8] = row.try_get("bytes").ok()?;
    let sealed: &[u8] = row.try_get("seal").ok()?;
    let confirmed_unix_ms = row.try_get("confirmed_at_ms").ok()?;
    if seal(id.as_str(), digest, metadata, verdict, confirmed_unix_ms).as_bytes() != sealed
        || Digest::of(bytes) != digest
    {
        return None;
    }
    let metadata = Metadata::from_json(metadata.as_bytes()).ok().filter(|metadata| metadata.id == *id)?;
    let verdict = verdict.map(serde_json::from_str).transpose().ok()?.map(Arc::new);
    Some(Stored { metadata: Arc::new(metadata), digest, bytes: bytes.into(), verdict, confirmed_unix_ms })
}

/// The digest of a kernel's description, each part preceded by its length.
fn seal(id: &str, digest: Digest, metadata: &str, verdict: Option<&str>, confirmed_unix_ms: i64) -> Digest {
    let mut text = Vec::with_capacity(64 + id.len() + metadata.len() + verdict.map_or(0, str::len));
    let (verdict, confirmed) = (verdict.unwrap_or_default(), confirmed_unix_ms.to_le_bytes());
    let parts = [id.as_bytes(), digest.as_bytes(), metadata.as_bytes(), verdict.as_bytes(), &confirmed];
    for part in parts {
        text.extend_from_slice(&(part.len() as u64).to_le_bytes());
        text.extend_from_slice(part);
    }
    Digest::of(&text)
}

fn to_json(verdict: &Verdict) -> String {
    serde_json::to_string(verdict).expect("a verdict has only string keys")
}

fn to_i64(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
