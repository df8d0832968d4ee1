//! Log lines to standard error, as text or as JSON.

use std::io::IsTerminal;

use tracing_subscriber::filter::LevelFilter;

use crate::config::{Log, LogFormat, LogLevel};

/// Sends every later `tracing` event of the process to standard error. Returns whether it did: a second
/// call, or one after another subscriber was set, changes nothing.
pub fn start_logging(log: &Log) -> bool {
    let level = level_filter(log.level);
    let builder = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr);
    let set = match log.format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    set.is_ok()
}

fn level_filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_call_sets_up_and_the_level_holds() {
        let log = Log { level: LogLevel::Warn, ..Log::default() };
        assert!(start_logging(&log));
        assert!(!start_logging(&log));
        assert!(tracing::enabled!(tracing::Level::WARN));
        assert!(!tracing::enabled!(tracing::Level::INFO));
    }
}
