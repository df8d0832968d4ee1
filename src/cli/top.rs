//! `kasmina top`: the sessions of a running daemon, those first that compute most.

use std::{
    io::{IsTerminal as _, Write as _},
    thread,
    time::Duration,
};

use super::{
    CliError, Exit, OperatorOptions,
    table::{self, bytes, micros},
};
use crate::wire::{SessionReport, StatusReport, TurnsReport, UserReport};

/// How long a picture stands.
const REFRESH: Duration = Duration::from_secs(1);

/// Moves to the corner and clears what is below.
const CLEAR: &str = "\u{1b}[H\u{1b}[J";

/// Shows every session with what it holds, computes and waits for: each second anew on a terminal, else once.
///
/// # Errors
/// [`CliError::Client`] when the daemon does not answer, any more.
pub fn top(options: &OperatorOptions, once: bool) -> Result<Exit, CliError> {
    let mut operator = options.connect()?;
    let mut output = std::io::stdout();
    if once || options.json || !output.is_terminal() {
        return options.show(&operator.status()?, |report| table::say(&picture(report)));
    }
    loop {
        let text = format!("{CLEAR}{}", table::shown(&picture(&operator.status()?)));
        if output.write_all(text.as_bytes()).and_then(|()| output.flush()).is_err() {
            // Nobody looks any more.
            return Ok(Exit::Ok);
        }
        thread::sleep(REFRESH);
    }
}

fn picture(report: &StatusReport) -> String {
    let TurnsReport { places, running, waiting } = report.turns;
    let mut text = format!(
        "kasminad {}, {}, up {} s, {} resident; {} sessions, {running} passes run in and beside {places} places, {waiting} wait\n\n",
        report.version,
        report.phase,
        report.uptime_seconds,
        bytes(report.resident_bytes),
        report.sessions.len(),
    );
    let mut sessions: Vec<&SessionReport> = report.sessions.iter().collect();
    sessions.sort_by(|a, b| b.recent.compute_percent.total_cmp(&a.recent.compute_percent));
    let rows: Vec<_> = sessions.into_iter().map(row).collect();
    let headings = [
        " SESSION",
        " UID",
        " PID",
        "CLIENT",
        " LAYERS",
        " SEEDS",
        " TICKETS",
        " HELD",
        " PASSES/S",
        " COMPUTE",
        " WAITING",
        " P50",
        " P99",
    ];
    text += &table::render(&headings, &rows);
    if !report.users.is_empty() {
        let rows: Vec<_> = report.users.iter().map(user_row).collect();
        text += "\n";
        text += &table::render(&[" UID", " SESSIONS", " LAYERS", " SEEDS", " TICKETS", " HELD"], &rows);
    }
    text
}

fn row(session: &SessionReport) -> Vec<String> {
    let recent = &session.recent;
    vec![
        session.session.to_string(),
        session.uid.to_string(),
        session.pid.to_string(),
        session.client.clone(),
        session.layers.to_string(),
        session.live_seeds.to_string(),
        session.tickets.to_string(),
        bytes(session.held_bytes),
        format!("{:.1}", recent.passes_per_second),
        format!("{:.0} %", recent.compute_percent),
        format!("{:.0} %", recent.waiting_percent),
        micros(session.pass_p50_us),
        micros(session.pass_p99_us),
    ]
}

fn user_row(user: &UserReport) -> Vec<String> {
    let UserReport { uid, sessions, layers, seeds, tickets, bytes: held } = *user;
    let counts = [u64::from(uid), sessions, layers, seeds, tickets].map(|count| count.to_string());
    counts.into_iter().chain([bytes(held)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{id::SessionId, wire::RecentReport};

    #[test]
    fn who_computes_most_stands_first() {
        let session = |number, compute_percent| SessionReport {
            session: SessionId(number),
            client: "kasmina-python/0.1.0".to_owned(),
            pid: 41,
            uid: 1000,
            device: "cpu".to_owned(),
            layers: 2,
            live_seeds: 16,
            tickets: 3,
            arena_bytes: 0,
            saved_bytes: 1024,
            passes: 9,
            refused_passes: 0,
            supply_waits: 0,
            pass_plans: 0,
            held_bytes: 4096,
            compute_us: 0,
            turn_wait_us: 0,
            pass_p50_us: 250.0,
            pass_p99_us: 12_345.0,
            recent: RecentReport { passes_per_second: 12.25, compute_percent, waiting_percent: 7.5 },
        };
        let report = StatusReport {
            version: "1.2.3".to_owned(),
            phase: "serving".to_owned(),
            sessions: vec![session(1, 3.0), session(2, 61.4)],
            turns: TurnsReport { places: 2, running: 2, waiting: 5 },
            users: vec![UserReport { uid: 1000, sessions: 2, layers: 4, seeds: 32, tickets: 6, bytes: 8192 }],
            ..StatusReport::default()
        };
        let text = picture(&report);
        let words: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert!(text.starts_with(
            "kasminad 1.2.3, serving, up 0 s, 0 B resident; 2 sessions, 2 passes run in and beside 2 places, 5 wait"
        ));
        let expected = "2 1000 41 kasmina-python/0.1.0 2 16 3 4.0 KiB 12.2 61 % 8 % 250 us 12.3 ms";
        assert_eq!(words[3].join(" "), expected);
        assert_eq!(words[4][0], "1");
        assert_eq!(words[7].join(" "), "1000 2 4 32 6 8.0 KiB");
    }
}
