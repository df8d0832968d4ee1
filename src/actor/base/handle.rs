//! Handles: addresses that outlive a respawn, with a bound on what may be under way.

use std::{
    fmt,
    sync::{
        Arc, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use actix::{Actor, Addr, Context, Handler, Message, dev::ToEnvelope};
use tokio::sync::Semaphore;

use crate::{
    fault::{ErrorClass, Fault},
    telemetry::step_path,
};

/// Why an actor did not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// As many requests as allowed are under way.
    #[error("{actor} has {limit} requests under way, the most it takes: try again shortly")]
    Overloaded {
        /// The actor.
        actor: &'static str,
        /// The bound.
        limit: usize,
    },
    /// The actor is being brought back after a failure.
    #[error("{actor} failed and is being restarted: try again shortly")]
    Restarting {
        /// The actor.
        actor: &'static str,
    },
    /// The actor has failed too often to be brought back.
    #[error("{actor} failed more often than its restart budget allows and stays down: see the daemon's log")]
    Down {
        /// The actor.
        actor: &'static str,
    },
}

impl Fault for AskError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Overloaded { .. } => ErrorClass::Overloaded,
            Self::Restarting { .. } => ErrorClass::Unavailable,
            Self::Down { .. } => ErrorClass::Bug,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Overloaded { .. } => "daemon.overloaded",
            Self::Restarting { .. } => "daemon.restarting",
            Self::Down { .. } => "daemon.actor_down",
        }
    }
}

/// Orders that an actor takes at a time, beside its work.
const ORDERS: usize = 64;

struct Slot<A: Actor> {
    name: &'static str,
    limit: usize,
    address: RwLock<Option<Addr<A>>>,
    under_way: Semaphore,
    orders: Semaphore,
    down: AtomicBool,
}

/// Where to ask an actor, whichever of its lives it is in.
///
/// actix bounds a mailbox for each clone of an address, so the bound that counts is kept here: requests
/// under way, from the asking to the answer, over all clones of the handle. Orders have places of their own, so that
/// whoever looks after an actor, or tells it what it must not miss, is heard while all its work waits for something.
pub struct Handle<A: Actor>(Arc<Slot<A>>);

impl<A: Actor> Clone for Handle<A> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<A: Actor> fmt::Debug for Handle<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Handle({})", self.0.name)
    }
}

impl<A: Actor<Context = Context<A>>> Handle<A> {
    /// A handle to an actor that has not started yet, which takes `limit` requests at a time.
    pub fn new(name: &'static str, limit: usize) -> Self {
        Self(Arc::new(Slot {
            name,
            limit,
            address: RwLock::new(None),
            under_way: Semaphore::new(limit),
            orders: Semaphore::new(ORDERS),
            down: AtomicBool::new(false),
        }))
    }

    /// The actor's name.
    pub fn name(&self) -> &'static str {
        self.0.name
    }

    /// Requests under way, orders not counted.
    pub fn under_way(&self) -> usize {
        self.0.limit - self.0.under_way.available_permits().min(self.0.limit)
    }

    /// Asks and waits for the answer.
    ///
    /// # Errors
    /// [`AskError`] when the actor is full, or failed before it answered.
    pub async fn ask<M>(&self, message: M) -> Result<M::Result, AskError>
    where
        A: Handler<M>,
        M: Message + Send + 'static,
        M::Result: Send,
        A::Context: ToEnvelope<A, M>,
    {
        self.send(&self.0.under_way, self.0.limit, message).await
    }

    /// As [`ask`](Self::ask), for what must be heard however much work is under way: questions and commands of
    /// operators and other nodes, and news. Not for what waits for a dependency.
    ///
    /// # Errors
    /// [`AskError`] when too many orders are under way, or the actor failed before it answered.
    pub async fn order<M>(&self, message: M) -> Result<M::Result, AskError>
    where
        A: Handler<M>,
        M: Message + Send + 'static,
        M::Result: Send,
        A::Context: ToEnvelope<A, M>,
    {
        self.send(&self.0.orders, ORDERS, message).await
    }

    async fn send<M>(&self, places: &Semaphore, limit: usize, message: M) -> Result<M::Result, AskError>
    where
        A: Handler<M>,
        M: Message + Send + 'static,
        M::Result: Send,
        A::Context: ToEnvelope<A, M>,
    {
        step_path::may_wait();
        let actor = self.0.name;
        let _place = places.try_acquire().map_err(|_| AskError::Overloaded { actor, limit })?;
        let address = self.address()?;
        address.send(message).await.map_err(|_| self.absent())
    }

    /// Publishes the address of a new life, or that there is none.
    pub fn publish(&self, address: Option<Addr<A>>) {
        *self.0.address.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = address;
    }

    /// Says that the actor will not come back.
    pub fn give_up(&self) {
        self.0.down.store(true, Ordering::Release);
        self.publish(None);
    }

    /// Whether the actor will not come back.
    pub fn is_down(&self) -> bool {
        self.0.down.load(Ordering::Acquire)
    }

    /// The present address, for stopping the actor.
    ///
    /// # Errors
    /// [`AskError`] while there is none.
    pub fn address(&self) -> Result<Addr<A>, AskError> {
        let slot = self.0.address.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        slot.as_ref().filter(|address| address.connected()).cloned().ok_or_else(|| self.absent())
    }

    fn absent(&self) -> AskError {
        let actor = self.0.name;
        if self.is_down() { AskError::Down { actor } } else { AskError::Restarting { actor } }
    }
}
