//! A supervised actor: its factory, its handle, its budget.

use std::time::{Duration, Instant};

use actix::{Actor, Context, Message};
use serde::Serialize;
use tokio::sync::mpsc::UnboundedSender;

use super::{Exit, Handle, Life, RestartBudget, RestartPolicy};

/// Orders an actor to finish and stop.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct StopActor;

/// What is known of a supervised actor.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
pub struct ActorReport {
    /// The actor's name.
    pub name: &'static str,
    /// Whether it can be asked now.
    pub alive: bool,
    /// Whether it has failed too often to be brought back.
    pub down: bool,
    /// Lives that ended in a panic.
    pub panics: u64,
    /// Requests under way.
    pub under_way: usize,
}

/// A supervised actor, whatever its type.
pub trait Child {
    /// Its name.
    fn name(&self) -> &'static str;

    /// Starts a life and publishes its address. Call it on an arbiter's thread.
    fn start(&mut self);

    /// Takes note of a panic: the wait before the next [`start`](Child::start), or `None` where the budget
    /// is used up; the handle then says so to all who ask.
    fn failed(&mut self, now: Instant) -> Option<Duration>;

    /// What is known of it.
    fn report(&self) -> ActorReport;
}

/// A supervised actor of one type.
pub struct Supervised<A: Actor> {
    handle: Handle<A>,
    make: Box<dyn Fn(Life) -> A>,
    exits: UnboundedSender<Exit>,
    budget: RestartBudget,
    panics: u64,
}

impl<A: Actor<Context = Context<A>>> Supervised<A> {
    /// Keeps the factory; nothing starts yet.
    pub fn new(
        handle: Handle<A>,
        policy: RestartPolicy,
        exits: UnboundedSender<Exit>,
        make: impl Fn(Life) -> A + 'static,
    ) -> Self {
        Self { handle, make: Box::new(make), exits, budget: RestartBudget::new(policy), panics: 0 }
    }
}

impl<A: Actor<Context = Context<A>>> Child for Supervised<A> {
    fn name(&self) -> &'static str {
        self.handle.name()
    }

    fn start(&mut self) {
        let actor = (self.make)(Life::new(self.name(), self.exits.clone()));
        self.handle.publish(Some(actor.start()));
    }

    fn failed(&mut self, now: Instant) -> Option<Duration> {
        self.panics += 1;
        let delay = self.budget.spend(now);
        match delay {
            Some(_) => self.handle.publish(None),
            None => self.handle.give_up(),
        }
        delay
    }

    fn report(&self) -> ActorReport {
        ActorReport {
            name: self.name(),
            alive: self.handle.address().is_ok(),
            down: self.handle.is_down(),
            panics: self.panics,
            under_way: self.handle.under_way(),
        }
    }
}

/// Implements [`StopActor`] for an actor whose field `life` is its [`Life`].
macro_rules! stops_in_order {
    ($actor:ty) => {
        impl actix::Handler<$crate::actor::base::StopActor> for $actor {
            type Result = ();

            fn handle(&mut self, _: $crate::actor::base::StopActor, context: &mut Self::Context) {
                self.life.ended();
                actix::ActorContext::stop(context);
            }
        }
    };
}
pub(crate) use stops_in_order;
