//! The PostgreSQL tier on a real server: the contract, damage, several nodes, a server that is killed,
//! paused, emptied, or refuses.

use std::{sync::Arc, time::Duration};

use sqlx::{AssertSqlSafe, Connection, PgConnection, query, query_scalar};

use super::{PostgresOptions, SqlTier};
use crate::{
    cache::{
        Answer, GuardedTier, Stored, Tier, TierError,
        contract::{Bound, artifact, every_tier, id, verdict},
        servers::PostgresServer,
    },
    clock::ManualClock,
    config::PostgresTls,
    fault::{ErrorClass, Fault as _},
    guard::BreakerPolicy,
};

fn tier(options: PostgresOptions) -> SqlTier {
    SqlTier::new(options, Arc::new(ManualClock::default()))
}

/// One server for what leaves it in order: starting one takes a second.
#[tokio::test]
async fn postgres_keeps_the_contract_and_nodes_share_it() {
    let server = PostgresServer::start();
    the_contract(&server).await;
    nodes_share_it(&server).await;
    damage_is_found(&server).await;
    tables_that_vanish_are_made_anew(&server).await;
    the_server_proves_who_it_is(&server).await;
    refusals_say_what_to_do(&server).await;
}

async fn the_server_proves_who_it_is(server: &PostgresServer) {
    let near = server.options();
    let options = PostgresOptions {
        url: near.url.replace("127.0.0.1", "localhost"),
        tls: PostgresTls::VerifyFull,
        ca_file: server.ca_file(),
        ..near.clone()
    };
    let known = tier(options.clone());
    assert!(matches!(known.get(&id("a")).await, Ok(Answer::Hit(_))));
    let mut other = PgConnection::connect(&server.url()).await.unwrap();
    let encrypted = "SELECT COUNT(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
                     WHERE ssl AND application_name = 'kasmina'";
    assert_ne!(query_scalar::<_, i64>(encrypted).fetch_one(&mut other).await.unwrap(), 0);
    known.close().await;
    for stranger in [
        PostgresOptions { url: near.url, ..options.clone() },
        PostgresOptions { ca_file: Default::default(), ..options },
    ] {
        let error = tier(stranger).get(&id("a")).await.unwrap_err();
        assert!(matches!(&error, TierError::Open { .. }), "{error}");
    }
}

async fn the_contract(server: &PostgresServer) {
    let clock = ManualClock::default();
    let options = PostgresOptions { max_bytes: 8000, ..server.options() };
    let tier = SqlTier::new(options, Arc::new(clock.clone()));
    every_tier(&tier, &clock, Bound::ByUse { max_bytes: 8000 }).await;
    tier.close().await;
}

/// Tables made by several at once, writes that lose nothing, and one limit for all.
async fn nodes_share_it(server: &PostgresServer) {
    let mut other = PgConnection::connect(&server.url()).await.unwrap();
    query("DROP TABLE artifacts, daily_uses, negatives, kernels, _sqlx_migrations")
        .execute(&mut other)
        .await
        .unwrap();
    let options = PostgresOptions { max_bytes: 40_000, ..server.options() };
    let nodes: Vec<SqlTier> = (0..4).map(|_| tier(options.clone())).collect();
    let opened = futures_util::future::join_all(nodes.iter().map(SqlTier::open)).await;
    assert_eq!(opened, vec![Ok(()); 4]);

    nodes[0].put(&artifact("shared", 100)).await.unwrap();
    let mut work = tokio::task::JoinSet::new();
    for (n, node) in nodes.iter().cloned().enumerate() {
        work.spawn(async move {
            for k in 0..10 {
                node.put(&artifact(&format!("n{n}-{k}"), 1000)).await.unwrap();
                assert!(matches!(node.get(&id("shared")).await.unwrap(), Answer::Hit(_)));
                node.put(&artifact("contended", 100 + n)).await.unwrap();
            }
            node
        });
    }
    for node in work.join_all().await {
        assert_eq!(node.stats().await.unwrap().failures, 0);
        assert!(node.stats().await.unwrap().bytes <= 40_000);
        node.close().await;
    }
    let uses: i64 = query_scalar("SELECT CAST(SUM(uses) AS BIGINT) FROM daily_uses WHERE id = 'shared'")
        .fetch_one(&mut other)
        .await
        .unwrap();
    assert_eq!(uses, 40, "no use is lost");
    let contended = nodes[1].clone();
    assert!(contended.get(&id("contended")).await.is_err(), "it has been closed");
}

async fn damage_is_found(server: &PostgresServer) {
    let tier = tier(server.options());
    let mut other = PgConnection::connect(&server.url()).await.unwrap();
    for damage in [
        "UPDATE artifacts SET bytes = 'other bytes'",
        "UPDATE artifacts SET bytes = substring(bytes from 2)",
        "UPDATE kernels SET digest = 'short'",
        "UPDATE kernels SET metadata = replace(metadata, 'validated', 'deployed')",
        "UPDATE kernels SET verdict = NULL",
        "UPDATE kernels SET confirmed_at_ms = confirmed_at_ms + 1",
        "UPDATE kernels SET seal = 'short'",
    ] {
        tier.clear().await.unwrap();
        let stored = Stored {
            verdict: Some(Arc::new(verdict(artifact("a", 500).digest, true))),
            ..artifact("a", 500)
        };
        tier.put(&stored).await.unwrap();
        assert_eq!(query(damage).execute(&mut other).await.unwrap().rows_affected(), 1, "{damage}");
        assert_eq!(tier.get(&id("a")).await.unwrap(), Answer::Corrupt, "{damage}");
        assert_eq!(tier.get(&id("a")).await.unwrap(), Answer::Miss, "{damage}");
    }
    assert_eq!(tier.stats().await.unwrap().corrupt, 7);
    tier.close().await;
}

async fn tables_that_vanish_are_made_anew(server: &PostgresServer) {
    let tier = tier(server.options());
    tier.open().await.unwrap();
    let mut other = PgConnection::connect(&server.url()).await.unwrap();
    query("DROP TABLE artifacts, daily_uses, negatives, kernels, _sqlx_migrations")
        .execute(&mut other)
        .await
        .unwrap();
    assert!(matches!(tier.get(&id("a")).await, Err(TierError::Request { .. })));
    assert_eq!(tier.get(&id("a")).await.unwrap(), Answer::Miss);
    assert!(tier.put(&artifact("a", 500)).await.unwrap());
    tier.close().await;
}

async fn refusals_say_what_to_do(server: &PostgresServer) {
    let mut other = PgConnection::connect(&server.url()).await.unwrap();
    for statement in [
        "CREATE ROLE reader LOGIN PASSWORD 'not so secret'",
        "CREATE DATABASE elsewhere",
        "ALTER ROLE reader SET default_transaction_read_only = on",
        "GRANT ALL ON ALL TABLES IN SCHEMA public TO reader",
    ] {
        query(AssertSqlSafe(statement.to_owned())).execute(&mut other).await.unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let wrong = folder.path().join("password");
    std::fs::write(&wrong, "wrong").unwrap();
    let options = server.options();
    for (options, advice) in [
        (PostgresOptions { password_file: wrong.clone(), ..options.clone() }, "cache.postgres.password_file"),
        (PostgresOptions { password_file: folder.path().join("absent"), ..options.clone() }, "absent"),
        (PostgresOptions { url: format!("{}x", options.url), ..options.clone() }, "create the database"),
    ] {
        let tier = tier(options);
        let error = tier.get(&id("a")).await.unwrap_err();
        assert!(matches!(&error, TierError::Open { .. }), "{error}");
        assert!(error.to_string().contains(advice), "{error}");
        assert!(!error.to_string().contains("wrong"), "{error}");
        // The file is read again whenever the database is opened.
        std::fs::write(&wrong, "not so secret").unwrap();
    }
    let corrected = tier(PostgresOptions { password_file: wrong, ..options.clone() });
    assert!(matches!(corrected.get(&id("a")).await.unwrap(), Answer::Hit(_)));

    let standby = tier(PostgresOptions { user: "reader".into(), ..options });
    assert!(matches!(standby.get(&id("a")).await.unwrap(), Answer::Hit(_)));
    let error = standby.put(&artifact("b", 10)).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Overloaded, "{error}");
    assert!(error.to_string().contains("not a standby"), "{error}");
}

#[tokio::test]
async fn a_server_may_vanish_hang_and_return() {
    let mut server = PostgresServer::start();
    let clock = ManualClock::default();
    let options = server.options();
    let inner = Arc::new(SqlTier::new(options.clone(), Arc::new(clock.clone())));
    let tier = GuardedTier::new(inner.clone(), BreakerPolicy::default(), Arc::new(clock.clone()));
    let stored = artifact("a", 500);
    tier.put(&stored).await.unwrap();

    // Paused: an established connection hangs, and the limit ends the wait without harm to the next.
    let hasty = PostgresOptions {
        // Reading the system's authorities alone takes longer than these limits.
        tls: PostgresTls::Off,
        connect_timeout: Duration::from_millis(50),
        timeout: Duration::from_millis(100),
        ..options.clone()
    };
    let impatient = SqlTier::new(hasty, Arc::new(clock.clone()));
    while impatient.open().await.is_err() {}
    server.pause(true);
    let error = impatient.get(&id("a")).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Unavailable, "{error}");
    server.pause(false);
    assert_eq!(tier.get(&id("a")).await.unwrap(), Answer::Hit(stored.clone()));
    while impatient.get(&id("a")).await.is_err() {}

    // Killed: a few failures open the breaker, and then it costs nothing.
    server.kill();
    let dead = SqlTier::new(
        PostgresOptions { connect_timeout: Duration::from_millis(50), tls: PostgresTls::Off, ..options },
        Arc::new(clock.clone()),
    );
    let dead = GuardedTier::new(Arc::new(dead), BreakerPolicy::default(), Arc::new(clock.clone()));
    for _ in 0..5 {
        assert!(matches!(dead.get(&id("a")).await, Err(TierError::Open { .. })));
    }
    assert!(matches!(dead.get(&id("a")).await, Err(TierError::Skipped(_))));

    // Back again: the same tiers find what they had stored, the one that was never open too.
    server.restart();
    clock.advance(Duration::from_secs(60));
    while dead.get(&id("a")).await != Ok(Answer::Hit(stored.clone())) {
        clock.advance(Duration::from_secs(60));
    }
    while tier.get(&id("a")).await != Ok(Answer::Hit(stored.clone())) {
        clock.advance(Duration::from_secs(60));
    }
    inner.close().await;
}
