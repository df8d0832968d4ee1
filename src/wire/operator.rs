//! What an operator asks of the daemon on the control socket, and what the daemon answers.

use serde::{Deserialize, Serialize};

use super::{
    DeviceReport, ErrorReply, RecentReport, RecordsReport, RouteReport, SeedState, SeedStats, TurnsReport,
    UserReport, WarmReport,
};
use crate::{
    id::{Generation, KernelId, LayerId, SeedIndex, SessionId},
    tensor::Shape,
};

/// What an operator asks. Framed and answered like a session's requests, on a socket of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case", deny_unknown_fields)]
pub enum OperatorRequest {
    /// How the daemon does. Answered by [`StatusReport`].
    Status {},
    /// Every seed of every session. Answered by [`SeedsReport`].
    Seeds {},
    /// What is resident and how the tiers did. Answered by [`CacheReport`].
    Cache {},
    /// Drops one kernel from memory and from every tier unless a seed uses it. Answered by [`EvictReport`].
    Evict {
        /// Which.
        kernel: KernelId,
        /// Whether every node is to drop it.
        #[serde(default)]
        fleet: bool,
    },
    /// Drops every kernel from memory that no seed uses. Answered by [`EvictReport`].
    Clear {
        /// Whether the tiers below are emptied too, shared ones included.
        #[serde(default)]
        tiers: bool,
    },
    /// Loads kernels beside whatever goes on, as the warming at the start does. Answered at once by
    /// [`WarmReport`]; the progress stands in [`StatusReport`].
    Warm {
        /// Which.
        kernels: Vec<KernelId>,
    },
    /// Loads a kernel and keeps it in memory until it is unpinned or the daemon ends. Answered by
    /// [`Empty`](super::Empty).
    Pin {
        /// Which.
        kernel: KernelId,
    },
    /// Lets a pinned kernel go again. Answered by [`Empty`](super::Empty).
    Unpin {
        /// Which.
        kernel: KernelId,
    },
    /// All that is known of a kernel's supply. Answered by [`WhyReport`](super::WhyReport).
    Why {
        /// A kernel, or a seed as `session/layer/seed`.
        subject: String,
    },
    /// Judges an artifact by the daemon's own rules. Answered by [`ValidationReport`].
    Validate {
        /// The file, as the daemon sees it.
        path: String,
    },
    /// Has events of every session told from now on, or of one, as frames of their own kind. Answered by
    /// [`Empty`](super::Empty); it is the only request of its connection.
    Watch {
        /// Which session; null for all.
        #[serde(default)]
        session: Option<SessionId>,
    },
    /// Drains and ends the daemon. Answered by [`Empty`](super::Empty) before it does.
    Shutdown {},
}

impl OperatorRequest {
    /// The verb as it stands in the JSON: for logs and metric labels.
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Status {} => "status",
            Self::Seeds {} => "seeds",
            Self::Cache {} => "cache",
            Self::Evict { .. } => "evict",
            Self::Clear { .. } => "clear",
            Self::Warm { .. } => "warm",
            Self::Pin { .. } => "pin",
            Self::Unpin { .. } => "unpin",
            Self::Why { .. } => "why",
            Self::Validate { .. } => "validate",
            Self::Watch { .. } => "watch",
            Self::Shutdown {} => "shutdown",
        }
    }
}

/// Answers [`OperatorRequest::Status`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StatusReport {
    /// The daemon's version.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// Seconds since it started.
    pub uptime_seconds: u64,
    /// `starting`, `serving` or `draining`.
    pub phase: String,
    /// What kernels run on, why, and what was found of NVIDIA's libraries.
    #[serde(default)]
    pub device: DeviceReport,
    /// Resident memory of the process, in bytes.
    pub resident_bytes: u64,
    /// Sessions that are connected.
    pub sessions: Vec<SessionReport>,
    /// The actors.
    pub actors: Vec<ActorReport>,
    /// The circuit breakers of the kernel supply.
    pub breakers: Vec<BreakerReport>,
    /// How far warming has come; all zero where nothing was to be warmed.
    pub warming: WarmReport,
    /// What all sessions have done, those that have ended included.
    #[serde(default)]
    pub totals: TotalsReport,
    /// What was told of seeds, layers and sessions.
    #[serde(default)]
    pub events: EventsReport,
    /// How many passes run and wait.
    #[serde(default)]
    pub turns: TurnsReport,
    /// Every user with a session.
    #[serde(default)]
    pub users: Vec<UserReport>,
    /// Failing passes that were recorded; null where none is.
    #[serde(default)]
    pub records: Option<RecordsReport>,
}

/// Events since the daemon started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventsReport {
    /// Events that there were.
    pub told: u64,
    /// Events that a watcher did not get because it was too slow, over all watchers.
    pub lost: u64,
    /// Connections that watch.
    pub watchers: u32,
    /// How often seeds went from one state to another, without those steps that none has taken.
    pub transitions: Vec<TransitionReport>,
}

/// A step of seeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransitionReport {
    /// From which state.
    pub from: SeedState,
    /// To which.
    pub to: SeedState,
    /// How often.
    pub count: u64,
}

/// What all sessions have done since the daemon started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TotalsReport {
    /// Sessions that were opened.
    pub sessions: u64,
    /// Forward passes that were answered with a result.
    pub forward_passes: u64,
    /// Backward passes that were answered with a result.
    pub backward_passes: u64,
    /// Passes and releases that were refused.
    #[serde(default)]
    pub refused_passes: u64,
    /// How often a pass came to the supply of kernels, where it might have waited.
    pub supply_waits: u64,
    /// Plans that passes have had to make or to wait for.
    #[serde(default)]
    pub pass_plans: u64,
    /// Microseconds that passes took from their turn to their end.
    #[serde(default)]
    pub compute_us: u64,
    /// Microseconds that passes have waited for their turn.
    #[serde(default)]
    pub turn_wait_us: u64,
}

/// One trainer's connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionReport {
    /// The session.
    pub session: SessionId,
    /// Name and version of its client.
    pub client: String,
    /// The peer's process id, as the kernel states it.
    pub pid: u32,
    /// The peer's user id, as the kernel states it.
    pub uid: u32,
    /// The device its kernels run on; empty before its greeting.
    #[serde(default)]
    pub device: String,
    /// Its layers.
    pub layers: u32,
    /// Seeds with a kernel.
    pub live_seeds: u32,
    /// Tickets taken and not yet spent.
    pub tickets: u32,
    /// Bytes of its arena.
    pub arena_bytes: u64,
    /// Bytes its tickets hold.
    pub saved_bytes: u64,
    /// Passes it has asked for.
    pub passes: u64,
    /// Passes and releases of it that were refused.
    #[serde(default)]
    pub refused_passes: u64,
    /// How often its passes came to the supply of kernels, where they might have waited: zero, or the daemon has a
    /// defect.
    #[serde(default)]
    pub supply_waits: u64,
    /// Plans that its passes have had to make or to wait for, because nobody had made them beside.
    #[serde(default)]
    pub pass_plans: u64,
    /// Bytes of its seeds' memory files and of what its tickets save.
    #[serde(default)]
    pub held_bytes: u64,
    /// Microseconds that its passes took from their turn to their end.
    #[serde(default)]
    pub compute_us: u64,
    /// Microseconds that its passes have waited for their turn.
    #[serde(default)]
    pub turn_wait_us: u64,
    /// The median of a pass's time, in microseconds.
    #[serde(default)]
    pub pass_p50_us: f64,
    /// Its 99th percentile.
    #[serde(default)]
    pub pass_p99_us: f64,
    /// The last ten seconds.
    #[serde(default)]
    pub recent: RecentReport,
}

/// One actor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActorReport {
    /// Its name.
    pub name: String,
    /// `running`, `restarting` or `failed`.
    pub state: String,
    /// How often it was started again.
    pub restarts: u64,
}

/// One circuit breaker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BreakerReport {
    /// The dependency it guards.
    pub name: String,
    /// `closed`, `open` or `half_open`.
    pub state: String,
    /// For how long it has been so, in milliseconds.
    pub since_ms: u64,
    /// Why it opened; null while it is closed.
    pub cause: Option<String>,
    /// Failures in a row.
    pub failures: u32,
    /// The share of failures among the last calls, in percent; null where it does not count.
    pub failure_percent: Option<u32>,
    /// The share of slow calls among the last calls, in percent; null where it does not count.
    pub slow_percent: Option<u32>,
    /// Milliseconds until it lets a trial call through; null unless it is open.
    pub retry_after_ms: Option<u64>,
    /// Trial calls under way.
    pub trials: u32,
    /// How often it has opened.
    pub opened: u64,
    /// How often it has let trial calls through.
    pub half_opened: u64,
    /// How often it has closed again.
    pub closed: u64,
    /// Calls it refused.
    pub refused: u64,
    /// What the last failure said.
    pub last_failure: Option<String>,
}

/// Answers [`OperatorRequest::Seeds`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SeedsReport {
    /// Every seed of every layer, in the order of session, layer, seed.
    pub seeds: Vec<SeedReport>,
}

/// One seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SeedReport {
    /// Its session.
    pub session: SessionId,
    /// Its layer.
    pub layer: LayerId,
    /// The layer's name in the trainer.
    pub layer_name: String,
    /// Its place there.
    pub seed: SeedIndex,
    /// Where it stands.
    pub state: SeedState,
    /// Its blend factor.
    pub alpha: f32,
    /// Its kernel.
    pub kernel: Option<KernelId>,
    /// Which of its kernels that is.
    pub generation: Generation,
    /// Where its schedule ends; null where it follows none.
    #[serde(default)]
    pub target: Option<f32>,
    /// How many training forwards that still takes.
    #[serde(default)]
    pub steps_left: u32,
    /// Whether it was fossilized with parameters that are trained no more.
    #[serde(default)]
    pub frozen: bool,
    /// How it comes back after its kernel was unloaded; null where it does not.
    #[serde(default)]
    pub recovery: Option<RecoveryReport>,
    /// The kernel that is on its way into it; null where none is.
    #[serde(default)]
    pub loading: Option<LoadingReport>,
    /// Its numbers.
    pub stats: SeedStats,
    /// Its most recent failure.
    pub last_error: Option<ErrorReply>,
}

/// A seed on its way back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveryReport {
    /// The kernel that is to come back.
    pub kernel: KernelId,
    /// Which attempt is next or under way, from 1.
    pub attempt: u32,
    /// How many there are.
    pub attempts: u32,
    /// Milliseconds until the next; null while it is under way.
    pub retry_after_ms: Option<u64>,
}

/// A kernel on its way into a seed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadingReport {
    /// Which kernel.
    pub kernel: KernelId,
    /// Which of the seed's kernels it will be.
    pub generation: Generation,
    /// `loading`, or `ready` where the trainer has yet to take it.
    pub stage: String,
}

/// Answers [`OperatorRequest::Cache`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CacheReport {
    /// The tiers in the order they are asked, the origin last.
    pub tiers: Vec<TierReport>,
    /// What is resident, the most recently used first.
    pub kernels: Vec<CachedKernel>,
    /// What no look-up finds any more and is still in use. Its bytes are among the first tier's.
    #[serde(default)]
    pub leaving: Vec<LeavingKernel>,
    /// What the places below were measured at, and which of them are passed by.
    pub routes: Vec<RouteReport>,
    /// What look-ups below memory came to.
    pub lookups: LookupReport,
    /// The bytes on their way from the origin.
    #[serde(default)]
    pub fetching: FetchingReport,
    /// What is on its way from tiers into memory.
    #[serde(default)]
    pub reading: FetchingReport,
    /// What offers have come to.
    #[serde(default)]
    pub offers: OffersReport,
    /// How this node hears of what is to be forgotten everywhere; null without a Redis.
    pub fleet: Option<FleetReport>,
    /// Copies given although the origin, asked about them, did not answer.
    pub stale: u64,
    /// Kernels known not to be had, remembered in memory.
    pub negatives: u64,
    /// Writes to tiers that were left out because too many were under way.
    pub writes_skipped: u64,
}

/// What became of artifacts that trainers have brought along.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OffersReport {
    /// Judged and taken into memory.
    pub taken_in: u64,
    /// In memory already.
    pub known: u64,
    /// Refused: a rule was broken, it was too long, or there was no such block.
    pub refused: u64,
    /// Failed for want of memory, or for a fault of the daemon's.
    pub failed: u64,
}

/// Bytes of artifacts on their way from the origin into memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchingReport {
    /// Bytes now.
    pub bytes: u64,
    /// The most there may be.
    pub limit_bytes: u64,
    /// Fetches that wait for others' to end.
    pub waiting: u64,
    /// Fetches that have waited in vain.
    pub refused: u64,
}

/// Look-ups below memory since the daemon started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LookupReport {
    /// Those that found a kernel.
    pub found: u64,
    /// Those that found none.
    pub not_found: u64,
    /// Those of them that were answered by what is remembered of an absence or a rejection.
    pub negative_hits: u64,
    /// Those that waited for another's instead of running one.
    pub joined: u64,
    /// Those under way.
    pub in_flight: u64,
    /// Old copies that the origin was asked about.
    pub confirmations: u64,
}

/// A node among those that share a Redis.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetReport {
    /// Whether it is listening now.
    pub listening: bool,
    /// Kernels that it has told the others to forget.
    pub announced: u64,
    /// Kernels that it was told to forget.
    pub heard: u64,
    /// How often it has begun to listen anew.
    pub reconnects: u64,
    /// How often it may have missed something, because the log no longer held what it had read last.
    pub gaps: u64,
}

/// One tier of the cache.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TierReport {
    /// `device`, `redis`, `sqlite`, `postgres`, or the origin's name.
    pub name: String,
    /// Look-ups that found the kernel here.
    pub hits: u64,
    /// Look-ups that did not.
    pub misses: u64,
    /// Look-ups that failed, corrupt copies included.
    pub errors: u64,
    /// Corrupt copies, which were dropped.
    pub corrupt: u64,
    /// Look-ups answered with "known not to be had"; among the misses.
    pub negative_hits: u64,
    /// Kernels taken in.
    pub admissions: u64,
    /// Kernels too large for it, which it did not take in.
    pub passed_over: u64,
    /// Kernels dropped to make room.
    pub evictions: u64,
    /// How often a kernel grew past the limit while all else was in use; of the first tier alone.
    #[serde(default)]
    pub overruns: u64,
    /// Kernels held; null where the tier cannot tell.
    pub entries: Option<u64>,
    /// Bytes held; null where the tier cannot tell.
    pub bytes: Option<u64>,
    /// The most bytes it may hold; null where it has no limit, or cannot tell.
    pub limit_bytes: Option<u64>,
    /// Why it does not say what it holds.
    pub error: Option<String>,
}

/// One resident kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CachedKernel {
    /// Its name.
    pub kernel: KernelId,
    /// SHA-256 of the artifact.
    pub digest: String,
    /// Bytes it takes, with its plans and the workspaces of the seeds that run it.
    pub bytes: u64,
    /// How many seeds and tickets use it: it is not evicted before they let go.
    pub holders: u32,
    /// Whether it is never evicted.
    pub pinned: bool,
    /// Milliseconds since it was loaded.
    pub age_ms: u64,
    /// Milliseconds since it was last let go; 0 while it is held.
    pub idle_ms: u64,
    /// Look-ups it has answered.
    pub hits: u64,
    /// Plans made of it.
    pub plans: u32,
}

/// One kernel that no look-up finds any more and that somebody still uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeavingKernel {
    /// Its name.
    pub kernel: KernelId,
    /// Bytes it takes.
    pub bytes: u64,
    /// How many seeds and tickets use it: it goes with the last.
    pub holders: u32,
    /// Milliseconds since it was to be forgotten.
    pub leaving_ms: u64,
}

/// Answers [`OperatorRequest::Evict`] and [`OperatorRequest::Clear`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvictReport {
    /// The kernels that were dropped.
    pub evicted: Vec<KernelId>,
    /// The kernels that a seed uses, or that are pinned, and that therefore stay.
    pub in_use: Vec<KernelId>,
    /// The kernels that no look-up finds any more, and that go when the last seed here leaves them.
    #[serde(default)]
    pub condemned: Vec<KernelId>,
    /// Bytes of memory given back.
    pub freed_bytes: u64,
    /// Why copies may be left: what each tier that failed to drop one says, and what `evict` of one kernel among
    /// several came to.
    #[serde(default)]
    pub failures: Vec<String>,
}

/// Answers [`OperatorRequest::Validate`]; `kasmina validate` prints the same of a file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ValidationReport {
    /// What was judged.
    pub path: String,
    /// Whether every rule passed.
    pub accepted: bool,
    /// SHA-256 of the artifact.
    pub digest: Option<String>,
    /// `torchscript` or `pt2`, if it could be read that far.
    pub format: Option<String>,
    /// Elements of all parameters together.
    pub parameters: Option<u64>,
    /// The input's shape without the batch, if the artifact declares one.
    pub input_shape: Option<Shape>,
    /// Every rule that was looked at.
    pub rules: Vec<RuleReport>,
}

/// One rule's outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleReport {
    /// The rule's name.
    pub rule: String,
    /// Whether it passed.
    pub passed: bool,
    /// Why it did not, or what it found.
    pub detail: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operator_requests_read_as_documented() {
        for (text, verb) in [
            (r#"{"verb":"status"}"#, "status"),
            (r#"{"verb":"evict","kernel":"conv","fleet":false}"#, "evict"),
            (r#"{"verb":"why","subject":"1/2/0"}"#, "why"),
            (r#"{"verb":"validate","path":"a.pt2"}"#, "validate"),
        ] {
            let request: OperatorRequest = serde_json::from_str(text).unwrap();
            assert_eq!(request.verb(), verb);
            assert_eq!(serde_json::to_string(&request).unwrap(), text);
        }
        for bad in [r#"{"verb":"evict"}"#, r#"{"verb":"status","all":true}"#, r#"{"verb":"hello"}"#] {
            assert!(serde_json::from_str::<OperatorRequest>(bad).is_err(), "{bad}");
        }
    }
}
