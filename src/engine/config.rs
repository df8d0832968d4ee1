//! The engine's own settings.

use std::time::Duration;

use crate::{backoff::Backoff, graph::Limits, id::KernelId};

/// How a seed comes back after its kernel was unloaded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RecoveryPolicy {
    /// How often it is tried, in a row; 0 leaves the seed dormant at once.
    pub attempts: u32,
    /// How long it waits before each attempt.
    pub backoff: Backoff,
}

impl Default for RecoveryPolicy {
    /// Three attempts, after 1 s, 2 s and 4 s, half of each left to chance.
    fn default() -> Self {
        let (first, max) = (Duration::from_secs(1), Duration::from_secs(60));
        Self { attempts: 3, backoff: Backoff { first, max, ..Backoff::default() } }
    }
}

/// How seeds run and when they are given up.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineConfig {
    /// Failures in a row after which a seed's kernel is unloaded; at least 1.
    pub error_threshold: u32,
    /// The longest a pass may take.
    pub time_limit: Duration,
    /// Whether a seed whose output is not finite counts as failed.
    pub non_finite_guard: bool,
    /// Tickets that one layer may have outstanding.
    pub max_tickets_per_layer: usize,
    /// Bytes that one plan's workspace and saved values may take.
    pub max_plan_bytes: usize,
    /// Floating-point operations that a plan may need for one sample, forward and backward together.
    pub max_flops: u64,
    /// Threads that work on one pass together.
    pub threads: usize,
    /// Whether the CPU's 3×3 convolutions go by Winograd's algorithm where that is faster: for records, since the backend has
    /// been made so.
    pub winograd: bool,
    /// A pass that costs as many operations and bytes runs on its seed's own thread where another seed runs
    /// beside it; smaller ones are done before a thread would have woken.
    pub spread_above: u64,
    /// How large a kernel's graph may be.
    pub graph_limits: Limits,
    /// The longest a plan may take to be made.
    pub plan_time_limit: Duration,
    /// How a seed whose kernel was unloaded comes back.
    pub recovery: RecoveryPolicy,
    /// For how long a seed refuses a kernel that was pruned from it, where the prune does not say.
    pub embargo: Duration,
    /// How many training passes of each seed are kept as samples; 0 keeps none.
    pub series_length: usize,
    /// Every how many training passes one is kept.
    pub series_every: u32,
    /// In every how many samples the norm of the parameters' gradients is measured; 0 measures none.
    pub gradient_norm_every: u32,
    /// A kernel whose runs panic. For tests of the daemon; release builds do not look at it.
    pub panic_in: Option<KernelId>,
}

impl Default for EngineConfig {
    /// Three failures, five seconds, guarded, 1,024 tickets, 1 GiB a plan, 100 GFLOP a sample, as many threads as processors.
    fn default() -> Self {
        Self {
            error_threshold: 3,
            time_limit: Duration::from_secs(5),
            non_finite_guard: true,
            max_tickets_per_layer: 1024,
            max_plan_bytes: 1 << 30,
            max_flops: 100_000_000_000,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            winograd: true,
            spread_above: 1_000_000,
            graph_limits: Limits::default(),
            plan_time_limit: Duration::from_secs(10),
            recovery: RecoveryPolicy::default(),
            embargo: Duration::ZERO,
            series_length: 512,
            series_every: 1,
            gradient_norm_every: 8,
            panic_in: None,
        }
    }
}
