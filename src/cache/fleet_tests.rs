//! Announcements on a real Redis: heard by others alone, caught up with after an absence, whoever was away.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::{Fleet, Hear, Heard, RedisOptions, SharedFault, TierError, contract::id, servers::RedisServer};
use crate::id::KernelId;

fn node(server: &RedisServer, name: &str, cursor_file: Option<PathBuf>) -> Arc<Fleet> {
    let options = RedisOptions {
        connect_timeout: Duration::from_secs(20),
        timeout: Duration::from_secs(20),
        ..RedisOptions::new(format!("redis://127.0.0.1:{}", server.port()))
    };
    Arc::new(Fleet::new(options, name.to_owned(), cursor_file))
}

/// A node that listens until it is dropped, and what it hears.
struct Listener {
    heard: UnboundedReceiver<Heard>,
    task: tokio::task::JoinHandle<()>,
}

impl Listener {
    async fn start(fleet: &Arc<Fleet>) -> Self {
        let (sender, heard) = unbounded_channel();
        let hear: Hear = Arc::new(move |heard| {
            let sender = sender.clone();
            Box::pin(async move {
                drop(sender.send(heard));
                Ok(())
            })
        });
        Self::start_with(fleet, hear, heard).await
    }

    async fn start_with(fleet: &Arc<Fleet>, hear: Hear, heard: UnboundedReceiver<Heard>) -> Self {
        let own = fleet.clone();
        let task = tokio::spawn(async move { own.listen(hear).await });
        while !fleet.stats().listening {
            tokio::task::yield_now().await;
        }
        Self { heard, task }
    }

    /// What it hears next, but for what comes before that.
    async fn hears(&mut self) -> Heard {
        loop {
            match self.heard.recv().await.unwrap() {
                Heard::Condemn { .. } => {}
                heard => return heard,
            }
        }
    }

    async fn next(&mut self) -> KernelId {
        match self.hears().await {
            Heard::Forget { kernel, .. } => kernel,
            heard => panic!("nothing was missed: {heard:?}"),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test]
async fn an_announcement_reaches_every_other_node_and_not_its_own() {
    let server = RedisServer::start(&[]);
    let nodes = ["a", "b", "c"].map(|name| node(&server, name, None));
    let mut listeners = Vec::new();
    for node in &nodes {
        listeners.push(Listener::start(node).await);
    }
    nodes[0].announce(&id("k1")).await.unwrap();
    let condemned = Heard::Condemn { kernels: vec![(id("k1"), "a".to_owned())] };
    assert_eq!(listeners[2].heard.recv().await, Some(condemned), "before it waits for anything");
    nodes[1].announce(&id("k2")).await.unwrap();
    assert_eq!([listeners[2].next().await, listeners[2].next().await], [id("k1"), id("k2")]);
    assert_eq!(listeners[1].next().await, id("k1"));
    assert_eq!(listeners[0].next().await, id("k2"), "its own is not heard");
    assert_eq!((nodes[0].stats().announced, nodes[2].stats().heard), (1, 2));
}

#[tokio::test]
async fn who_was_away_hears_what_it_missed_once() {
    let server = RedisServer::start(&[]);
    let folder = tempfile::tempdir().unwrap();
    let cursor = Some(folder.path().join("fleet.cursor"));
    let (speaker, away) = (node(&server, "a", None), node(&server, "b", cursor.clone()));
    let mut listener = Listener::start(&away).await;
    speaker.announce(&id("k1")).await.unwrap();
    assert_eq!(listener.next().await, id("k1"));
    // Something has been saved once the next one has been heard, unless all were read at once.
    speaker.announce(&id("k2")).await.unwrap();
    assert_eq!(listener.next().await, id("k2"));
    speaker.announce(&id("k3")).await.unwrap();
    assert_eq!(listener.next().await, id("k3"));
    drop(listener);
    // More than is read at a time, written as nodes write them, without a bell.
    let many = "for n = 0, 1199 do
                    redis.call('XADD', KEYS[1], '*', 'node', 'z', 'kernel', 'missed' .. n)
                end";
    server.cli(&["EVAL", many, "1", "kasmina:v1:fleet"]);
    let back = node(&server, "b", cursor);
    let mut listener = Listener::start(&back).await;
    let mut first = listener.next().await;
    while ["k1", "k2", "k3"].contains(&first.as_str()) {
        first = listener.next().await;
    }
    assert_eq!(first, id("missed0"));
    for n in 1..1200 {
        assert_eq!(listener.next().await, id(&format!("missed{n}")));
    }
    assert_eq!(back.stats().gaps, 0);
}

#[tokio::test]
async fn what_could_not_be_forgotten_is_tried_again_and_keeps_nothing_else_waiting() {
    let server = RedisServer::start(&[]);
    let folder = tempfile::tempdir().unwrap();
    let cursor = Some(folder.path().join("fleet.cursor"));
    let (speaker, ear) = (node(&server, "a", None), node(&server, "b", cursor.clone()));
    let refuses = Arc::new(AtomicBool::new(true));
    let stubborn = |refuses: &Arc<AtomicBool>, sender: UnboundedSender<Heard>| -> Hear {
        let refuses = refuses.clone();
        Arc::new(move |heard| {
            let (sender, refuses) = (sender.clone(), refuses.clone());
            Box::pin(async move {
                drop(sender.send(heard.clone()));
                let reason = "the file is read-only".to_owned();
                let failed = TierError::Overloaded { tier: "sqlite", action: "remove a kernel", reason };
                let second = Heard::Forget { kernel: id("k2"), node: "a".to_owned() };
                match heard == second && refuses.load(Ordering::SeqCst) {
                    true => Err(Arc::new(failed) as SharedFault),
                    false => Ok(()),
                }
            })
        })
    };
    let (sender, heard) = unbounded_channel();
    let mut listener = Listener::start_with(&ear, stubborn(&refuses, sender), heard).await;
    for name in ["k1", "k2", "k3"] {
        speaker.announce(&id(name)).await.unwrap();
    }
    let mut tried = Vec::new();
    // Three times at least, the last two unasked, and the others beside once; when is the machine's.
    while tried.iter().filter(|kernel| **kernel == id("k2")).count() < 3 || !tried.contains(&id("k3")) {
        tried.push(listener.next().await);
    }
    let others: Vec<_> = tried.iter().filter(|kernel| **kernel != id("k2")).collect();
    assert_eq!(others, [&id("k1"), &id("k3")]);
    assert_eq!(ear.stats().heard, 3);
    // A node that starts anew has not forgotten what it owes.
    drop(listener);
    let again = node(&server, "b", cursor.clone());
    let (sender, heard) = unbounded_channel();
    let mut listener = Listener::start_with(&again, stubborn(&refuses, sender), heard).await;
    while listener.next().await != id("k2") {}
    refuses.store(false, Ordering::SeqCst);
    while listener.next().await != id("k2") {}
    speaker.announce(&id("k4")).await.unwrap();
    while listener.next().await != id("k4") {}
    speaker.announce(&id("k5")).await.unwrap();
    while listener.next().await != id("k5") {}
    drop(listener);
    // What was done is saved: only the last may come again.
    let last = node(&server, "b", cursor);
    let mut listener = Listener::start(&last).await;
    speaker.announce(&id("k6")).await.unwrap();
    let mut rest = vec![listener.next().await];
    while rest.last() != Some(&id("k6")) {
        rest.push(listener.next().await);
    }
    assert!(!rest.contains(&id("k2")), "{rest:?}");
}

#[tokio::test]
async fn a_redis_that_restarts_empty_is_listened_to_again() {
    let mut server = RedisServer::start(&[]);
    let (speaker, ear) = (node(&server, "a", None), node(&server, "b", None));
    let mut listener = Listener::start(&ear).await;
    speaker.announce(&id("k1")).await.unwrap();
    assert_eq!(listener.next().await, id("k1"));
    server.kill();
    assert!(speaker.announce(&id("lost")).await.is_err(), "who announces is told that nobody hears");
    server.restart();
    speaker.announce(&id("k2")).await.unwrap();
    assert_eq!(listener.hears().await, Heard::Gap, "what was in the log and had not been read");
    assert_eq!(listener.hears().await, Heard::Forget { kernel: id("k2"), node: "a".to_owned() });
    assert_eq!(ear.stats().gaps, 1);
}

#[tokio::test]
async fn a_gap_that_could_not_be_dealt_with_is_found_again() {
    let mut server = RedisServer::start(&[]);
    let (speaker, ear) = (node(&server, "a", None), node(&server, "b", None));
    let (sender, heard) = unbounded_channel();
    let refuses = Arc::new(AtomicBool::new(true));
    let hear: Hear = Arc::new(move |heard| {
        let refused = heard == Heard::Gap && refuses.swap(false, Ordering::SeqCst);
        drop(sender.send(heard));
        let reason = "the cache is being restarted".to_owned();
        let failed = TierError::Overloaded { tier: "device", action: "doubt what it has", reason };
        Box::pin(async move { if refused { Err(Arc::new(failed) as SharedFault) } else { Ok(()) } })
    });
    let mut listener = Listener::start_with(&ear, hear, heard).await;
    speaker.announce(&id("k1")).await.unwrap();
    assert_eq!(listener.next().await, id("k1"));
    server.kill();
    server.restart();
    speaker.announce(&id("k2")).await.unwrap();
    for _ in 0..2 {
        assert_eq!(listener.hears().await, Heard::Gap);
    }
    assert_eq!((listener.next().await, ear.stats().gaps), (id("k2"), 1));
}

#[tokio::test]
async fn what_is_no_announcement_is_passed_over() {
    let server = RedisServer::start(&[]);
    let (speaker, ear) = (node(&server, "a", None), node(&server, "b", None));
    let mut listener = Listener::start(&ear).await;
    server.cli(&["XADD", "kasmina:v1:fleet", "*", "something", "else"]);
    server.cli(&["XADD", "kasmina:v1:fleet", "*", "node", "x", "kernel", "not an id"]);
    server.cli(&["PUBLISH", "kasmina:v1:invalidate", "noise"]);
    speaker.announce(&id("k1")).await.unwrap();
    assert_eq!(listener.next().await, id("k1"));
}

#[tokio::test]
async fn nodes_of_a_cluster_hear_each_other() {
    let servers = RedisServer::cluster(3);
    let fleet = |name: &str, server: &RedisServer| {
        let options = RedisOptions {
            cluster: true,
            connect_timeout: Duration::from_secs(20),
            timeout: Duration::from_secs(20),
            ..RedisOptions::new(format!("redis://127.0.0.1:{}", server.port()))
        };
        Arc::new(Fleet::new(options, name.to_owned(), None))
    };
    let (speaker, ear) = (fleet("a", &servers[0]), fleet("b", &servers[2]));
    let mut listener = Listener::start(&ear).await;
    speaker.announce(&id("k1")).await.unwrap();
    assert_eq!(listener.next().await, id("k1"));
}
