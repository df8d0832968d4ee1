//! What a daemon says of the failing passes it has recorded.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What became of failing passes since the daemon started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordsReport {
    /// Records written.
    pub written: u64,
    /// Failing passes that were not recorded, by the reason.
    pub dropped: BTreeMap<String, u64>,
}
