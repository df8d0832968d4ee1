//! `[cache]`: what stays in memory, and `[cache.sqlite]`: what stays on disk.

use std::{path::PathBuf, time::Duration};

use super::{
    breaker::Breaker,
    section::section,
    shared_tiers::{CachePostgres, CacheRedis},
    units::ByteSize,
};
use crate::id::KernelId;

section! {
    /// The tier in memory, and those below it.
    Cache in "cache" {
        /// Kernels held in memory.
        max_entries: usize = 128, "kernels", Restart;
        /// Bytes that kernels in memory may take together.
        max_bytes: ByteSize = ByteSize::gib(1), "bytes", Restart;
        /// Bytes of artifacts that may be on their way from the origin into memory at a time, and as many from the
        /// tiers below.
        max_fetch_bytes: ByteSize = ByteSize::gib(1), "bytes", Restart;
        /// How long "no such kernel" is remembered.
        negative_ttl: Duration = Duration::from_secs(60), "time", Restart;
        /// How long a kernel that was refused is not fetched again.
        rejected_ttl: Duration = Duration::from_secs(600), "time", Restart;
        /// How old the origin's word on a copy in the tiers below may be before it is asked again.
        fresh_for: Duration = Duration::from_secs(3600), "time", Restart;
        /// Whether an older copy is used where the origin does not answer.
        serve_stale: bool = true, "true or false", Restart;
        /// Whether a tier that shows itself slower than the next place is passed by for a while.
        bypass_slow_tiers: bool = true, "true or false", Restart;
        /// Kernels that are loaded when the daemon starts.
        warm: Vec<KernelId> = Vec::new(), "list of kernel ids", Restart;
        /// How many of the most used kernels are loaded beside them; 0 is none.
        warm_most_used: u32 = 16, "kernels", Restart;
        /// Over which time their uses count.
        warm_window: Duration = Duration::from_secs(7 * 24 * 3600), "time", Restart;
        /// Kernels that are never evicted.
        pinned: Vec<KernelId> = Vec::new(), "list of kernel ids", Restart;
    }
    sections {
        /// The tier on disk.
        sqlite: CacheSqlite;
        /// The tier in Redis.
        redis: CacheRedis;
        /// The tier in PostgreSQL.
        postgres: CachePostgres;
        /// When a tier below the one in memory is left alone.
        breaker: Breaker;
    }
}

section! {
    /// The tier on disk.
    CacheSqlite in "cache.sqlite" {
        /// Whether there is one.
        enabled: bool = true, "true or false", Restart;
        /// The database file; empty is `cache.sqlite` in `daemon.state_dir`.
        path: PathBuf = PathBuf::new(), "path", Restart;
        /// Bytes of artifacts it may hold; the least recently used go first.
        max_bytes: ByteSize = ByteSize::gib(8), "bytes", Restart;
        /// How long a write waits for another process that has the file locked.
        busy_timeout: Duration = Duration::from_secs(2), "time", Restart;
    }
}
