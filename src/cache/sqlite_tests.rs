//! The SQLite tier: the contract, damage, and death at any moment.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use sqlx::{Connection, SqliteConnection, query};

use super::{
    Answer, SqliteOptions, SqliteTier, Tier, TierError,
    contract::{artifact, every_tier, id, verdict},
};
use crate::clock::ManualClock;

async fn open(path: &Path, clock: &ManualClock) -> SqliteTier {
    let options = SqliteOptions { max_bytes: 8000, ..SqliteOptions::new(path) };
    SqliteTier::open(&options, Arc::new(clock.clone())).await.unwrap()
}

#[tokio::test]
async fn sqlite_keeps_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    let clock = ManualClock::default();
    let tier = open(&folder.path().join("new/kernels.sqlite"), &clock).await;
    every_tier(&tier, &clock, 8000).await;
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
        let mut other = SqliteConnection::connect(&format!("sqlite://{}", path.display())).await.unwrap();
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
    let mut other = SqliteConnection::connect(&format!("sqlite://{}", path.display())).await.unwrap();
    let refuse = "CREATE TRIGGER full BEFORE UPDATE ON kernels BEGIN SELECT RAISE(FAIL, 'disk full'); END";
    query(refuse).execute(&mut other).await.unwrap();
    assert_eq!(tier.get(&id("a")).await.unwrap(), Answer::Hit(artifact("a", 500)));
    assert_eq!(tier.stats().await.unwrap().failures, 1);
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
    let error = SqliteTier::open(&options, Arc::new(ManualClock::default())).await.unwrap_err();
    assert!(matches!(&error, TierError::Open { .. }));
    assert!(error.to_string().contains(&folder.path().display().to_string()), "{error}");
}

/// Not a test by itself: the writer that [`a_killed_writer_leaves_whole_rows`] kills.
#[tokio::test]
#[ignore = "runs until killed; started by a_killed_writer_leaves_whole_rows"]
async fn write_until_killed() {
    let Some(path) = std::env::var_os("KASMINA_TEST_SQLITE") else { return };
    let options = SqliteOptions { busy_timeout: Duration::from_secs(60), ..SqliteOptions::new(path) };
    let tier = SqliteTier::open(&options, Arc::new(ManualClock::default())).await.unwrap();
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
        .args(["--exact", "cache::sqlite_tests::write_until_killed", "--ignored", "--nocapture"])
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

    let tier = SqliteTier::open(&SqliteOptions::new(&path), Arc::new(ManualClock::default())).await.unwrap();
    for n in 0..20 {
        let stored = artifact(&format!("k{n}"), 100_000);
        assert_eq!(tier.get(stored.id()).await.unwrap(), Answer::Hit(stored), "it was told to be stored");
    }
    let mut other = SqliteConnection::connect(&format!("sqlite://{}", path.display())).await.unwrap();
    let check: String = sqlx::query_scalar("PRAGMA integrity_check").fetch_one(&mut other).await.unwrap();
    assert_eq!(check, "ok");
    let halves = "SELECT COUNT(*) FROM kernels LEFT JOIN artifacts USING (id) WHERE bytes IS NULL";
    assert_eq!(sqlx::query_scalar::<_, i64>(halves).fetch_one(&mut other).await.unwrap(), 0);
}
