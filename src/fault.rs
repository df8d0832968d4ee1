//! What every error of the system can say of itself: its class, which retry and breaker look at, and a
//! stable code, which clients look at.

use std::fmt;

/// The kind of failure, decided once, nearest to its cause.
///
/// Retries and circuit breakers look at nothing else: [`Unavailable`](ErrorClass::Unavailable) and
/// [`Overloaded`](ErrorClass::Overloaded) may be tried again, the others may not, and only
/// `Unavailable` counts against the service that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    /// The request or the data is wrong and will stay so.
    Invalid,
    /// What was asked for does not exist.
    NotFound,
    /// Bytes differ from what their digest or their format promises.
    Corrupt,
    /// A limit or a quota is reached; later it may be free again.
    Overloaded,
    /// A dependency does not answer.
    Unavailable,
    /// The asker went away or the daemon is draining.
    Cancelled,
    /// A defect of our own, a panic included.
    Bug,
}

impl ErrorClass {
    /// Whether the same request may succeed later without any change.
    pub fn is_retryable(self) -> bool {
        matches!(self, Self::Overloaded | Self::Unavailable)
    }

    /// The class as a metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::NotFound => "not_found",
            Self::Corrupt => "corrupt",
            Self::Overloaded => "overloaded",
            Self::Unavailable => "unavailable",
            Self::Cancelled => "cancelled",
            Self::Bug => "bug",
        }
    }
}

impl fmt::Display for ErrorClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Characters of somebody else's text that an error repeats.
const REPEATED: usize = 200;

/// A text of somebody else's, cut to what an error may repeat of it: errors are kept, sent and logged.
pub fn shortened(text: &str) -> String {
    match text.char_indices().nth(REPEATED) {
        Some((end, _)) => format!("{}… ({} bytes)", &text[..end], text.len()),
        None => text.to_owned(),
    }
}

/// An error that knows its class and the stable code a client sees.
pub trait Fault: std::error::Error {
    /// The class, for retry and breaker.
    fn class(&self) -> ErrorClass;

    /// The code clients match on, such as `kernel.not_found`; never changes once released.
    fn code(&self) -> &'static str;

    /// Whether every node would be told the same: "there is none" by default, and nothing else, for what a node refuses
    /// it refuses by its own settings.
    fn holds_everywhere(&self) -> bool {
        self.class() == ErrorClass::NotFound
    }

    /// Whether it says that what there was is there no more, or is not to be used any more: of a copy of it, that
    /// decides. A request that is refused, or an answer that makes no sense, says nothing of what there was.
    fn is_withdrawal(&self) -> bool {
        self.class() == ErrorClass::NotFound
    }

    /// How long the dependency asks to be left alone; a retry waits at least that, or is given up where it
    /// would have to wait longer than its longest delay.
    fn retry_after(&self) -> Option<std::time::Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_between_characters_and_says_how_long_it_was() {
        assert_eq!(shortened("short"), "short");
        assert_eq!(shortened(&"ä".repeat(REPEATED)), "ä".repeat(REPEATED));
        assert_eq!(shortened(&"ä".repeat(1000)), format!("{}… (2000 bytes)", "ä".repeat(REPEATED)));
    }
}
