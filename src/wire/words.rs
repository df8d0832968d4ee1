//! Words that both ends of a connection use: how outputs blend, where a seed stands, how a pass failed.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How the outputs of a layer's seeds meet the output of its default transform.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Blend {
    /// y = (1 − A)·h + Σ w_s·k_s(x), with A = min(1, Σ α_s) and w_s = A·α_s / Σ α_s.
    #[default]
    Convex,
    /// y = h + Σ α_s·k_s(x).
    Residual,
    /// y = h·Π (1 + α_s·tanh(k_s(x) − x)).
    Multiply,
}

/// What a kernel does in its layer from its graft on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GraftRole {
    /// Its output goes into the layer's, by its alpha.
    #[default]
    Blend,
    /// It learns behind the layer: it runs in training passes, and the output is the same without it.
    Train,
}

/// Where a seed stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SeedState {
    /// No kernel.
    #[default]
    Dormant,
    /// A kernel is being fetched, proven and planned.
    Loading,
    /// The kernel learns behind the host: gradients flow, the output is the host's.
    Training,
    /// Alpha is on its way.
    Blending,
    /// Alpha has reached its target and may still change.
    Holding,
    /// The kernel has become part of the layer.
    Fossilized,
    /// The kernel is being taken out.
    Pruned,
    /// Too many passes failed in a row; the kernel is unloaded.
    ErrorRecovery,
}

impl SeedState {
    /// Every state, in the order of a seed's life.
    pub const ALL: [Self; 8] = [
        Self::Dormant,
        Self::Loading,
        Self::Training,
        Self::Blending,
        Self::Holding,
        Self::Fossilized,
        Self::Pruned,
        Self::ErrorRecovery,
    ];

    /// The state's name on the wire, in logs and in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Dormant => "dormant",
            Self::Loading => "loading",
            Self::Training => "training",
            Self::Blending => "blending",
            Self::Holding => "holding",
            Self::Fossilized => "fossilized",
            Self::Pruned => "pruned",
            Self::ErrorRecovery => "error_recovery",
        }
    }
}

/// What made a seed's pass fail. The numbers stand in a completion's per-seed bytes; 0 there means that the
/// seed did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum FailureKind {
    /// The artifact could not be read or lowered for this input.
    Deserialize = 1,
    /// The kernel's shapes do not fit the layer's.
    Shape = 2,
    /// The run failed, a panic included.
    Runtime = 3,
    /// The time limit passed.
    Timeout = 4,
    /// The output holds an infinity or a NaN.
    NonFinite = 5,
}

impl FailureKind {
    /// Every kind, in the order of the numbers.
    pub const ALL: [Self; 5] =
        [Self::Deserialize, Self::Shape, Self::Runtime, Self::Timeout, Self::NonFinite];

    /// The kind that a completion's byte stands for; `None` for 0 and for numbers not in use.
    pub fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == byte)
    }

    /// The kind's name on the wire and as a metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Deserialize => "deserialize",
            Self::Shape => "shape",
            Self::Runtime => "runtime",
            Self::Timeout => "timeout",
            Self::NonFinite => "non_finite",
        }
    }

    /// The code clients see, such as `kernel.shape`.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Deserialize => "kernel.deserialize",
            Self::Shape => "kernel.shape",
            Self::Runtime => "kernel.runtime",
            Self::Timeout => "kernel.timeout",
            Self::NonFinite => "kernel.non_finite",
        }
    }
}

/// A pass's result as a completion states it: 0, or the number of a stable error code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// The descriptor breaks the protocol; the session ends.
    Protocol = 1,
    /// The session holds as much as it may.
    Quota = 2,
    /// The session has no such layer.
    LayerUnknown = 3,
    /// The session never took this ticket.
    TicketUnknown = 4,
    /// The ticket has had its backward or was released.
    TicketSpent = 5,
    /// The host's shapes do not fit the layer's.
    KernelShape = 6,
    /// The host, or the blend, failed to run.
    KernelRuntime = 7,
    /// The host took longer than it may.
    KernelTimeout = 8,
    /// The host gave an infinity or a NaN.
    KernelNonFinite = 9,
    /// The host's kernel could not be read or lowered.
    KernelDeserialize = 10,
    /// The daemon is shutting down.
    Draining = 11,
    /// A defect of the daemon.
    Bug = 12,
    /// The layer was opened with a host, and none is grafted.
    NoHost = 13,
    /// An alpha that the pass was given is not in [0, 1].
    Alpha = 14,
}

impl Status {
    /// Every status, in the order of the numbers.
    pub const ALL: [Self; 15] = [
        Self::Ok,
        Self::Protocol,
        Self::Quota,
        Self::LayerUnknown,
        Self::TicketUnknown,
        Self::TicketSpent,
        Self::KernelShape,
        Self::KernelRuntime,
        Self::KernelTimeout,
        Self::KernelNonFinite,
        Self::KernelDeserialize,
        Self::Draining,
        Self::Bug,
        Self::NoHost,
        Self::Alpha,
    ];

    /// The status a number stands for.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|status| *status as u32 == number)
    }

    /// The code clients see; `ok` for success.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Protocol => "session.protocol",
            Self::Quota => "session.quota",
            Self::LayerUnknown => "layer.unknown",
            Self::TicketUnknown => "ticket.unknown",
            Self::TicketSpent => "ticket.spent",
            Self::KernelShape => "kernel.shape",
            Self::KernelRuntime => "kernel.runtime",
            Self::KernelTimeout => "kernel.timeout",
            Self::KernelNonFinite => "kernel.non_finite",
            Self::KernelDeserialize => "kernel.deserialize",
            Self::Draining => "shutdown.draining",
            Self::Bug => "internal.bug",
            Self::NoHost => "layer.no_host",
            Self::Alpha => "seed.alpha",
        }
    }

    /// The status of a [`Fault`](crate::fault::Fault)'s code; codes without a number of their own are
    /// [`Status::Bug`].
    pub fn from_code(code: &str) -> Self {
        Self::ALL.into_iter().find(|status| status.code() == code).unwrap_or(Self::Bug)
    }
}

impl From<FailureKind> for Status {
    fn from(kind: FailureKind) -> Self {
        match kind {
            FailureKind::Deserialize => Self::KernelDeserialize,
            FailureKind::Shape => Self::KernelShape,
            FailureKind::Runtime => Self::KernelRuntime,
            FailureKind::Timeout => Self::KernelTimeout,
            FailureKind::NonFinite => Self::KernelNonFinite,
        }
    }
}

impl fmt::Display for Blend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Convex => "convex",
            Self::Residual => "residual",
            Self::Multiply => "multiply",
        })
    }
}

impl fmt::Display for SeedState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_on_the_wire_are_the_printed_names() {
        for state in SeedState::ALL {
            assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
        }
        for kind in FailureKind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
            assert_eq!(FailureKind::from_byte(kind as u8), Some(kind));
            assert_eq!(Status::from(kind).code(), kind.code());
        }
        for blend in [Blend::Convex, Blend::Residual, Blend::Multiply] {
            assert_eq!(serde_json::to_value(blend).unwrap(), blend.to_string());
        }
        assert_eq!(FailureKind::from_byte(0), None);
    }

    #[test]
    fn status_numbers_and_codes_read_back() {
        for (i, status) in Status::ALL.into_iter().enumerate() {
            assert_eq!(status as usize, i);
            assert_eq!(Status::from_number(i as u32), Some(status));
            assert_eq!(Status::from_code(status.code()), status);
        }
        assert_eq!(Status::from_number(15), None);
        assert_eq!(Status::from_code("no.such"), Status::Bug);
    }
}
