//! `kasminad` as it is, but for points at which it kills or stops itself when it is asked to (CONTRIBUTING.md).
//!
//! `KASMINA_KILL_AT=NAME[:N]` or `KASMINA_STOP_AT=NAME[:N]` says at which point, and when it is reached for the how
//! manieth time. `--list-failpoints` lists the points, one a line: the name, a tab, where it is.

use std::process::ExitCode;

use kasmina::failpoint::{Action, Failpoint, arm};

#[path = "../src/bin/kasminad.rs"]
mod kasminad;

fn main() -> ExitCode {
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
