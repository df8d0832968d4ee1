//! How sessions share the daemon, as an operator is told.

use serde::{Deserialize, Serialize};

/// The places that passes run in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TurnsReport {
    /// Passes that may run at a time; as many again may run beside them.
    pub places: u64,
    /// Passes that run: those that have a place, and those of users without one that run beside.
    pub running: u64,
    /// Passes that wait for one.
    pub waiting: u64,
}

/// What all sessions of one user hold together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserReport {
    /// The user's id.
    pub uid: u32,
    /// Open sessions.
    pub sessions: u64,
    /// Open layers.
    pub layers: u64,
    /// Seeds' memory files.
    pub seeds: u64,
    /// Tickets taken and not yet spent.
    pub tickets: u64,
    /// Bytes of memory files and of what tickets save.
    pub bytes: u64,
}

/// What a session did in the last ten seconds, or since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RecentReport {
    /// Passes, each second.
    pub passes_per_second: f64,
    /// The part of the time in which a pass ran.
    pub compute_percent: f64,
    /// The part of the time in which a pass waited for its turn.
    pub waiting_percent: f64,
}
