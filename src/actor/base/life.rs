//! An actor's life: held by the actor, tells its supervisor how it ended.

use tokio::sync::mpsc::UnboundedSender;

/// The end of an actor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Which actor.
    pub actor: &'static str,
    /// Whether it was stopped in order; a panic ends it without.
    pub graceful: bool,
}

/// Held by an actor for as long as it lives. Dropped without [`ended`](Life::ended), it reports a panic.
///
/// actix drops a panicked actor's context outside the unwinding and calls its `stopped` even then, so a flag
/// set by the order to stop is the only thing that tells the two ends apart.
#[derive(Debug)]
pub struct Life {
    actor: &'static str,
    graceful: bool,
    // Unbounded, yet at most one message for each life.
    exits: UnboundedSender<Exit>,
}

impl Life {
    /// A new life of the named actor.
    pub fn new(actor: &'static str, exits: UnboundedSender<Exit>) -> Self {
        Self { actor, graceful: false, exits }
    }

    /// Marks an orderly end; the order to stop calls it.
    pub fn ended(&mut self) {
        self.graceful = true;
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        // A supervisor that is gone needs no report.
        let _ = self.exits.send(Exit { actor: self.actor, graceful: self.graceful });
    }
}
