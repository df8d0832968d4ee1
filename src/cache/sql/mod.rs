//! L3: artifacts in an SQLite file of this node or in a PostgreSQL database that nodes share.
//!
//! One tier, [`SqlTier`], over one set of tables and statements; the two databases differ in how they are
//! opened, in what their errors mean, and in how a writer keeps others out.

mod connection;
mod migrations;
mod postgres;
mod sqlite;
mod statements;
mod tier;
mod trouble;
mod uses;

#[cfg(test)]
mod postgres_tests;
#[cfg(test)]
mod sqlite_tests;

pub use postgres::PostgresOptions;
pub use sqlite::SqliteOptions;
pub use tier::{Database, SqlTier};
