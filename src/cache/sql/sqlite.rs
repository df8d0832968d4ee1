//! Opening an SQLite file.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use sqlx::{
    ConnectOptions as _,
    migrate::MigrateError,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

use super::{
    connection::Pool,
    migrations::{Dialect, migrate},
    trouble::is_damage,
};

/// How long a request waits for others of this process, beside their own waiting for the lock.
const OWN_QUEUE: Duration = Duration::from_secs(10);

/// How long its statements may run. A disk that takes longer hangs: what waits for it goes elsewhere.
const RUNNING: Duration = Duration::from_secs(5);

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
    /// A file with 4 GiB and 2 s of patience.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), max_bytes: 4 << 30, busy_timeout: Duration::from_secs(2) }
    }

    /// How long a whole request may take, its waiting included.
    pub(super) fn limit(&self) -> Duration {
        self.patience().saturating_add(RUNNING)
    }

    /// Each connection is a thread. The wait for one is for others of this process, which may each wait for
    /// the lock, and has nothing to do with it.
    fn patience(&self) -> Duration {
        self.busy_timeout.saturating_add(OWN_QUEUE)
    }

    /// Opens the file and brings its tables up to date.
    ///
    /// A file that SQLite finds damaged as a whole, or whose tables are another version's, is set aside under the name `….corrupt` and a new one
    /// begun: what it held can be fetched again.
    pub(super) async fn open(&self) -> Result<Pool, String> {
        if let Some(folder) = self.path.parent() {
            tokio::fs::create_dir_all(folder).await.map_err(|error| error.to_string())?;
        }
        match self.connect().await {
            Err(failure) if failure.damaged => {
                let aside = set_aside(&self.path).await.map_err(|error| error.to_string())?;
                tracing::warn!(
                    path = %self.path.display(),
                    aside = %aside.display(),
                    reason = failure.reason,
                    "cache file that cannot be used set aside"
                );
                self.connect().await.map_err(|failure| failure.reason)
            }
            result => result.map_err(|failure| failure.reason),
        }
    }

    async fn connect(&self) -> Result<Pool, Failure> {
        let connection = SqliteConnectOptions::new()
            .filename(&self.path)
            .create_if_missing(true)
            .foreign_keys(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Normal)
            .busy_timeout(self.busy_timeout)
            .disable_statement_logging();
        let pool = |most, patience| SqlitePoolOptions::new().max_connections(most).acquire_timeout(patience);
        let writer =
            pool(1, self.patience()).connect_with(connection.clone()).await.map_err(Failure::from)?;
        if let Err(error) = migrate(&writer, Dialect::Sqlite).await {
            writer.close().await;
            let damaged = match &error {
                MigrateError::Execute(cause) | MigrateError::ExecuteMigration(cause, _) => is_damage(cause),
                // Tables of another version of the daemon: a cache is not worth a conversion.
                MigrateError::VersionMismatch(_) | MigrateError::VersionMissing(_) => true,
                _ => false,
            };
            return Err(Failure { damaged, reason: error.to_string() });
        }
        // Readers wait for no lock: where neither comes back, the disk hangs.
        let readers = pool(2, RUNNING).connect_lazy_with(connection.pragma("query_only", "ON"));
        Ok(Pool::Sqlite { readers, writer })
    }
}

struct Failure {
    damaged: bool,
    reason: String,
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self { damaged: is_damage(&error), reason: error.to_string() }
    }
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
