//! Points at which a daemon can be told to kill or to stop itself, to test what is left of a crash.
//!
//! Every step of a session and of a pass has one. A build without debug assertions compiles none of them in: [`reached`] is
//! empty there. In others a process comes by and goes on, unless it was told to act, as the example `kasminad_failpoints` alone
//! can be: a daemon that sends itself SIGKILL, or SIGSTOP until somebody sends SIGCONT, when it comes to a point for the n-th
//! time. Nothing else acts at a point: no error is made up and nothing is slowed down, so what is tested is the daemon that is
//! shipped.

use std::{
    io::Write as _,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use rustix::process::{Signal, getpid, kill_process};

/// Whether points are compiled in.
pub const ENABLED: bool = cfg!(debug_assertions);

macro_rules! points {
    ($($point:ident $name:literal $at:literal,)+) => {
        /// A point.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Failpoint {
            $(#[doc = concat!("`", $name, "`: ", $at, ".")] $point,)+
        }

        impl Failpoint {
            /// Every point, in the order of a session's life.
            pub const ALL: &[Self] = &[$(Self::$point),+];

            /// The name by which it is asked for.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$point => $name,)+ }
            }

            /// Where it is.
            pub const fn place(self) -> &'static str {
                match self { $(Self::$point => $at,)+ }
            }
        }
    };
}

points! {
    // the control connection
    Connected "session.connected" "a trainer has connected and has said nothing yet",
    FrameReceived "frame.received" "a request has come whole and nothing was done for it",
    ArenaMade "hello.arena_made" "the arena and the doorbell are made, the lane does not run",
    LaneStarted "hello.lane_started" "the lane runs, the trainer has none of its descriptors",
    ReplyReady "reply.ready" "a request was obeyed and nothing of its reply is sent",
    DescriptorsReady "reply.descriptors_ready" "the same, with descriptors to be passed beside the reply",
    ReplyHalfSent "reply.half_sent" "half of a reply is sent, its descriptors with it",
    ReplySent "reply.sent" "a reply is sent whole",
    DescriptorsSent "reply.descriptors_sent" "the same, with descriptors",
    // layers and kernels
    LayerOpening "layer.opening" "a layer is asked for and the lane does not know of it",
    LayerOpened "layer.opened" "the lane has the layer, its session has not",
    OfferCopied "offer.copied" "an offered artifact is copied out of the arena and not judged",
    OfferKept "offer.kept" "an offered kernel was judged and is kept, nobody was told its name",
    GraftBegun "graft.begun" "a graft is asked for and nothing is loaded",
    GraftLoaded "graft.loaded" "its kernel is leased, nothing is planned",
    GraftMemoryMade "graft.memory_made" "its memory file is made and has the kernel's weights and buffers",
    GraftReady "graft.ready" "it is planned and not in the lane",
    GraftAttached "graft.attached" "its kernel runs, its seed does not know",
    GraftSettled "graft.settled" "its seed knows, its trainer does not",
    SwapBefore "swap.before" "the lane is about to put another kernel into a seed that has one",
    SwapAfter "swap.after" "it has",
    AlphaSet "alpha.set" "the lane has another blend factor",
    BlendScheduled "blend.scheduled" "the lane has a schedule",
    Held "hold.done" "the lane has ended a schedule where it was",
    Fossilized "fossilize.done" "a seed is a fossil and its trainer does not know",
    Detached "prune.detached" "the lane has let go of a kernel that is pruned",
    UnloadedInLane "unload.taken_out" "the lane has taken out a kernel that failed too often",
    Unloaded "unload.told" "its seed has put it on its way back",
    RecoveryLoading "recovery.loading" "a kernel is about to be loaded again",
    RecoveryReturned "recovery.returned" "it runs again",
    LayerClosed "layer.closed" "the lane has closed a layer and its tickets",
    // a submission
    SubmissionCopied "submission.copied" "a submission is copied out of the ring, which does not say so",
    SubmissionTaken "submission.taken" "the ring says that it was taken",
    TurnBefore "turn.before" "a pass is about to wait for its turn",
    TurnBegun "turn.begun" "its turn has come",
    TurnEnded "turn.ended" "its turn is over",
    ForwardPrepared "forward.prepared" "a forward's plans and memory are there and nothing has run",
    SentOut "fan_out.sent_out" "seeds' parts of a pass are with their threads",
    ExecutorBegins "fan_out.executor_begins" "a seed's thread has its part and has not begun",
    ExecutorDone "fan_out.executor_done" "a seed's thread has done its part and not told",
    OneDone "fan_out.one_done" "one part of a pass has come back, others have not",
    JobsDone "fan_out.joined" "all parts have come back",
    CommitHalf "forward.half_committed" "one buffer of a kernel is updated, the next is not",
    Committed "forward.committed" "all buffers are updated, nothing is blended",
    Blended "forward.blended" "the output is written, there is no ticket",
    TicketKept "forward.ticket_kept" "the ticket is kept, nobody was told its number",
    ScheduleAdvanced "schedule.advanced" "schedules have moved on by a step",
    ScheduleReached "schedule.reached" "one has reached its target and nobody was told",
    BackwardFound "backward.ticket_found" "a backward's ticket is there and not spent",
    BackwardSpent "backward.ticket_spent" "it is spent, no gradient is written",
    RunAgain "backward.run_again" "the forward of a layer that recomputes was run again",
    AlphasWritten "backward.alphas_written" "gradients of blend factors are written, no others",
    GradientHalf "backward.half_written" "the parameters of one seed have their gradients, of others not",
    GradientWritten "backward.parameters_written" "all parameters have, x has none",
    BackwardDone "backward.done" "every gradient is written",
    Released "ticket.released" "a ticket is spent without a backward",
    CompletionReady "completion.ready" "a pass is over and nothing of its completion is written",
    CompletionWritten "completion.written" "the completion is written, the ring does not say so",
    CompletionPublished "completion.published" "the ring says so, nobody was woken",
    CompletionRung "completion.rung" "the trainer was woken, if it slept",
    // the end
    LaneEnding "lane.ending" "a lane ends and has freed nothing",
    LaneFreed "lane.freed" "it has freed everything and told nobody",
    SessionEnding "session.ending" "a session is over, its supervisor does not know",
}

/// What happens there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// SIGKILL.
    Kill,
    /// SIGSTOP.
    Stop,
}

/// What went wrong with what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum FailpointError {
    /// There is no such point.
    #[error("there is no failpoint {name:?}: `--list-failpoints` names them all")]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// A point is reached for the first time, the second, and so on.
    #[error(
        "{text:?} does not say at which time a failpoint acts: write NAME, or NAME:N with N of 1 or more"
    )]
    Time {
        /// What was asked for.
        text: String,
    },
    /// A process has one point that acts.
    #[error("a failpoint is set already: a daemon has one that acts")]
    Twice,
}

#[derive(Debug)]
struct Armed {
    point: Failpoint,
    action: Action,
    /// How often it is still to be reached.
    left: AtomicU64,
}

static ARMED: OnceLock<Armed> = OnceLock::new();

/// Has this process act at a point: `NAME`, or `NAME:N` for the N-th time that it is reached.
///
/// # Errors
/// [`FailpointError`].
pub fn arm(text: &str, action: Action) -> Result<(), FailpointError> {
    let (point, left) = parse(text)?;
    let armed = Armed { point, action, left: AtomicU64::new(left) };
    ARMED.set(armed).map_err(|_| FailpointError::Twice)
}

fn parse(text: &str) -> Result<(Failpoint, u64), FailpointError> {
    let (name, time) = text.split_once(':').map_or((text, None), |(name, time)| (name, Some(time)));
    let point = Failpoint::ALL.iter().copied().find(|point| point.name() == name);
    let point = point.ok_or_else(|| FailpointError::Unknown { name: name.to_owned() })?;
    let time = time.map_or(Some(1), |time| time.parse().ok().filter(|&time| time > 0));
    Ok((point, time.ok_or_else(|| FailpointError::Time { text: text.to_owned() })?))
}

/// A point. Nothing at all in a build without debug assertions.
#[inline(always)]
pub fn reached(point: Failpoint) {
    if ENABLED {
        look(point);
    }
}

/// Whether this process is to act at a point, now or when it is reached again.
#[inline(always)]
pub fn is_armed(point: Failpoint) -> bool {
    ENABLED && armed_at(point).is_some()
}

fn armed_at(point: Failpoint) -> Option<&'static Armed> {
    ARMED.get().filter(|armed| armed.point == point)
}

#[cold]
fn look(point: Failpoint) {
    let Some(armed) = armed_at(point) else { return };
    if armed.left.fetch_sub(1, Ordering::Relaxed) != 1 {
        return;
    }
    // Nobody who does not read it keeps this process alive.
    let _ = writeln!(std::io::stderr(), "failpoint {} reached: {:?}", point.name(), armed.action);
    let sent = match armed.action {
        Action::Stop => kill_process(getpid(), Signal::STOP),
        Action::Kill => kill_process(getpid(), Signal::KILL),
    };
    if sent.is_err() || armed.action == Action::Kill {
        // No step may be taken after this one.
        std::process::abort();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn points_have_names_of_their_own_and_are_found_by_them() {
        let names: BTreeSet<_> = Failpoint::ALL.iter().map(|point| point.name()).collect();
        assert_eq!(names.len(), Failpoint::ALL.len());
        for &point in Failpoint::ALL {
            assert_eq!(parse(point.name()).unwrap(), (point, 1));
            assert!(!point.place().is_empty());
        }
        assert_eq!(parse("turn.begun:7").unwrap(), (Failpoint::TurnBegun, 7));
    }

    #[test]
    fn what_is_no_point_or_no_time_is_refused_by_name() {
        assert!(parse("turn.begin").unwrap_err().to_string().contains("\"turn.begin\""));
        for text in ["turn.begun:", "turn.begun:0", "turn.begun:-1", "turn.begun:soon"] {
            assert!(parse(text).unwrap_err().to_string().contains(text), "{text}");
        }
    }

    #[test]
    fn one_point_acts_and_none_that_nobody_asked_for() {
        for &point in Failpoint::ALL {
            reached(point);
        }
        arm("lane.freed:1000000", Action::Kill).unwrap();
        assert!(matches!(arm("turn.begun", Action::Stop), Err(FailpointError::Twice)));
    }
}
