//! What is counted, and how much of each there may be.

/// One kind of thing that costs the daemon something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// Open sessions.
    Sessions,
    /// Open layers.
    Layers,
    /// Seeds' memory files: each is a descriptor, and mostly a thread.
    Seeds,
    /// Tickets taken and not yet spent.
    Tickets,
    /// Bytes of seeds' memory files and of what tickets save, together.
    Bytes,
}

impl Held {
    pub(super) const ALL: [Self; 5] = [Self::Sessions, Self::Layers, Self::Seeds, Self::Tickets, Self::Bytes];

    /// What to do about too many of them.
    pub(super) fn advice(self) -> &'static str {
        match self {
            Self::Sessions => "close a session",
            Self::Layers => "close layers",
            Self::Seeds => "prune seeds and spend the tickets that ran them",
            Self::Tickets => "spend or release tickets",
            Self::Bytes => "prune seeds or spend tickets, whose parameters and saved bytes count together",
        }
    }

    /// The setting that bounds one session.
    pub(super) fn session_key(self) -> &'static str {
        match self {
            Self::Sessions => "limits.max_sessions",
            Self::Layers => "limits.max_layers_per_session",
            Self::Seeds => "limits.max_seeds_per_session",
            // A session's are as many as its layers' together.
            Self::Tickets => "engine.max_tickets_per_layer",
            Self::Bytes => "limits.max_bytes_per_session",
        }
    }

    /// The setting that bounds all sessions of one user together.
    pub(super) fn user_key(self) -> &'static str {
        match self {
            Self::Sessions => "limits.max_sessions_per_uid",
            Self::Layers => "limits.max_layers_per_uid",
            Self::Seeds => "limits.max_seeds_per_uid",
            Self::Tickets => "limits.max_tickets_per_uid",
            Self::Bytes => "limits.max_bytes_per_uid",
        }
    }
}

/// A number of each kind: what is held, what is asked for, or what is allowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holdings {
    /// Open sessions.
    pub sessions: u64,
    /// Open layers.
    pub layers: u64,
    /// Seeds' memory files.
    pub seeds: u64,
    /// Tickets.
    pub tickets: u64,
    /// Bytes of memory files and of what tickets save.
    pub bytes: u64,
}

impl Holdings {
    /// None of anything.
    pub const NONE: Self = Self { sessions: 0, layers: 0, seeds: 0, tickets: 0, bytes: 0 };

    /// The number of one kind.
    pub fn of(&self, what: Held) -> u64 {
        match what {
            Held::Sessions => self.sessions,
            Held::Layers => self.layers,
            Held::Seeds => self.seeds,
            Held::Tickets => self.tickets,
            Held::Bytes => self.bytes,
        }
    }

    pub(super) fn from_fn(number: impl Fn(Held) -> u64) -> Self {
        Self {
            sessions: number(Held::Sessions),
            layers: number(Held::Layers),
            seeds: number(Held::Seeds),
            tickets: number(Held::Tickets),
            bytes: number(Held::Bytes),
        }
    }
}

/// How much may be held. 0 is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QuotaLimits {
    /// By one session; its number of sessions is not looked at.
    pub session: Holdings,
    /// By all sessions of one user together.
    pub user: Holdings,
}
