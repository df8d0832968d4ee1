//! `kasminad`: the daemon.

use std::{
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Command, ExitCode},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

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
            if error.code() == "device.lost" {
                return begin_anew();
            }
            // What only shows when it is tried, such as a folder that cannot be written to, or a GPU that is not there.
            match error.code() {
                "config.invalid" | "device.unavailable" => ExitCode::from(EX_CONFIG),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

/// Where a daemon that begins anew finds when it has done so lately: seconds since 1970, with commas.
const LOSSES: &str = "KASMINA_DEVICE_LOSSES";
/// How often in how long a lost device is worth another try.
const MOST_LOSSES: usize = 5;
const LOSSES_COUNT_FOR: Duration = Duration::from_secs(600);

/// Puts this program into its own place, for only a new one can use a GPU again that has failed. Sockets are closed, as when
/// it dies, and trainers come back by themselves; whoever supervises the process sees the same one.
fn begin_anew() -> ExitCode {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let Some(losses) = with_this_loss(std::env::var(LOSSES).ok().as_deref(), now) else {
        eprintln!("kasminad: the GPU was lost too often: see to it, then start the daemon again");
        return ExitCode::FAILURE;
    };
    // The driver closes its files when a program is replaced, and so does the library for all that the daemon has opened.
    let arguments = std::env::args_os().skip(1);
    // The program as it is installed now, or this one where its file is gone.
    let installed = std::env::current_exe().ok().filter(|path| path.exists());
    let program = installed.unwrap_or_else(|| "/proc/self/exe".into());
    let error = Command::new(program).args(arguments).env(LOSSES, losses).exec();
    eprintln!("kasminad: cannot begin anew: {error}");
    ExitCode::FAILURE
}

/// The losses that still count, and this one; none where it is one too many.
fn with_this_loss(before: Option<&str>, now: Duration) -> Option<String> {
    let times = before.unwrap_or_default().split(',').filter_map(|time| time.parse().ok());
    let lately = times.filter(|&time| now.as_secs().abs_diff(time) < LOSSES_COUNT_FOR.as_secs());
    let mut losses: Vec<u64> = lately.collect();
    losses.push(now.as_secs());
    let texts = losses.iter().map(u64::to_string).collect::<Vec<_>>();
    (losses.len() <= MOST_LOSSES).then(|| texts.join(","))
}

/// The kernel that `engine.execute.panic=<kernel>` names.
fn failpoint(text: &str) -> Option<kasmina::id::KernelId> {
    text.strip_prefix("engine.execute.panic=")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_device_is_worth_five_tries_in_ten_minutes() {
        let at = Duration::from_secs;
        assert_eq!(with_this_loss(None, at(1000)).as_deref(), Some("1000"));
        assert_eq!(with_this_loss(Some("100,900"), at(1000)).as_deref(), Some("900,1000"));
        assert_eq!(with_this_loss(Some("what,900"), at(1000)).as_deref(), Some("900,1000"));
        assert_eq!(
            with_this_loss(Some("960,970,980,990"), at(1000)).as_deref(),
            Some("960,970,980,990,1000")
        );
        assert_eq!(with_this_loss(Some("950,960,970,980,990"), at(1000)), None);
    }
}
