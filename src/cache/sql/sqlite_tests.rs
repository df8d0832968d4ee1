//! The SQLite tier: the contract, damage, and death at any moment.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use sqlx::{Connection, SqliteConnection, query};

use super::{SqlTier, SqliteOptions};
use crate::{
    cache::{
        Answer, Negative, Tier, TierError,
        contract::{Bound, artifact, every_tier, id, verdict},
    },
    clock::{Clock as _, ManualClock},
    fault::{ErrorClass, Fault as _},
};

async fn open(path: &Path, clock: &ManualClock) -> SqlTier {
    let options = SqliteOptions { max_bytes: 8000, ..SqliteOptions::new(path) };
    let tier = SqlTier::new(options, Arc::new(clock.clone()));
    tier.open().await.unwrap();
    tier
}

async fn connect(path: &Path) -> SqliteConnection {
    SqliteConnection::connect(&format!("sqlite://{}", path.display())).await.unwrap()
}

#[tokio::test]
async fn sqlite_keeps_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    let clock = ManualClock::default();
    let tier = open(&folder.path().join("new/kernels.sqlite"), &clock).await;
    every_tier(&tier, &clock, Bound::ByUse { max_bytes: 8000 }).await;
}

#[tokio::test]
async fn kernels_outlive_the_tier_that_stored_them() {
    let folder = tempfile::tempdir().unwrap();
    let (path, clock) = (folder.path().join("kernels.sqlite"), ManualClock::default());
    let stored = artifact("a", 500);
    let tier = open(&path, &clock).await;
    tier.put(&stored).await.unwrap();
    tier.close().await;
    let tier = open(&path, &clock).await;
    assert_eq!(tier.get(&id("a")).await.unwrap(), Answer::Hit(stored));
}

#[tokio::test]
async fn a_damaged_row_is_dropped_counted_and_answered_as_such() {
    let damages = [
        "UPDATE artifacts SET bytes = zeroblob(500)",
        "UPDATE artifacts SET bytes = substr(bytes, 1, 499)",
        "UPDATE kernels SET digest = zeroblob(32)",
        "UPDATE kernels SET digest = x'00'",
        "UPDATE kernels SET metadata = replace(metadata, 'validated', 'deployed')",
        "UPDATE kernels SET verdict = replace(verdict, 'false', 'true')",
        "UPDATE kernels SET verdict = NULL",
        "UPDATE kernels SET seal = zeroblob(32)",
    ];
    for damage in damages {
        let folder = tempfile::tempdir().unwrap();
        let (path, clock) = (folder.path().join("kernels.sqlite"), ManualClock::default());
        let tier = open(&path, &clock).await;
        let stored = artifact("a", 500);
        tier.put(&stored).await.unwrap();
        assert!(tier.put_verdict(&id("a"), stored.digest, &verdict(stored.digest, false)).await.unwrap());
        let mut other = connect(&path).await;
        assert_eq!(query(damage).execute(&mut other).await.unwrap().rows_affected(), 1, "{damage}");
        assert_eq!(tier.get(&id("a")).await.unwrap(), Answer::Corrupt, "{damage}");
        assert_eq!(tier.get(&id("a")).await.unwrap(), Answer::Miss, "{damage}");
        let stats = tier.stats().await.unwrap();
        assert_eq!((stats.corrupt, stats.entries, stats.bytes), (1, 0, 0), "{damage}");
    }
}

#[tokio::test]
async fn good_bytes_are_given_where_nothing_can_be_written() {
    let folder = tempfile::tempdir().unwrap();
    let (path, clock) = (folder.path().join("kernels.sqlite"), ManualClock::default());
    let tier = open(&path, &clock).await;
    tier.put(&artifact("a", 500)).await.unwrap();
    let mut other = connect(&path).await;
    let refuse = "CREATE TRIGGER full BEFORE UPDATE ON kernels BEGIN SELECT RAISE(FAIL, 'disk full'); END";
    query(refuse).execute(&mut other).await.unwrap();
    assert_eq!(tier.get(&id("a")).await.unwrap(), Answer::Hit(artifact("a", 500)));
    assert_eq!(tier.most_used(0, 9).await, Ok(Some(Vec::new())), "the use waits to be noted");
    assert!(tier.stats().await.unwrap().failures > 0);
    query("DROP TRIGGER full").execute(&mut other).await.unwrap();
    assert_eq!(tier.most_used(0, 9).await, Ok(Some(vec![id("a")])), "nothing was lost");
}

#[tokio::test]
async fn uses_that_cannot_be_written_fail_no_store_and_are_written_in_portions() {
    let folder = tempfile::tempdir().unwrap();
    let (path, clock) = (folder.path().join("kernels.sqlite"), ManualClock::default());
    let tier = open(&path, &clock).await;
    tier.put(&artifact("a", 500)).await.unwrap();
    let mut other = connect(&path).await;
    // A kernel each, without the work of storing them.
    let many = "INSERT INTO kernels WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500)
                SELECT 'k' || i, digest, metadata, verdict, confirmed_at_ms, seal, 1, 0, 0, 0 FROM kernels, n";
    query(many).execute(&mut other).await.unwrap();
    let refuse = "CREATE TRIGGER full BEFORE INSERT ON daily_uses
                  WHEN (SELECT COUNT(*) FROM daily_uses) >= 200
                  BEGIN SELECT RAISE(FAIL, 'disk full'); END";
    query(refuse).execute(&mut other).await.unwrap();
    let uses: Vec<_> = (1..=500).map(|n| (id(&format!("k{n}")), 1)).collect();
    tier.note_uses(&uses).await.unwrap();
    assert_eq!(tier.put(&artifact("b", 500)).await, Ok(true), "a store needs no uses");
    let written = "SELECT COUNT(*) FROM daily_uses";
    assert_eq!(tier.most_used(0, 999).await.unwrap().unwrap().len(), 200, "the first portion is there");
    query("DROP TRIGGER full").execute(&mut other).await.unwrap();
    assert_eq!(tier.most_used(0, 999).await.unwrap().unwrap().len(), 500, "nothing was lost");
    let count: i64 = sqlx::query_scalar(written).fetch_one(&mut other).await.unwrap();
    assert_eq!(count, 500);
}

#[tokio::test]
async fn a_locked_file_can_be_read_and_says_why_it_takes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kernels.sqlite");
    let busy_timeout = Duration::from_millis(20);
    let options = SqliteOptions { busy_timeout, ..SqliteOptions::new(&path) };
    let tier = SqlTier::new(options, Arc::new(ManualClock::default()));
    tier.put(&artifact("a", 500)).await.unwrap();
    let mut other = connect(&path).await;
    query("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
    for _ in 0..3 {
        let error = tier.put(&artifact("b", 500)).await.unwrap_err();
        assert_eq!(error.class(), ErrorClass::Overloaded, "{error}");
        assert!(error.to_string().contains("holds the file locked"), "{error}");
        assert_eq!(tier.get(&id("a")).await.unwrap(), Answer::Hit(artifact("a", 500)));
    }
    query("COMMIT").execute(&mut other).await.unwrap();
    assert!(tier.put(&artifact("b", 500)).await.unwrap());
}

#[tokio::test]
async fn a_full_disk_can_be_read_and_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kernels.sqlite");
    let tier = SqlTier::new(SqliteOptions::new(&path), Arc::new(ManualClock::default()));
    tier.put(&artifact("a", 500)).await.unwrap();
    // As large as it is, each connection by itself: what a full disk says through SQLite.
    tier.limit_pages().await;
    let error = tier.put(&artifact("b", 500_000)).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Overloaded, "{error}");
    assert!(error.to_string().contains("free space on its disk"), "{error}");
    assert_eq!(tier.get(&id("a")).await.unwrap(), Answer::Hit(artifact("a", 500)));
    assert_eq!(tier.get(&id("b")).await.unwrap(), Answer::Miss, "no half of it stayed");
}

#[tokio::test]
async fn tables_that_vanish_are_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kernels.sqlite");
    let tier = open(&path, &ManualClock::default()).await;
    tier.put(&artifact("a", 500)).await.unwrap();
    let mut other = connect(&path).await;
    for table in ["artifacts", "daily_uses", "negatives", "kernels", "_sqlx_migrations"] {
        let drop = sqlx::AssertSqlSafe(format!("DROP TABLE {table}"));
        query(drop).execute(&mut other).await.unwrap();
    }
    assert!(matches!(tier.get(&id("a")).await, Err(TierError::Request { .. })));
    assert_eq!(tier.get(&id("a")).await.unwrap(), Answer::Miss);
    assert!(tier.put(&artifact("a", 500)).await.unwrap());
}

#[tokio::test]
async fn negative_results_are_bounded_and_the_soonest_to_end_go() {
    let folder = tempfile::tempdir().unwrap();
    let (path, clock) = (folder.path().join("kernels.sqlite"), ManualClock::default());
    let tier = open(&path, &clock).await;
    let mut other = connect(&path).await;
    let many = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10000)
                INSERT INTO negatives (id, code, reason, noted_at_ms, until_ms)
                SELECT 'n' || i, 'kernel.not_found', '', $1, $1 + i FROM n";
    query(many).bind(clock.unix_ms()).execute(&mut other).await.unwrap();
    let until_unix_ms = clock.unix_ms() + 5;
    let negative =
        Negative { code: "kernel.not_found".into(), reason: "none".into(), until_unix_ms, policy: None };
    tier.put_negative(&id("newcomer"), &negative).await.unwrap();
    let left: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM negatives").fetch_one(&mut other).await.unwrap();
    assert_eq!(left, 10_000);
    assert_eq!(tier.get(&id("n1")).await.unwrap(), Answer::Miss);
    assert!(matches!(tier.get(&id("n2")).await.unwrap(), Answer::Negative(_)));
    assert_eq!(tier.get(&id("newcomer")).await.unwrap(), Answer::Negative(negative));
}

#[tokio::test]
async fn a_clock_that_is_set_back_does_not_change_who_goes_first() {
    let folder = tempfile::tempdir().unwrap();
    let (path, clock) = (folder.path().join("kernels.sqlite"), ManualClock::default());
    let tier = open(&path, &clock).await;
    for name in ["a", "b", "c"] {
        tier.put(&artifact(name, 2000)).await.unwrap();
        clock.set_unix_ms(clock.unix_ms() - 1_000_000_000);
    }
    tier.get(&id("a")).await.unwrap();
    tier.put(&artifact("d", 2000)).await.unwrap();
    assert_eq!(tier.about(&id("b")).await.unwrap(), None);
    assert!(tier.about(&id("a")).await.unwrap().is_some());
}

#[tokio::test]
async fn a_file_that_is_no_database_is_set_aside() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kernels.sqlite");
    std::fs::write(&path, "something else entirely ".repeat(100)).unwrap();
    let tier = open(&path, &ManualClock::default()).await;
    assert!(tier.put(&artifact("a", 10)).await.unwrap());
    assert!(folder.path().join("kernels.sqlite.corrupt").exists());
}

#[tokio::test]
async fn a_place_that_cannot_hold_a_file_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let options = SqliteOptions::new(folder.path());
    let error = SqlTier::new(options, Arc::new(ManualClock::default())).open().await.unwrap_err();
    assert!(matches!(&error, TierError::Open { .. }));
    assert!(error.to_string().contains(&folder.path().display().to_string()), "{error}");
}

/// Not a test by itself: the writer that [`a_killed_writer_leaves_whole_rows`] kills.
#[tokio::test]
#[ignore = "runs until killed; started by a_killed_writer_leaves_whole_rows"]
async fn write_until_killed() {
    let Some(path) = std::env::var_os("KASMINA_TEST_SQLITE") else { return };
    let options = SqliteOptions { busy_timeout: Duration::from_secs(60), ..SqliteOptions::new(path) };
    let tier = SqlTier::new(options, Arc::new(ManualClock::default()));
    for n in 0u64.. {
        tier.put(&artifact(&format!("k{n}"), 100_000)).await.unwrap();
        println!("stored k{n}");
    }
}

#[tokio::test]
async fn a_killed_writer_leaves_whole_rows() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kernels.sqlite");
    let mut writer = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "cache::sql::sqlite_tests::write_until_killed", "--ignored", "--nocapture"])
        .env("KASMINA_TEST_SQLITE", &path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(writer.stdout.take().unwrap()).lines();
    let told: Vec<String> =
        lines.map(Result::unwrap).filter(|line| line.contains("stored")).take(20).collect();
    writer.kill().unwrap();
    writer.wait().unwrap();
    assert_eq!(told.len(), 20);

    let tier = SqlTier::new(SqliteOptions::new(&path), Arc::new(ManualClock::default()));
    for n in 0..20 {
        let stored = artifact(&format!("k{n}"), 100_000);
        assert_eq!(tier.get(stored.id()).await.unwrap(), Answer::Hit(stored), "it was told to be stored");
    }
    let mut other = connect(&path).await;
    let check: String = sqlx::query_scalar("PRAGMA integrity_check").fetch_one(&mut other).await.unwrap();
    assert_eq!(check, "ok");
    let halves = "SELECT COUNT(*) FROM kernels LEFT JOIN artifacts USING (id) WHERE bytes IS NULL";
    assert_eq!(sqlx::query_scalar::<_, i64>(halves).fetch_one(&mut other).await.unwrap(), 0);
}
