//! `kasmina quickstart`: the main job on real data, from an empty directory to a table.
//!
//! It starts a `kasminad` of its own on a temporary directory and a trainer in a process of its own, as a
//! user would. The trainer learns handwritten digits with a small convolutional host, then grafts two kernels
//! and trains them with it.

mod adam;
mod daemon;
mod digits;
mod loss;
mod network;
mod trainer;

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use super::{CliError, Exit};
use daemon::OwnDaemon;

pub use trainer::{TrainerOptions, train};

/// How to run the quickstart.
#[derive(Clone, Debug)]
pub struct QuickstartOptions {
    /// The folder with `kernels`, `digits` and `data`; found beside the sources where it is not given.
    pub examples: Option<PathBuf>,
    /// Passes over the training set.
    pub epochs: u32,
    /// Decides the order of the samples.
    pub seed: u64,
}

/// Runs daemon and trainer: 0 if grafting raised the accuracy, 1 if not.
///
/// # Errors
/// [`CliError`] when the daemon or the trainer cannot be started, or when either fails.
pub fn quickstart(options: &QuickstartOptions) -> Result<Exit, CliError> {
    let examples = find_examples(options.examples.as_deref())?;
    let folder = tempfile::Builder::new()
        .prefix("kasmina-")
        .tempdir()
        .map_err(|source| CliError::File { path: std::env::temp_dir(), source })?;
    let daemon = OwnDaemon::start(folder.path(), &examples.join("kernels"))?;
    println!("kasminad runs on {}", folder.path().display());

    let program = std::env::current_exe().map_err(CliError::file(Path::new("kasmina")))?;
    let trainer = Command::new(&program)
        .arg("quickstart-trainer")
        .arg("--socket")
        .arg(daemon.socket())
        .arg("--control-socket")
        .arg(daemon.control_socket())
        .arg("--examples")
        .arg(&examples)
        .args(["--epochs", &options.epochs.to_string(), "--seed", &options.seed.to_string()])
        .status()
        .map_err(CliError::file(&program))?;
    daemon.stop()?;
    println!("kasminad has left in order");
    match trainer.code() {
        Some(0) => Ok(Exit::Ok),
        Some(1) => Ok(Exit::No),
        _ => Err(CliError::usage(format!("the trainer failed ({trainer}), see what it says above"))),
    }
}

/// The folder of examples: the one given, the one beside the sources this was built from, or `./examples`.
fn find_examples(given: Option<&Path>) -> Result<PathBuf, CliError> {
    let built_from = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let candidates = match given {
        Some(path) => vec![path.to_owned()],
        None => vec![PathBuf::from("examples"), built_from],
    };
    let whole = |path: &&PathBuf| ["kernels", "digits", "data"].iter().all(|part| path.join(part).is_dir());
    candidates.iter().find(whole).cloned().ok_or_else(|| {
        let tried: Vec<_> = candidates.iter().map(|path| path.display().to_string()).collect();
        let tried = tried.join(", ");
        CliError::usage(format!(
            "no folder with kernels, digits and data at {tried}: name one with --examples"
        ))
    })
}
