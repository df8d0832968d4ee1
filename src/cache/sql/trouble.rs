//! What a database's error means for its tier.

/// The kinds of error that are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// It is full, locked or read-only: what is there can still be read.
    NoRoom,
    /// Its tables are gone, or the file is damaged: it has to be opened anew.
    Reopen,
    /// Whatever else.
    Unavailable,
}

/// Tells what an error means, and what to do about it where that is known.
pub(super) fn trouble(error: &sqlx::Error) -> (Trouble, Option<&'static str>) {
    if is_damage(error) {
        return (Trouble::Reopen, Some("the file is damaged and is set aside when it is opened next"));
    }
    let Some(error) = error.as_database_error() else {
        return (Trouble::Unavailable, None);
    };
    if error.message().starts_with("no such table") {
        return (Trouble::Reopen, Some("its tables are made anew when it is opened next"));
    }
    let code = error.code().unwrap_or_default();
    match sqlite_code(&code) {
        Some(code) => of_sqlite(code),
        None => of_postgres(&code),
    }
}

/// SQLite's primary code; PostgreSQL's codes have five characters, some of them all digits.
fn sqlite_code(code: &str) -> Option<i32> {
    if code.len() >= 5 { None } else { code.parse::<i32>().ok().map(|code| code & 0xff) }
}

fn of_sqlite(code: i32) -> (Trouble, Option<&'static str>) {
    match code {
        5 | 6 => (Trouble::NoRoom, Some("another process holds the file locked")),
        8 => (Trouble::NoRoom, Some("make the file and its folder writable")),
        13 => (Trouble::NoRoom, Some("free space on its disk or lower cache.sqlite.max_bytes")),
        _ => (Trouble::Unavailable, None),
    }
}

fn of_postgres(code: &str) -> (Trouble, Option<&'static str>) {
    match code {
        "42P01" => (Trouble::Reopen, Some("its tables are made anew when it is opened next")),
        "53100" | "53200" => {
            (Trouble::NoRoom, Some("free space on the server or lower cache.postgres.max_bytes"))
        }
        "25006" => (Trouble::NoRoom, Some("let cache.postgres.url name the primary, not a standby")),
        "40001" | "40P01" | "55P03" => (Trouble::NoRoom, Some("others were writing")),
        "28P01" | "28000" => {
            (Trouble::Unavailable, Some("check cache.postgres.user and cache.postgres.password_file"))
        }
        "3D000" => (Trouble::Unavailable, Some("create the database, or correct cache.postgres.url")),
        "42501" => {
            (Trouble::Unavailable, Some("grant the user all rights on the tables and CREATE on the schema"))
        }
        "53300" => (
            Trouble::Unavailable,
            Some("raise the server's max_connections or lower cache.postgres.connections"),
        ),
        _ => (Trouble::Unavailable, None),
    }
}

/// Whether SQLite says that the file is no database or a broken one (`SQLITE_CORRUPT`, `SQLITE_NOTADB`).
pub(super) fn is_damage(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| sqlite_code(&error.code()?));
    matches!(code, Some(11 | 26))
}
