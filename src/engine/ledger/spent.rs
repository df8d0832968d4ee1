//! The refusal of what would pass a quota.

use std::fmt;

use super::Held;
use crate::fault::{ErrorClass, Fault};

/// A quota is used up. The text begins with the setting's key, because a completion has room for 64 bytes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{key} is {limit}: {} has {used} and asks for {asked} more; {} or raise it",
    whose,
    what.advice()
)]
pub struct QuotaSpent {
    /// The setting that bounds it.
    pub key: &'static str,
    /// What it says.
    pub limit: u64,
    /// What is held.
    pub used: u64,
    /// What was asked for beside that.
    pub asked: u64,
    /// What is counted.
    pub what: Held,
    /// For whom.
    pub whose: Whose,
}

/// Who shares a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// One layer.
    Layer,
    /// One session.
    Session,
    /// All sessions of the user with this id.
    User(u32),
    /// All sessions there are.
    Node,
}

impl fmt::Display for Whose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Layer => f.write_str("the layer"),
            Self::Session => f.write_str("the session"),
            Self::User(uid) => write!(f, "user {uid}"),
            Self::Node => f.write_str("the daemon"),
        }
    }
}

impl Fault for QuotaSpent {
    fn class(&self) -> ErrorClass {
        ErrorClass::Overloaded
    }

    fn code(&self) -> &'static str {
        "session.quota"
    }
}
