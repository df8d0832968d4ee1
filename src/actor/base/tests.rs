//! Respawning: a panicked actor comes back under the same handle until its budget is spent.

use std::{
    future::poll_fn,
    task::Poll,
    time::{Duration, Instant},
};

use actix::{Actor, Context, Handler, Message};
use tokio::sync::mpsc;

use super::{AskError, Child as _, Handle, Life, RestartPolicy, StopActor, Supervised, stops_in_order};

struct Fragile {
    asked: u32,
    life: Life,
}

impl Actor for Fragile {
    type Context = Context<Self>;
}

stops_in_order!(Fragile);

#[derive(Message)]
#[rtype(result = "u32")]
struct Ask {
    panic: bool,
}

impl Handler<Ask> for Fragile {
    type Result = u32;

    fn handle(&mut self, message: Ask, _: &mut Self::Context) -> u32 {
        assert!(!message.panic, "asked to panic");
        self.asked += 1;
        self.asked
    }
}

fn policy() -> RestartPolicy {
    RestartPolicy {
        max_restarts: 1,
        window: Duration::from_secs(60),
        first_delay: Duration::ZERO,
        max_delay: Duration::ZERO,
    }
}

#[actix::test]
async fn a_panicked_actor_is_brought_back_within_its_budget() {
    let (exits, mut ended) = mpsc::unbounded_channel();
    let handle = Handle::new("fragile", 4);
    let mut child = Supervised::new(handle.clone(), policy(), exits, |life| Fragile { asked: 0, life });
    assert_eq!(handle.ask(Ask { panic: false }).await, Err(AskError::Restarting { actor: "fragile" }));
    child.start();
    assert_eq!(handle.ask(Ask { panic: false }).await, Ok(1));
    assert_eq!(handle.ask(Ask { panic: true }).await, Err(AskError::Restarting { actor: "fragile" }));
    let exit = ended.recv().await.unwrap();
    assert!(!exit.graceful && exit.actor == "fragile");
    assert!(!child.report().alive && !child.report().down);

    let now = Instant::now();
    assert_eq!(child.failed(now), Some(Duration::ZERO));
    child.start();
    // A new life knows nothing of the old one.
    assert_eq!(handle.ask(Ask { panic: false }).await, Ok(1));
    assert!(handle.ask(Ask { panic: true }).await.is_err());
    assert!(!ended.recv().await.unwrap().graceful);
    assert_eq!(child.failed(now), None);
    assert_eq!(handle.ask(Ask { panic: false }).await, Err(AskError::Down { actor: "fragile" }));
    assert!(!child.report().alive && child.report().down);
    assert_eq!(child.report().panics, 2);
}

#[actix::test]
async fn an_ordered_stop_is_told_as_one() {
    let (exits, mut ended) = mpsc::unbounded_channel();
    let handle = Handle::new("fragile", 4);
    let mut child = Supervised::new(handle.clone(), policy(), exits, |life| Fragile { asked: 0, life });
    child.start();
    handle.ask(StopActor).await.unwrap();
    assert!(ended.recv().await.unwrap().graceful);
}

struct Slow {
    _life: Life,
}

impl Actor for Slow {
    type Context = Context<Self>;
}

#[derive(Message)]
#[rtype(result = "()")]
struct WaitFor(tokio::sync::oneshot::Receiver<()>);

impl Handler<WaitFor> for Slow {
    type Result = actix::ResponseFuture<()>;

    fn handle(&mut self, WaitFor(until): WaitFor, _: &mut Self::Context) -> Self::Result {
        Box::pin(async move { drop(until.await) })
    }
}

#[actix::test]
async fn more_than_the_bound_is_refused_and_not_queued() {
    let (exits, _ended) = mpsc::unbounded_channel();
    let handle = Handle::new("slow", 1);
    let mut child = Supervised::new(handle.clone(), policy(), exits, |life| Slow { _life: life });
    child.start();
    let (release, until) = tokio::sync::oneshot::channel();
    let other = handle.clone();
    let first = actix::spawn(async move { other.ask(WaitFor(until)).await });
    while handle.under_way() == 0 {
        tokio::task::yield_now().await;
    }
    let (_never, until) = tokio::sync::oneshot::channel();
    let refused = handle.ask(WaitFor(until)).await;
    assert_eq!(refused, Err(AskError::Overloaded { actor: "slow", limit: 1 }));
    // Orders have places of their own.
    let (release_other, until) = tokio::sync::oneshot::channel();
    release_other.send(()).unwrap();
    assert_eq!(handle.order(WaitFor(until)).await, Ok(()));
    let mut orders = Vec::new();
    for _ in 0..64 {
        let (release, until) = tokio::sync::oneshot::channel();
        let mut order = Box::pin(handle.order(WaitFor(until)));
        let polled = poll_fn(|context| Poll::Ready(order.as_mut().poll(context))).await;
        assert!(polled.is_pending());
        orders.push((release, order));
    }
    let (_never, until) = tokio::sync::oneshot::channel();
    let refused = handle.order(WaitFor(until)).await;
    assert_eq!(refused, Err(AskError::Overloaded { actor: "slow", limit: 64 }));
    for (release, order) in orders {
        release.send(()).unwrap();
        assert_eq!(order.await, Ok(()));
    }
    release.send(()).unwrap();
    assert_eq!(first.await.unwrap(), Ok(()));
    assert_eq!(handle.under_way(), 0);
}
