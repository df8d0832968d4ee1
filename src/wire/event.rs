//! What happened to seeds, layers and sessions, as it is told to those who watch.

use serde::{Deserialize, Serialize};

use super::{ErrorReply, SeedState};
use crate::id::{Generation, KernelId, LayerId, SeedIndex, SessionId};

/// Asks for events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Watch {
    /// Of which session; null for all that the asker may see.
    #[serde(default)]
    pub session: Option<SessionId>,
}

/// Something that happened. What does not concern it is left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Rises by one with every event of the daemon, whoever may see it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
    /// When, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unix_ms: Option<i64>,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
    /// In which session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionId>,
    /// In which layer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<LayerId>,
    /// The layer's name in the trainer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer_name: Option<String>,
    /// To which seed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<SeedIndex>,
    /// The kernel that the seed has, or is to have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<KernelId>,
    /// Which of the seed's kernels that is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<Generation>,
    /// The seed's blend factor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f32>,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum EventKind {
    /// A trainer has connected and greeted.
    SessionOpened {
        /// Name and version of its client.
        client: String,
        /// Its process id, as the kernel states it.
        pid: u32,
    },
    /// A trainer's session has ended.
    SessionClosed,
    /// A layer was opened.
    LayerOpened {
        /// How many seeds it has.
        seeds: u16,
    },
    /// A layer was closed. That all of a session's are closed with it is not told.
    LayerClosed,
    /// A seed went from one state to another.
    StateChanged {
        /// From which.
        from: SeedState,
        /// To which.
        to: SeedState,
        /// Why.
        reason: String,
    },
    /// A seed's blend factor has reached the target of its schedule.
    AlphaReached,
    /// A seed's kernel was replaced by another between two passes.
    KernelSwapped {
        /// The one that was there before.
        before: KernelId,
    },
    /// A pass of a seed has failed, for the first time since its kernel came. Further ones are not told.
    PassFailed {
        /// Why.
        error: ErrorReply,
    },
    /// As many passes in a row have failed as the configuration allows: the kernel was taken out.
    Unloaded {
        /// Why the last one failed.
        error: ErrorReply,
    },
    /// A kernel that was unloaded runs again.
    Recovered {
        /// At which attempt, from 1.
        attempt: u32,
    },
    /// An attempt to bring a kernel back has failed.
    RecoveryFailed {
        /// Which attempt, from 1.
        attempt: u32,
        /// Why.
        error: ErrorReply,
    },
    /// A kernel was taken out because its trainer wanted it.
    Pruned,
    /// A seed refuses a kernel from now on.
    Embargoed {
        /// For how long, in milliseconds.
        embargo_ms: u64,
    },
    /// A seed's kernel has become part of its layer.
    Fossilized {
        /// Whether its parameters are trained no more.
        frozen: bool,
    },
    /// The watcher was too slow: this many events are missing here.
    Lost {
        /// How many.
        count: u64,
    },
}

impl EventKind {
    /// Its name as it stands in the JSON.
    pub fn name(&self) -> &'static str {
        match self {
            Self::SessionOpened { .. } => "session_opened",
            Self::SessionClosed => "session_closed",
            Self::LayerOpened { .. } => "layer_opened",
            Self::LayerClosed => "layer_closed",
            Self::StateChanged { .. } => "state_changed",
            Self::AlphaReached => "alpha_reached",
            Self::KernelSwapped { .. } => "kernel_swapped",
            Self::PassFailed { .. } => "pass_failed",
            Self::Unloaded { .. } => "unloaded",
            Self::Recovered { .. } => "recovered",
            Self::RecoveryFailed { .. } => "recovery_failed",
            Self::Pruned => "pruned",
            Self::Embargoed { .. } => "embargoed",
            Self::Fossilized { .. } => "fossilized",
            Self::Lost { .. } => "lost",
        }
    }
}

impl From<EventKind> for Event {
    /// Of nobody yet, and not told yet.
    fn from(kind: EventKind) -> Self {
        Self {
            sequence: None,
            unix_ms: None,
            kind,
            session: None,
            layer: None,
            layer_name: None,
            seed: None,
            kernel: None,
            generation: None,
            alpha: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_flat_and_say_what_concerns_them() {
        let lost = Event::from(EventKind::Lost { count: 3 });
        assert_eq!(serde_json::to_string(&lost).unwrap(), r#"{"event":"lost","count":3}"#);
        let (from, to) = (SeedState::Blending, SeedState::Holding);
        let kind = EventKind::StateChanged { from, to, reason: "why".to_owned() };
        let event = Event {
            sequence: Some(7),
            unix_ms: Some(9),
            session: Some(SessionId(1)),
            layer: Some(LayerId(2)),
            layer_name: Some("fc".to_owned()),
            seed: Some(SeedIndex(0)),
            kernel: Some("mlp".parse().unwrap()),
            generation: Some(Generation(4)),
            alpha: Some(0.5),
            ..kind.into()
        };
        let text = serde_json::to_string(&event).unwrap();
        let expected = concat!(
            r#"{"sequence":7,"unix_ms":9,"event":"state_changed","from":"blending","to":"holding","#,
            r#""reason":"why","session":1,"layer":2,"layer_name":"fc","seed":0,"kernel":"mlp","#,
            r#""generation":4,"alpha":0.5}"#
        );
        assert_eq!(text, expected);
        for event in [event, lost, EventKind::AlphaReached.into(), EventKind::SessionClosed.into()] {
            let text = serde_json::to_string(&event).unwrap();
            assert!(text.contains(&format!(r#""event":"{}""#, event.kind.name())), "{text}");
            assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), event, "{text}");
        }
    }

    #[test]
    fn both_sockets_are_asked_alike() {
        let text = r#"{"verb":"watch","session":3}"#;
        let watch = Watch { session: Some(SessionId(3)) };
        assert_eq!(
            serde_json::from_str::<crate::wire::Request>(text).unwrap(),
            crate::wire::Request::Watch(watch)
        );
        let operators: crate::wire::OperatorRequest = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&operators).unwrap(), text);
    }
}
