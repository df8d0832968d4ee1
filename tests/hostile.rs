//! Hostile and broken artifacts, made anew by `tests/data/make_hostile.py`: each is refused by the rule it breaks,
//! with a reason, in bounded time and memory, and none gets anything executed.

#![expect(clippy::unwrap_used, reason = "what fails in a test's helper fails the test")]

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use nix::sys::{
    resource::{Usage, UsageWho, getrusage},
    time::TimeValLike as _,
};
use serde::Deserialize;
use serde_json::Value;

const MOST_CPU: Duration = Duration::from_secs(5);
const MOST_RESIDENT_KIB: i64 = 512 << 10;
/// What the daemon's validating threads have.
const STACK_KIB: u32 = 2048;

#[derive(Deserialize)]
struct Trick {
    file: String,
    /// The rule that refuses it; where several may, none is named.
    rule: Option<String>,
    /// A part of the reason.
    reason: String,
    /// The input's sizes, where the archive does not say them.
    input_shape: Option<String>,
    /// Settings to judge it by.
    config: Option<String>,
}

fn cpu(usage: &Usage) -> Duration {
    let us = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Duration::from_micros(us.unsigned_abs())
}

/// What is wrong with the answer to a trick; nothing if all is right.
fn judge(folder: &Path, trick: &Trick) -> Result<(), String> {
    let mut command = Command::new("sh");
    // The shell sets the stack's size for the program it becomes.
    command.args(["-c", &format!("ulimit -s {STACK_KIB} && exec \"$0\" \"$@\"")]);
    command.arg(env!("CARGO_BIN_EXE_kasmina")).arg("validate").arg(folder.join(&trick.file)).arg("--json");
    command.args(trick.input_shape.iter().flat_map(|sizes| ["--input-shape", sizes]));
    if let Some(config) = &trick.config {
        let path = folder.join("kasmina.toml");
        std::fs::write(&path, config).unwrap();
        command.arg("--config").arg(path);
    }
    let before = cpu(&getrusage(UsageWho::RUSAGE_CHILDREN).unwrap());
    let output = command.stdin(Stdio::null()).output().unwrap();
    let after = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap();
    let (took, resident) = (cpu(&after) - before, after.max_rss());

    let verdict: Value = serde_json::from_slice(&output.stdout).map_err(|error| {
        format!("no verdict ({error}), {}: {}", output.status, String::from_utf8_lossy(&output.stderr))
    })?;
    let failed = verdict["rules"].as_array().and_then(|rules| rules.iter().find(|r| r["passed"] == false));
    let Some(failed) = failed else { return Err(format!("accepted: {}", verdict["rules"])) };
    let (rule, detail) = (failed["name"].as_str().unwrap(), failed["detail"].as_str().unwrap());
    let code = if rule == "archive.readable" { 2 } else { 1 };
    if output.status.code() != Some(code) {
        return Err(format!("{} instead of exit code {code}", output.status));
    }
    if rule == "validation.completed" || trick.rule.as_ref().is_some_and(|expected| expected != rule) {
        return Err(format!("refused by {rule}, {:?} was expected: {detail}", trick.rule));
    }
    if detail.is_empty() || !detail.contains(&trick.reason) {
        return Err(format!("the reason does not speak of {:?}: {detail}", trick.reason));
    }
    if took > MOST_CPU {
        return Err(format!("it took {took:?} of processor time"));
    }
    // The largest of all children so far: the first trick over the limit is the one.
    if resident > MOST_RESIDENT_KIB {
        return Err(format!("{} MiB were resident", resident >> 10));
    }
    Ok(())
}

#[test]
fn every_hostile_artifact_is_refused_for_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let canary = folder.path().join("canary");
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/make_hostile.py");
    let made = Command::new("python3").arg(script).arg(folder.path()).arg(&canary).status().unwrap();
    assert!(made.success(), "the artifacts are made by python3 and its standard library");
    let manifest = std::fs::read(folder.path().join("manifest.json")).unwrap();
    let tricks: Vec<Trick> = serde_json::from_slice(&manifest).unwrap();
    assert!(tricks.len() >= 80, "{} tricks", tricks.len());
    // One child at a time, so that what it took can be told: this file has no other test.
    let wrong: Vec<String> = tricks
        .iter()
        .filter_map(|trick| {
            judge(folder.path(), trick).err().map(|reason| format!("{}: {reason}", trick.file))
        })
        .collect();
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), tricks.len(), wrong.join("\n"));
    assert!(!canary.exists(), "a payload was executed");
}
