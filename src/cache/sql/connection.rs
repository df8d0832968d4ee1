//! One way to talk to SQLite and PostgreSQL: the same statements, the same values, one kind of row.

use sqlx::{
    PgPool, Postgres, Row as _, Sqlite, SqlitePool, pool::PoolConnection, postgres::PgRow, query,
    sqlite::SqliteRow,
};

/// What every writer of one PostgreSQL database takes first, so that two never wait for each other's rows.
/// The number is the word "kasmina" in ASCII.
const WRITE_LOCK: i64 = 0x006b_6173_6d69_6e61;

/// A value for a `$1` in a statement.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value<'a> {
    Int(i64),
    Text(&'a str),
    MaybeText(Option<&'a str>),
    Bytes(&'a [u8]),
    MaybeBytes(Option<&'a [u8]>),
}

/// An open database.
#[derive(Clone, Debug)]
pub(super) enum Pool {
    /// One connection writes, for SQLite has one writer anyway; the others are never kept waiting by it.
    Sqlite {
        readers: SqlitePool,
        writer: SqlitePool,
    },
    Postgres(PgPool),
}

impl Pool {
    /// A connection for single statements that change nothing.
    pub(super) async fn reader(&self) -> Result<Connection, sqlx::Error> {
        Ok(match self {
            Self::Sqlite { readers, .. } => {
                Connection::Sqlite(readers.acquire().await.map_err(|error| match error {
                    sqlx::Error::PoolTimedOut => sqlx::Error::Io(hanging()),
                    error => error,
                })?)
            }
            Self::Postgres(pool) => Connection::Postgres(Leased::new(pool.acquire().await?)),
        })
    }

    /// A transaction which no other writer of this database passes, of whatever node: what it reads stays
    /// true until it commits. Dropped before, it changes nothing.
    pub(super) async fn writer(&self) -> Result<Connection, sqlx::Error> {
        match self {
            Self::Sqlite { writer, .. } => {
                let mut change = SqliteChange { connection: writer.acquire().await?, committed: false };
                query("BEGIN IMMEDIATE").execute(&mut *change.connection).await?;
                Ok(Connection::SqliteChange(change))
            }
            Self::Postgres(pool) => {
                let mut leased = Leased::new(pool.acquire().await?);
                leased.in_change = true;
                let mut connection = Connection::Postgres(leased);
                connection.execute("BEGIN", &[]).await?;
                connection.rows("SELECT pg_advisory_xact_lock($1)", &[Value::Int(WRITE_LOCK)]).await?;
                Ok(connection)
            }
        }
    }

    /// Waits for requests under way and closes every connection.
    pub(super) async fn close(&self) {
        match self {
            Self::Sqlite { readers, writer } => {
                readers.close().await;
                // The last connection to close folds the log into the file, which a reader may not.
                writer.close().await;
            }
            Self::Postgres(pool) => pool.close().await,
        }
    }
}

/// Two that read at once and both do not come back: unlike a writer's turn, that is nobody's business but
/// the disk's.
fn hanging() -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::TimedOut, "reads of the file do not end: look at its disk")
}

/// A connection, or a transaction on one.
#[derive(Debug)]
pub(super) enum Connection {
    Sqlite(PoolConnection<Sqlite>),
    SqliteChange(SqliteChange),
    Postgres(Leased),
}

/// Runs one statement with its values on whichever connection it is.
macro_rules! run {
    ($connection:expr, $statement:expr, $values:expr, $method:ident) => {{
        let mut query = query($statement);
        for value in $values {
            query = match *value {
                Value::Int(number) => query.bind(number),
                Value::Text(text) => query.bind(text),
                Value::MaybeText(text) => query.bind(text),
                Value::Bytes(bytes) => query.bind(bytes),
                Value::MaybeBytes(bytes) => query.bind(bytes),
            };
        }
        query.$method(&mut **$connection).await
    }};
}

impl Connection {
    /// Runs a statement and says how many rows it changed.
    pub(super) async fn execute(
        &mut self,
        statement: &'static str,
        values: &[Value<'_>],
    ) -> Result<u64, sqlx::Error> {
        Ok(match self {
            Self::Sqlite(connection) => run!(connection, statement, values, execute)?.rows_affected(),
            Self::SqliteChange(change) => {
                run!(&mut change.connection, statement, values, execute)?.rows_affected()
            }
            Self::Postgres(leased) => {
                let connection = leased.begin()?;
                let changed = run!(connection, statement, values, execute)?.rows_affected();
                leased.end();
                changed
            }
        })
    }

    /// Runs a statement and gives its rows.
    pub(super) async fn rows(
        &mut self,
        statement: &'static str,
        values: &[Value<'_>],
    ) -> Result<Vec<Row>, sqlx::Error> {
        Ok(match self {
            Self::Sqlite(connection) => {
                run!(connection, statement, values, fetch_all)?.into_iter().map(Row::Sqlite).collect()
            }
            Self::SqliteChange(change) => run!(&mut change.connection, statement, values, fetch_all)?
                .into_iter()
                .map(Row::Sqlite)
                .collect(),
            Self::Postgres(leased) => {
                let connection = leased.begin()?;
                let rows = run!(connection, statement, values, fetch_all)?;
                leased.end();
                rows.into_iter().map(Row::Postgres).collect()
            }
        })
    }

    /// The first row, where there is one.
    pub(super) async fn row(
        &mut self,
        statement: &'static str,
        values: &[Value<'_>],
    ) -> Result<Option<Row>, sqlx::Error> {
        Ok(self.rows(statement, values).await?.into_iter().next())
    }

    /// Makes a transaction's changes last.
    pub(super) async fn commit(self) -> Result<(), sqlx::Error> {
        match self {
            Self::Sqlite(_) => Ok(()),
            Self::SqliteChange(mut change) => {
                query("COMMIT").execute(&mut *change.connection).await?;
                change.committed = true;
                Ok(())
            }
            Self::Postgres(mut leased) => {
                leased.in_change = false;
                let mut connection = Self::Postgres(leased);
                connection.execute("COMMIT", &[]).await.map(drop)
            }
        }
    }
}

/// A transaction of SQLite's, whose connection goes back to its pool only when it is committed.
///
/// On a full disk SQLite ends a transaction by itself, of which the driver learns nothing: it would count itself in one
/// for good and begin no other. A connection that is closed instead ends whatever it was in.
#[derive(Debug)]
pub(super) struct SqliteChange {
    connection: PoolConnection<Sqlite>,
    committed: bool,
}

impl Drop for SqliteChange {
    fn drop(&mut self) {
        if !self.committed {
            self.connection.close_on_drop();
        }
    }
}

/// A PostgreSQL connection that goes back to its pool only between statements and outside transactions.
///
/// Where a request runs out of time, its answer may still come, or the server hangs and a polite farewell
/// would hang with it: then the socket is closed and the place in the pool is free at once.
#[derive(Debug)]
pub(super) struct Leased {
    connection: Option<PoolConnection<Postgres>>,
    in_statement: bool,
    in_change: bool,
}

impl Leased {
    fn new(connection: PoolConnection<Postgres>) -> Self {
        Self { connection: Some(connection), in_statement: false, in_change: false }
    }

    fn begin(&mut self) -> Result<&mut PoolConnection<Postgres>, sqlx::Error> {
        self.in_statement = true;
        self.connection.as_mut().ok_or(sqlx::Error::PoolClosed)
    }

    fn end(&mut self) {
        self.in_statement = false;
    }
}

impl Drop for Leased {
    fn drop(&mut self) {
        if (self.in_statement || self.in_change)
            && let Some(connection) = self.connection.take()
        {
            drop(connection.detach());
        }
    }
}

/// A row of an answer, read by position.
#[derive(Debug)]
pub(super) enum Row {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

macro_rules! column {
    ($(#[$doc:meta] $name:ident: $type:ty;)*) => {$(
        #[$doc]
        pub(super) fn $name(&self, at: usize) -> Result<$type, sqlx::Error> {
            match self {
                Self::Sqlite(row) => row.try_get(at),
                Self::Postgres(row) => row.try_get(at),
            }
        }
    )*};
}

impl Row {
    column! {
        /// A number.
        int: i64;
        /// A text.
        text: &str;
        /// A text that may be absent.
        maybe_text: Option<&str>;
        /// Bytes.
        bytes: &[u8];
        /// Bytes that may be absent.
        maybe_bytes: Option<&[u8]>;
    }
}
