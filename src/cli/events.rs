//! `kasmina events`: what happens to seeds, as it happens.

use super::{CliError, Exit, OperatorOptions, table::say};
use crate::{
    client::Events,
    id::SessionId,
    wire::{Event, EventKind},
};

/// Prints a line for each event, of one session or of all, until the daemon ends or nobody reads on.
///
/// # Errors
/// [`CliError::Client`] when the daemon does not answer, and when it is gone.
pub fn events(options: &OperatorOptions, session: Option<SessionId>) -> Result<Exit, CliError> {
    for event in Events::watch(&options.control_socket, session)? {
        let event = event?;
        let line = if options.json {
            serde_json::to_string(&event).map_err(|error| CliError::usage(error.to_string()))?
        } else {
            text(&event)
        };
        if !say_line(&line) {
            break;
        }
    }
    Ok(Exit::Ok)
}

/// Prints a line; whether anybody reads it.
fn say_line(line: &str) -> bool {
    say(&format!("{line}\n"));
    std::io::Write::flush(&mut std::io::stdout()).is_ok()
}

/// One line: number, place, kernel, blend factor, what happened.
fn text(event: &Event) -> String {
    let mut line = event.sequence.map_or_else(|| "-".to_owned(), |sequence| sequence.to_string());
    let place = [
        event.session.map(|session| session.to_string()),
        event.layer.map(|layer| layer.to_string()),
        event.seed.map(|seed| seed.to_string()),
    ];
    let place: Vec<_> = place.into_iter().flatten().collect();
    if !place.is_empty() {
        line += &format!("  {}", place.join("/"));
    }
    for word in [event.layer_name.as_deref(), event.kernel.as_ref().map(|kernel| kernel.as_str())] {
        line += &word.map_or_else(String::new, |word| format!("  {word}"));
    }
    if let Some(alpha) = event.alpha {
        line += &format!("  alpha {alpha:.3}");
    }
    format!("{line}  {}", what(&event.kind))
}

fn what(kind: &EventKind) -> String {
    match kind {
        EventKind::SessionOpened { client, pid } => format!("session opened by {client}, pid {pid}"),
        EventKind::SessionClosed => "session closed".to_owned(),
        EventKind::LayerOpened { seeds } => format!("layer opened with {seeds} seeds"),
        EventKind::LayerClosed => "layer closed".to_owned(),
        EventKind::StateChanged { from, to, reason } => format!("{from} -> {to}: {reason}"),
        EventKind::AlphaReached => "target reached".to_owned(),
        EventKind::KernelSwapped { before } => format!("in place of {before}"),
        EventKind::PassFailed { error } => format!("a pass failed: {error}"),
        EventKind::Unloaded { error } => format!("unloaded: {error}"),
        EventKind::Recovered { attempt } => format!("recovered at attempt {attempt}"),
        EventKind::RecoveryFailed { attempt, error } => format!("attempt {attempt} failed: {error}"),
        EventKind::Pruned => "pruned".to_owned(),
        EventKind::Embargoed { embargo_ms } => format!("refused for {embargo_ms} ms"),
        EventKind::Fossilized { frozen: true } => "fossilized, its parameters are frozen".to_owned(),
        EventKind::Fossilized { frozen: false } => "fossilized".to_owned(),
        EventKind::Lost { count } => format!("{count} events are missing here"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        id::{LayerId, SeedIndex},
        wire::SeedState,
    };

    #[test]
    fn a_line_says_where_and_what() {
        let (from, to) = (SeedState::Blending, SeedState::Holding);
        let kind = EventKind::StateChanged { from, to, reason: "why".to_owned() };
        let event = Event {
            sequence: Some(7),
            session: Some(SessionId(1)),
            layer: Some(LayerId(2)),
            layer_name: Some("fc".to_owned()),
            seed: Some(SeedIndex(0)),
            kernel: Some("mlp".parse().unwrap()),
            alpha: Some(0.5),
            ..kind.into()
        };
        assert_eq!(text(&event), "7  1/2/0  fc  mlp  alpha 0.500  blending -> holding: why");
        assert_eq!(text(&EventKind::Lost { count: 3 }.into()), "-  3 events are missing here");
    }
}
