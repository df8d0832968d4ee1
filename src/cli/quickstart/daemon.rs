//! A daemon of one's own, for as long as it is held.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use super::super::CliError;
use crate::client::Operator;

/// How long the daemon may take to answer, and to leave.
const PATIENCE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(10);

/// A running `kasminad`. Dropped, it is killed.
#[derive(Debug)]
pub(super) struct OwnDaemon {
    child: Child,
    folder: PathBuf,
}

impl OwnDaemon {
    /// Starts the daemon that lies beside this program and waits until it answers.
    pub(super) fn start(folder: &Path, kernels: &Path) -> Result<Self, CliError> {
        let config = folder.join("kasmina.toml");
        fs::write(&config, settings(folder, kernels)).map_err(CliError::file(&config))?;
        let own = std::env::current_exe().map_err(CliError::file(Path::new("kasmina")))?;
        let program = own.with_file_name("kasminad");
        let child =
            Command::new(&program).arg("--config").arg(&config).spawn().map_err(CliError::file(&program))?;
        let mut daemon = Self { child, folder: folder.to_owned() };
        let deadline = Instant::now() + PATIENCE;
        while Operator::connect(daemon.control_socket()).and_then(|mut operator| operator.status()).is_err() {
            if let Ok(Some(status)) = daemon.child.try_wait() {
                return Err(CliError::usage(format!(
                    "kasminad ended at once ({status}), see what it says above"
                )));
            }
            if Instant::now() >= deadline {
                return Err(CliError::usage(format!("kasminad does not answer after {PATIENCE:?}")));
            }
            thread::sleep(POLL);
        }
        Ok(daemon)
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.folder.join("kasmina.sock")
    }

    pub(super) fn control_socket(&self) -> PathBuf {
        self.folder.join("control.sock")
    }

    /// Asks the daemon to leave and waits until it has, in order.
    pub(super) fn stop(mut self) -> Result<(), CliError> {
        let failed = |reason: String| CliError::usage(format!("kasminad: {reason}"));
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| failed("its process id is not one".to_owned()))?;
        kill_process(pid, Signal::TERM)
            .map_err(|error| failed(format!("cannot be told to leave: {error}")))?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(status)) => return Err(failed(format!("left with {status}"))),
                Ok(None) if Instant::now() < deadline => thread::sleep(POLL),
                Ok(None) => return Err(failed(format!("does not leave within {PATIENCE:?}"))),
                Err(error) => return Err(failed(error.to_string())),
            }
        }
    }
}

impl Drop for OwnDaemon {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn settings(folder: &Path, kernels: &Path) -> String {
    // A JSON string is a TOML string too.
    let quoted = |path: PathBuf| serde_json::Value::from(path.to_string_lossy().into_owned()).to_string();
    format!(
        "[daemon]\nsocket = {}\ncontrol_socket = {}\nstate_dir = {}\n\n[origin]\npath = {}\n\n[log]\nlevel = \"warn\"\n",
        quoted(folder.join("kasmina.sock")),
        quoted(folder.join("control.sock")),
        quoted(folder.join("state")),
        quoted(fs::canonicalize(kernels).unwrap_or_else(|_| kernels.to_owned())),
    )
}
