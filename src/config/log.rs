//! `[log]`: what is written to standard error, and how.

use super::{section::section, setting::words};

/// The least important line that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// Failures that need somebody.
    Error,
    /// Failures that the daemon got around.
    Warn,
    /// Changes of state.
    Info,
    /// Each request of the control plane.
    Debug,
    /// Each pass.
    Trace,
}

words!(LogLevel { Error = "error", Warn = "warn", Info = "info", Debug = "debug", Trace = "trace" });

/// The form of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

words!(LogFormat { Text = "text", Json = "json" });

section! {
    /// Log lines.
    Log in "log" {
        /// The least important line that is written.
        level: LogLevel = LogLevel::Info, "error, warn, info, debug or trace", Restart;
        /// The form of a line.
        format: LogFormat = LogFormat::Text, "text or json", Restart;
    }
}
