//! The tables, written once for both databases.

use sqlx::{
    Acquire, AssertSqlSafe, SqlSafeStr as _,
    migrate::{Migrate, MigrateError, Migration, MigrationType, Migrator},
};

/// Every step of the tables, in order; a step that has been released is never changed.
const STEPS: &[(&str, &str)] = &[
    ("kernels", include_str!("../migrations/0001_kernels.sql")),
    ("refusals", include_str!("../migrations/0002_refusals.sql")),
];

/// How often the tables are tried where several processes make them at once: SQLite has no lock for it.
const ATTEMPTS: usize = 5;

/// Which words of SQL a database knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    Sqlite,
    Postgres,
}

impl Dialect {
    fn translate(self, statements: &str) -> String {
        match self {
            Self::Sqlite => statements.to_owned(),
            Self::Postgres => statements
                .replace(" INTEGER ", " BIGINT ")
                .replace(" BLOB ", " BYTEA ")
                .replace(") STRICT;", ");"),
        }
    }
}

/// Brings the tables of a database up to date. Several nodes may do so at once.
pub(super) async fn migrate<'a, A>(pool: A, dialect: Dialect) -> Result<(), MigrateError>
where
    A: Acquire<'a> + Copy,
    <A::Connection as std::ops::Deref>::Target: Migrate,
{
    let step = |(number, (name, statements)): (usize, &(&'static str, &str))| {
        let statements = AssertSqlSafe(dialect.translate(statements)).into_sql_str();
        Migration::new(number as i64 + 1, (*name).into(), MigrationType::Simple, statements, false)
    };
    let migrator = Migrator::with_migrations(STEPS.iter().enumerate().map(step).collect());
    for _ in 1..ATTEMPTS {
        match migrator.run(pool).await {
            // Another process was faster: what it did is seen at the next attempt.
            Err(MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _))
                if ["already exists", "duplicate column", "UNIQUE"]
                    .iter()
                    .any(|known| error.to_string().contains(known)) => {}
            result => return result,
        }
    }
    migrator.run(pool).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_word_of_one_database_is_left_for_the_other() {
        for (_, statements) in STEPS {
            let postgres = Dialect::Postgres.translate(statements);
            let code = postgres.lines().map(|line| line.split("--").next().unwrap_or_default());
            let code: Vec<&str> = code.collect();
            assert!(
                code.iter().all(|line| !["INTEGER", "BLOB", "STRICT"].iter().any(|word| line.contains(word)))
            );
            assert_eq!(Dialect::Sqlite.translate(statements), *statements);
        }
    }
}
