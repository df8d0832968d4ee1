//! What the daemon is doing.

use std::sync::atomic::{AtomicU8, Ordering};

/// A phase of the daemon's life. Each follows the one before it, and none comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    /// Reading its configuration, opening its tiers.
    Starting,
    /// Trainers may connect.
    Serving,
    /// Tickets finish; nothing new is taken.
    Draining,
    /// Closing what is open.
    Stopping,
}

static NOW: AtomicU8 = AtomicU8::new(Phase::Starting as u8);

impl Phase {
    /// Every phase, in order.
    pub const ALL: [Self; 4] = [Self::Starting, Self::Serving, Self::Draining, Self::Stopping];

    /// The phase's name in `kasmina status`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Serving => "serving",
            Self::Draining => "draining",
            Self::Stopping => "stopping",
        }
    }

    /// The phase this process is in.
    pub fn now() -> Self {
        let now = NOW.load(Ordering::Acquire);
        Self::ALL.into_iter().find(|phase| *phase as u8 == now).unwrap_or(Self::Stopping)
    }

    /// Goes on to a phase. A step back is not taken.
    pub(super) fn enter(self) {
        let before = NOW.fetch_max(self as u8, Ordering::AcqRel);
        if before < self as u8 {
            tracing::info!(phase = self.as_str(), "daemon");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_only_go_forward() {
        Phase::Draining.enter();
        Phase::Serving.enter();
        assert_eq!(Phase::now(), Phase::Draining);
        assert!(Phase::ALL.windows(2).all(|pair| pair[0] < pair[1]));
    }
}
