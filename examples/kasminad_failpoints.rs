//! `kasminad` as it is, but that it kills or stops itself at a point when it is asked to (CONTRIBUTING.md). Not a binary, so
//! that no build of it takes the place of the real one.
//!
//! `KASMINA_KILL_AT=NAME[:N]` or `KASMINA_STOP_AT=NAME[:N]` says at which point, and when it is reached for the how
//! manieth time. `--list-failpoints` lists the points, one a line: the name, a tab, where it is.

use std::process::ExitCode;

use kasmina::failpoint::{Action, ENABLED, Failpoint, arm};

#[path = "../src/bin/kasminad.rs"]
mod kasminad;

fn main() -> ExitCode {
    if !ENABLED {
        eprintln!(
            "this build has no points: build it with debug assertions, as cargo does without --release"
        );
        return ExitCode::FAILURE;
    }
    if std::env::args().nth(1).is_some_and(|first| first == "--list-failpoints") {
        for point in Failpoint::ALL {
            println!("{}\t{}", point.name(), point.place());
        }
        return ExitCode::SUCCESS;
    }
    for (variable, action) in [("KASMINA_KILL_AT", Action::Kill), ("KASMINA_STOP_AT", Action::Stop)] {
        let Some(text) = std::env::var_os(variable) else { continue };
        if let Err(error) = arm(&text.to_string_lossy(), action) {
            eprintln!("{variable}: {error}");
            return ExitCode::from(kasminad::EX_CONFIG);
        }
    }
    kasminad::main()
}
