//! Instructions of reference passes, as valgrind counts them: the same on every machine for one build, and within five in a
//! hundred of what was recorded.
//!
//! Each profile has a record. That of `cargo test` has loops that are not unrolled and registers that are not used: it takes
//! twenty to forty times as many as what is shipped, and what is better there may be worse here. It holds what a pass does;
//! how well a loop was compiled, `cargo test --release --test costs` says.

use std::{collections::BTreeMap, fs, io::ErrorKind, process::Command};

use serde::{Deserialize, Serialize};

use crate::{layer::Layer, subject::Subject};

/// Has the program run the passes and nothing else.
pub(crate) const ARGUMENT: &str = "--reference-passes";

/// Set, it has the figures recorded anew.
const WRITE: &str = "KASMINA_WRITE_COSTS";
const ANEW: &str = "KASMINA_WRITE_COSTS=1 cargo test --test costs, and once more with --release";

const RECORD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/costs/instructions.json");

/// By how many in a hundred a figure may differ from the recorded one.
const TOLERANCE_PERCENT: f64 = 5.0;

/// Name, kernel, and whether there is a backward.
const PASSES: [(&str, Subject, bool); 4] = [
    ("convolution, forward", Subject::Convolution, false),
    ("convolution, forward and backward", Subject::Convolution, true),
    ("perceptron, forward", Subject::Perceptron, false),
    ("perceptron, forward and backward", Subject::Perceptron, true),
];

/// What figures depend on beside the source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Build {
    rustc: String,
    debug_assertions: bool,
    architecture: String,
    /// Vector instructions that valgrind's processor has: AVX2 where this one has it, AVX-512 never.
    vectors: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    build: Build,
    instructions: BTreeMap<String, u64>,
}

impl Record {
    fn is_of_profile(&self, other: &Self) -> bool {
        self.build.debug_assertions == other.build.debug_assertions
    }
}

/// One pass. valgrind counts what happens in here, and begins with the next count where it returns.
#[unsafe(no_mangle)]
#[inline(never)]
fn kasmina_reference_pass(layer: &mut Layer) {
    layer.pass();
}

/// What valgrind runs. The first line says which vector instructions there are.
pub(crate) fn reference_passes() {
    println!("{}", vectors().join(" "));
    for (_, subject, both) in PASSES {
        let mut layer = Layer::new(subject, &[1.0], both);
        // Plans and memory are there from the second pass on.
        layer.pass();
        kasmina_reference_pass(&mut layer);
    }
}

fn vectors() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    let known = [
        ("avx2", std::arch::is_x86_feature_detected!("avx2")),
        ("fma", std::arch::is_x86_feature_detected!("fma")),
        ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
    ];
    #[cfg(not(target_arch = "x86_64"))]
    let known: [(&str, bool); 0] = [];
    known.into_iter().filter(|(_, has)| *has).map(|(name, _)| name).collect()
}

/// Counts the instructions of each pass.
fn count() -> Result<Record, String> {
    let folder = tempfile::tempdir().unwrap();
    let dump = folder.path().join("passes");
    let symbol = "kasmina_reference_pass";
    let run = Command::new("valgrind")
        .arg("--tool=callgrind")
        .arg(format!("--callgrind-out-file={}", dump.display()))
        .args([format!("--toggle-collect={symbol}"), format!("--dump-after={symbol}")])
        .arg(std::env::current_exe().unwrap())
        .arg(ARGUMENT)
        // May ask for other vectors than valgrind's processor has.
        .env_remove("KASMINA_VECTORS")
        .output();
    let output = match run {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err("valgrind is missing: install it, on Debian with: apt-get install valgrind".into());
        }
        other => other.unwrap(),
    };
    if !output.status.success() {
        let says = String::from_utf8_lossy(&output.stderr);
        return Err(format!("the passes under valgrind ended with {}:\n{says}", output.status));
    }
    let said = String::from_utf8_lossy(&output.stdout);
    let instructions = PASSES.iter().zip(1..).map(|((name, ..), nth)| {
        let text = fs::read_to_string(folder.path().join(format!("passes.{nth}"))).unwrap_or_default();
        let total = text.lines().find_map(|line| line.strip_prefix("totals: ")?.trim().parse().ok());
        Ok(((*name).to_owned(), total.ok_or_else(|| format!("valgrind has no figure for: {name}"))?))
    });
    let rustc = Command::new(std::env::var_os("RUSTC").unwrap_or("rustc".into())).arg("--version").output();
    let rustc = rustc.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    let build = Build {
        rustc: rustc.unwrap_or_else(|_| "unknown".into()),
        debug_assertions: cfg!(debug_assertions),
        architecture: std::env::consts::ARCH.into(),
        vectors: said.lines().next().unwrap_or_default().split(' ').map(str::to_owned).collect(),
    };
    Ok(Record { build, instructions: instructions.collect::<Result<_, String>>()? })
}

/// Which passes take more instructions than were recorded, or fewer.
pub(crate) fn check() -> Vec<String> {
    let now = match count() {
        Ok(now) => now,
        Err(failure) => return vec![failure],
    };
    let mut records: Vec<Record> = serde_json::from_str(&fs::read_to_string(RECORD).unwrap()).unwrap();
    if std::env::var_os(WRITE).is_some() {
        records.retain(|record| !record.is_of_profile(&now));
        records.push(now.clone());
        records.sort_by_key(|record| !record.build.debug_assertions);
        fs::write(RECORD, serde_json::to_string_pretty(&records).unwrap() + "\n").unwrap();
    }
    let Some(recorded) = records.iter().find(|record| record.is_of_profile(&now)) else {
        return vec![format!("no instructions are recorded of this profile; to do so: {ANEW}")];
    };
    let is_comparable = recorded.build == now.build;
    let gone = recorded.instructions.keys().filter(|name| !now.instructions.contains_key(*name));
    let mut failures: Vec<String> = gone
        .map(|name| format!("{name}: recorded, and there is no such pass; to leave it out: {ANEW}"))
        .collect();
    for (name, count) in &now.instructions {
        let Some(was) = recorded.instructions.get(name) else {
            failures.push(format!("{name}: {count} instructions, none recorded; to do so: {ANEW}"));
            continue;
        };
        let percent = (*count as f64 / *was as f64 - 1.0) * 100.0;
        println!("{count:9} instructions, {percent:+5.2} % against {was} recorded: {name}");
        if is_comparable && percent.abs() > TOLERANCE_PERCENT {
            failures.push(format!(
                "{name}: {count} instructions, {percent:+.1} % against {was} recorded; where that is meant: {ANEW}"
            ));
        }
    }
    if !is_comparable {
        println!(
            "instructions were NOT compared: recorded with {:?}, this is {:?}; to record anew: {ANEW}",
            recorded.build, now.build
        );
    }
    failures
}
