//! The Redis tier on a real server: the contract, damage, TLS, users, a server that is killed, paused,
//! emptied, full, or refuses.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::{RedisOptions, RedisTier};
use crate::{
    cache::{
        Answer, GuardedTier, Negative, Stored, Tier, TierError,
        contract::{Bound, artifact, every_tier, id, verdict},
        servers::{RedisServer, certificates},
    },
    clock::ManualClock,
    fault::{ErrorClass, Fault as _},
    guard::BreakerPolicy,
};

/// Long limits, so that a busy machine fails no test; those about limits set their own.
fn options(server: &RedisServer) -> RedisOptions {
    RedisOptions {
        connect_timeout: Duration::from_secs(20),
        timeout: Duration::from_secs(20),
        ..RedisOptions::new(format!("redis://127.0.0.1:{}", server.port()))
    }
}

fn tier(options: RedisOptions) -> RedisTier {
    RedisTier::new(options, Arc::new(ManualClock::default()))
}

async fn keeps_the_contract(options: RedisOptions) {
    let clock = ManualClock::default();
    let tier = RedisTier::new(RedisOptions { max_artifact_bytes: 8000, ..options }, Arc::new(clock.clone()));
    every_tier(&tier, &clock, Bound::ByServer { max_artifact_bytes: 8000 }).await;
}

#[tokio::test]
async fn redis_keeps_the_contract() {
    keeps_the_contract(options(&RedisServer::start(&[]))).await;
}

#[tokio::test]
async fn a_redis_cluster_keeps_the_contract() {
    let servers = RedisServer::cluster(3);
    keeps_the_contract(RedisOptions { cluster: true, ..options(&servers[0]) }).await;
}

#[tokio::test]
async fn a_cluster_whose_slots_move_and_whose_nodes_leave_serves_what_it_has() {
    let mut servers = RedisServer::cluster(3);
    let tier = tier(RedisOptions { cluster: true, ..options(&servers[0]) });
    let names: Vec<String> = (0..30).map(|n| format!("k{n}")).collect();
    for name in &names {
        tier.put(&artifact(name, 500)).await.unwrap();
    }
    let held = |server: &RedisServer| server.cli(&["DBSIZE"]).parse::<usize>().unwrap();
    assert_eq!(servers.iter().map(held).sum::<usize>(), names.len());
    assert!(servers.iter().all(|server| held(server) > 0), "no node has them all");

    // One kernel's slot goes from the second node to the first: the tier is told at the next request.
    let moved =
        names.iter().find(|name| servers[1].cli(&["EXISTS", &format!("kasmina:v1:{{{name}}}")]) == "1");
    let moved = moved.expect("the second node has some");
    let key = format!("kasmina:v1:{{{moved}}}");
    let slot = servers[0].cli(&["CLUSTER", "KEYSLOT", &key]);
    let [to, from] = [&servers[0], &servers[1]].map(|server| server.cli(&["CLUSTER", "MYID"]));
    servers[0].cli(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from]);
    servers[1].cli(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to]);
    servers[1].cli(&["MIGRATE", "127.0.0.1", &servers[0].port().to_string(), &key, "0", "5000"]);
    for server in &servers {
        server.cli(&["CLUSTER", "SETSLOT", &slot, "NODE", &to]);
    }
    for name in &names {
        assert!(matches!(tier.get(&id(name)).await, Ok(Answer::Hit(_))), "{name}");
    }

    // With a node gone, what the others have is still had; what it had is asked for elsewhere.
    let own = |name: &&String| servers[2].cli(&["EXISTS", &format!("kasmina:v1:{{{name}}}")]) == "1";
    let (gone, stays): (Vec<&String>, Vec<&String>) = names.iter().partition(own);
    servers
        .iter()
        .for_each(|server| drop(server.cli(&["CONFIG", "SET", "cluster-require-full-coverage", "no"])));
    servers[2].kill();
    for name in gone {
        let error = tier.get(&id(name)).await.unwrap_err();
        assert_eq!(error.class(), ErrorClass::Unavailable, "{error}");
    }
    for name in stays {
        assert!(matches!(tier.get(&id(name)).await, Ok(Answer::Hit(_))), "{name}");
    }
}

#[tokio::test]
async fn every_kernel_is_one_key_that_ends() {
    let server = RedisServer::start(&[]);
    let tier = tier(RedisOptions { prefix: "p".into(), ttl: Duration::from_secs(1000), ..options(&server) });
    tier.put(&artifact("a", 500)).await.unwrap();
    let until_unix_ms = i64::MAX;
    let negative =
        Negative { code: "kernel.not_found".into(), reason: "none".into(), until_unix_ms, policy: None };
    tier.put_negative(&id("b"), &negative).await.unwrap();
    let mut keys: Vec<String> = server.cli(&["KEYS", "*"]).lines().map(str::to_owned).collect();
    keys.sort();
    assert_eq!(keys, ["p:v1:{a}", "p:v1:{b}"]);
    for key in keys {
        let left: u64 = server.cli(&["TTL", &key]).parse().unwrap();
        assert!((1..=1000).contains(&left), "{key} ends in {left} s");
    }
    // Others with another prefix are neither seen nor cleared.
    server.cli(&["SET", "other", "value"]);
    assert_eq!(tier.clear().await.unwrap(), 2);
    assert_eq!(server.cli(&["GET", "other"]), "value");
}

#[tokio::test]
async fn a_damaged_or_foreign_record_is_dropped_counted_and_answered_as_such() {
    let server = RedisServer::start(&[]);
    let tier = tier(options(&server));
    let key = "kasmina:v1:{a}";
    let damages: [&[&str]; 9] = [
        &["HSET", key, "bytes", "other bytes"],
        &["HDEL", key, "bytes"],
        &["HSET", key, "digest", "short"],
        &["HSET", key, "metadata", "{}"],
        &["HSET", key, "confirmed", "7"],
        &["HDEL", key, "verdict"],
        &["HSET", key, "seal", "short"],
        &["HSET", key, "negative", "{}"],
        &["SET", key, "something else entirely"],
    ];
    for damage in damages {
        let stored = artifact("a", 500);
        let stored = Stored { verdict: Some(Arc::new(verdict(stored.digest, true))), ..stored };
        tier.put(&stored).await.unwrap();
        server.cli(damage);
        assert_eq!(tier.get(&id("a")).await.unwrap(), Answer::Corrupt, "{damage:?}");
        assert_eq!(tier.get(&id("a")).await.unwrap(), Answer::Miss, "{damage:?}");
    }
    assert_eq!(tier.stats().await.unwrap().corrupt, 9);
}

#[tokio::test]
async fn a_record_of_another_node_that_is_larger_than_this_one_takes_is_none() {
    let server = RedisServer::start(&[]);
    let (large, small) =
        (tier(options(&server)), RedisOptions { max_artifact_bytes: 499, ..options(&server) });
    let small = tier(small);
    large.put(&artifact("a", 500)).await.unwrap();
    assert_eq!(small.get(&id("a")).await, Ok(Answer::Miss));
    assert_eq!(large.get(&id("a")).await, Ok(Answer::Hit(artifact("a", 500))), "it is not dropped");
    assert_eq!(small.largest_bytes(), Some(499));
}

#[tokio::test]
async fn a_full_redis_can_be_read_and_says_what_to_do() {
    let server = RedisServer::start(&["--maxmemory-policy", "noeviction"]);
    let tier = tier(options(&server));
    let stored = artifact("a", 500);
    tier.put(&stored).await.unwrap();
    server.cli(&["CONFIG", "SET", "maxmemory", "1mb"]);
    for _ in 0..3 {
        let error = tier.put(&artifact("b", 500)).await.unwrap_err();
        assert_eq!(error.class(), ErrorClass::Overloaded, "{error}");
        assert!(error.to_string().contains("raise Redis's maxmemory"), "{error}");
        assert_eq!(tier.get(&id("a")).await.unwrap(), Answer::Hit(stored.clone()));
    }
    assert_eq!(tier.get(&id("b")).await.unwrap(), Answer::Miss);
    assert_eq!(tier.stats().await.unwrap().max_bytes, 1 << 20);
    server.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    assert!(tier.put(&artifact("b", 500)).await.unwrap());
}

#[tokio::test]
async fn who_is_refused_is_told_what_to_do() {
    // The rights that docs/tiers.md names, and no more.
    let rights = "+hmget +hset +hget +hstrlen +del +unlink +pexpire +eval +multi +exec +scan +dbsize +info +ping \
                  +xadd +xrange +publish +subscribe +cluster|slots";
    assert!(include_str!("../../../docs/tiers.md").replace("\n         ", " ").contains(rights));
    let mut arguments = vec!["--requirepass", "not so secret", "--user", "kernels", "on", ">hush"];
    arguments.extend(["~kasmina:*", "&kasmina:*", "-@all"]);
    arguments.extend(rights.split_whitespace());
    let server = RedisServer::start(&arguments);
    let folder = tempfile::tempdir().unwrap();
    let password_file = folder.path().join("password");
    let open = options(&server);
    let error = tier(open.clone()).get(&id("a")).await.unwrap_err();
    assert!(error.to_string().contains("cache.redis.password_file"), "{error}");

    fs::write(&password_file, "wrong guess\n").unwrap();
    let named = RedisOptions { user: "kernels".into(), password_file: password_file.clone(), ..open };
    let corrected = tier(named.clone());
    let error = corrected.get(&id("a")).await.unwrap_err();
    assert!(error.to_string().contains("check cache.redis.user"), "{error}");
    assert!(!error.to_string().contains("wrong guess"), "{error}");
    assert_eq!(error.class(), ErrorClass::Unavailable);
    // The file is read again after a refusal.
    fs::write(&password_file, "hush\n").unwrap();
    while corrected.get(&id("a")).await.is_err() {}
    let clock = ManualClock::default();
    let named_limit = RedisOptions { max_artifact_bytes: 8000, ..named.clone() };
    let entitled = RedisTier::new(named_limit, Arc::new(clock.clone()));
    every_tier(&entitled, &clock, Bound::ByServer { max_artifact_bytes: 8000 }).await;

    let elsewhere = tier(RedisOptions { prefix: "other".into(), ..named });
    let error = elsewhere.put(&artifact("a", 10)).await.unwrap_err();
    assert!(error.to_string().contains("docs/tiers.md"), "{error}");
}

#[tokio::test]
async fn a_server_may_vanish_hang_and_return_empty() {
    let mut server = RedisServer::start(&[]);
    let clock = ManualClock::default();
    let short = RedisOptions {
        connect_timeout: Duration::from_millis(100),
        timeout: Duration::from_millis(100),
        ..options(&server)
    };
    let inner = Arc::new(RedisTier::new(short, Arc::new(clock.clone())));
    let tier = GuardedTier::new(inner, BreakerPolicy::default(), Arc::new(clock.clone()));
    let stored = artifact("a", 500);
    // Whatever comes late opens the breaker again, and only the clock ends that.
    let later = || clock.advance(Duration::from_secs(60));
    let is_put = async || {
        while tier.put(&stored).await != Ok(true) {
            later();
        }
    };
    let answers = async |answer: Answer| {
        while tier.get(&id("a")).await != Ok(answer.clone()) {
            later();
        }
    };
    is_put().await;

    // Paused: each request ends by its limit, until the breaker costs nothing.
    server.pause(true);
    let mut failed = 0;
    while let Err(error) = tier.get(&id("a")).await
        && !matches!(error, TierError::Skipped(_))
    {
        assert!(matches!(error, TierError::Request { .. }), "{error}");
        failed += 1;
    }
    assert!(failed > 0);
    server.pause(false);
    answers(Answer::Hit(stored.clone())).await;

    server.kill();
    while !matches!(tier.get(&id("a")).await, Err(TierError::Skipped(_))) {}
    server.restart();
    answers(Answer::Miss).await;
    is_put().await;
    answers(Answer::Hit(stored.clone())).await;
}

/// A network before a server, which can lose the answers on every connection that is open.
struct Network {
    port: u16,
    losses: Arc<AtomicU64>,
}

impl Network {
    async fn before(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let network = Self { port: listener.local_addr().unwrap().port(), losses: Arc::default() };
        let losses = network.losses.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                let ((mut asks, mut hears), (mut answers, mut asked)) =
                    (client.into_split(), server.into_split());
                tokio::spawn(async move { tokio::io::copy(&mut asks, &mut asked).await });
                let (losses, begun) = (losses.clone(), losses.load(Ordering::SeqCst));
                tokio::spawn(async move {
                    let mut piece = [0; 4096];
                    while let Ok(count @ 1..) = answers.read(&mut piece).await {
                        if losses.load(Ordering::SeqCst) == begun
                            && hears.write_all(&piece[..count]).await.is_err()
                        {
                            break;
                        }
                    }
                });
            }
        });
        network
    }
}

#[tokio::test]
async fn a_connection_on_which_nothing_comes_any_more_is_left() {
    let server = RedisServer::start(&[]);
    let network = Network::before(server.port()).await;
    let timeout = Duration::from_secs(1);
    let url = format!("redis://127.0.0.1:{}", network.port);
    let tier = tier(RedisOptions { url, timeout, ..options(&server) });
    let stored = artifact("a", 500);
    while tier.put(&stored).await != Ok(true) {}
    network.losses.fetch_add(1, Ordering::SeqCst);
    // Neither end learns of it, so that waiting for the system to give the connection up takes minutes.
    assert!(matches!(tier.get(&id("a")).await, Err(TierError::Request { .. })));
    let mut answers = Vec::new();
    // Several, for a busy machine.
    while answers.len() < 5 && !matches!(answers.last(), Some(Ok(_))) {
        answers.push(tier.get(&id("a")).await);
    }
    assert_eq!(answers.last(), Some(&Ok(Answer::Hit(stored))), "on a new connection");
}

#[tokio::test]
async fn a_server_that_left_between_two_requests_fails_neither() {
    let mut server = RedisServer::start(&[]);
    let tier = tier(options(&server));
    assert_eq!(tier.get(&id("a")).await, Ok(Answer::Miss));
    server.kill();
    server.restart();
    assert_eq!(tier.get(&id("a")).await, Ok(Answer::Miss));
    assert_eq!(tier.stats().await.unwrap().failures, 0);
}

#[tokio::test]
async fn encrypted_the_server_and_the_client_prove_who_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let text = |name: &str| path(name).display().to_string();
    certificates(folder.path());
    let server = RedisServer::start(&[
        "--tls-port",
        "{port}",
        "--tls-cert-file",
        &text("server.pem"),
        "--tls-key-file",
        &text("server.key"),
        "--tls-ca-cert-file",
        &text("ca.pem"),
    ]);
    let known = RedisOptions {
        url: format!("rediss://localhost:{}", server.port()),
        ca_file: path("ca.pem"),
        client_certificate: (path("client.pem"), path("client.key")),
        ..options(&server)
    };
    let encrypted = tier(known.clone());
    assert!(encrypted.put(&artifact("a", 100_000)).await.unwrap());
    assert_eq!(encrypted.get(&id("a")).await.unwrap(), Answer::Hit(artifact("a", 100_000)));

    let no_one = RedisOptions { client_certificate: Default::default(), ..known.clone() };
    assert!(tier(no_one).get(&id("a")).await.is_err(), "the server asks for a certificate");
    let unknown_ca = RedisOptions { ca_file: path("client.pem"), ..known.clone() };
    assert!(tier(unknown_ca).get(&id("a")).await.is_err(), "nobody vouches for the server");
    let wrong_name = RedisOptions { url: format!("rediss://127.0.0.1:{}", server.port()), ..known };
    assert!(tier(wrong_name).get(&id("a")).await.is_err(), "the certificate is for localhost");
}
