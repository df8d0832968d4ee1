//! `kasminad`: the daemon.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use kasmina::{
    config::{Config, ProcessEnvironment},
    daemon::{self, DaemonEnvironment},
    fault::Fault as _,
    telemetry::{Notifier, start_logging},
};

/// Exit code for a configuration that cannot be used, as `sysexits.h` has it.
pub const EX_CONFIG: u8 = 78;

/// Runs kernels in the seeds of trainers' layers.
#[derive(Debug, Parser)]
#[command(name = "kasminad", version)]
struct Arguments {
    /// The configuration file; without one, defaults and KASMINA__SECTION__KEY variables.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Checks the configuration, prints every problem, and leaves.
    #[arg(long)]
    check_config: bool,
}

/// The daemon's whole life; its exit code.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let config = match Config::load(arguments.config.as_deref(), &ProcessEnvironment) {
        Ok(config) => config,
        Err(errors) => {
            eprintln!("{errors}");
            return ExitCode::from(EX_CONFIG);
        }
    };
    if arguments.check_config {
        return ExitCode::SUCCESS;
    }
    start_logging(&config.log);
    let environment = DaemonEnvironment {
        notifier: match Notifier::new(std::env::var_os("NOTIFY_SOCKET").as_deref()) {
            Ok(notifier) => Some(notifier),
            Err(error) => {
                tracing::warn!(%error, "NOTIFY_SOCKET cannot be used, the service manager is not told");
                None
            }
        },
        variable: |name| std::env::var_os(name).map(PathBuf::from),
        panic_in: std::env::var("KASMINA_FAILPOINT").ok().and_then(|text| failpoint(&text)),
    };
    match daemon::run(&config, &environment) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kasminad: {error}");
            // What only shows when it is tried, such as a folder that cannot be written to, or a GPU that is not there.
            match error.code() {
                "config.invalid" | "device.unavailable" => ExitCode::from(EX_CONFIG),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

/// The kernel that `engine.execute.panic=<kernel>` names.
fn failpoint(text: &str) -> Option<kasmina::id::KernelId> {
    text.strip_prefix("engine.execute.panic=")?.parse().ok()
}
