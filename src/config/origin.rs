//! `[origin]`: where kernels come from, and how patient the daemon is with it.

use std::{path::PathBuf, time::Duration};

use super::{breaker::Breaker, section::section, setting::words};

/// The kind of origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OriginKind {
    /// A local directory with one artifact and one metadata file a kernel.
    Directory,
}

words!(OriginKind { Directory = "directory" });

section! {
    /// Where kernels come from.
    Origin in "origin" {
        /// The kind of origin.
        kind: OriginKind = OriginKind::Directory, "directory", Restart;
        /// The directory that holds the kernels.
        path: PathBuf = PathBuf::from("/var/lib/kasmina/kernels"), "path", Restart;
        /// Whether kernels in status `testing` are accepted; `invalid` ones never are.
        accept_testing: bool = false, "true or false", Restart;
        /// How long one attempt may take.
        timeout: Duration = Duration::from_secs(10), "time", Restart;
    }
    sections {
        /// When to stop asking for a while.
        breaker: Breaker;
        /// How often to ask again.
        retry: OriginRetry;
    }
}

section! {
    /// Attempts within one fetch, with jittered exponential delay between them.
    OriginRetry in "origin.retry" {
        /// Attempts in all; 1 never asks again.
        attempts: u32 = 3, "attempts", Restart;
        /// The delay before the second attempt; it doubles from there.
        base_delay: Duration = Duration::from_millis(100), "time", Restart;
        /// The longest delay.
        max_delay: Duration = Duration::from_secs(2), "time", Restart;
    }
}
