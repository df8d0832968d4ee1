//! `kasmina validate`, `inspect`, `keygen` and `sign` as a user runs them, on golden archives.

#![expect(clippy::unwrap_used, reason = "what fails in a test's helper fails the test")]

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/golden").join(name)
}

/// The exit code and what was printed, to either stream.
fn run(arguments: &[&dyn AsRef<OsStr>]) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_kasmina"))
        .args(arguments.iter().map(|argument| argument.as_ref()))
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
    (output.status.code().unwrap(), text)
}

fn verdict(file: &Path, more: &[&dyn AsRef<OsStr>]) -> (i32, Value) {
    let mut arguments: Vec<&dyn AsRef<OsStr>> = vec![&"validate", &file, &"--json"];
    arguments.extend(more);
    let (code, text) = run(&arguments);
    (code, serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}")))
}

fn rule<'a>(verdict: &'a Value, name: &str) -> Option<&'a Value> {
    verdict["rules"].as_array().unwrap().iter().find(|rule| rule["name"] == name)
}

#[test]
fn a_verdict_says_what_the_kernel_is() {
    let (code, verdict) = verdict(&golden("bottleneck.train.pt2"), &[]);
    assert_eq!((code, &verdict["accepted"]), (0, &json!(true)));
    assert_eq!(verdict["format"], "pt2");
    assert_eq!(verdict["parameters"], 240);
    assert_eq!((&verdict["input_shape"], &verdict["output_shape"]), (&json!([8, 6, 6]), &json!([8, 6, 6])));
    let conv = json!({"path": "reduce.0", "class": "torch.nn.modules.conv.Conv2d"});
    assert!(verdict["modules"].as_array().unwrap().contains(&conv));
    assert!(verdict["ops"].as_array().unwrap().contains(&json!("aten.batch_norm")));
    for pass in ["forward", "backward"] {
        assert!(verdict[pass]["flops"].as_u64().unwrap() > 10_000, "{pass}");
        assert!(verdict[pass]["peak_bytes"].as_u64().unwrap() > 1000, "{pass}");
    }
    assert_eq!(verdict["trial"]["input_shape"], json!([2, 8, 6, 6]));
    assert!(verdict["trial"]["backward_us"].is_u64());
    for name in ["ops.whitelist", "shapes.declared", "flops.limit", "trial.finite", "trial.deterministic"] {
        assert_eq!(rule(&verdict, name).unwrap()["passed"], true, "{name}");
    }
}

#[test]
fn every_limit_of_the_configuration_is_a_rule_with_a_name() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("kasmina.toml");
    for (key, name) in [
        ("max_parameters = 239", "parameters.limit"),
        ("allowed_modules = [\"torch.nn.\"]", "modules.whitelist"),
        ("max_flops = 50000", "flops.limit"),
        ("max_archive_entries = 3", "archive.limits"),
        ("max_trial_flops = 1000", "trial.runs"),
    ] {
        std::fs::write(&config, format!("[validator]\n{key}\n")).unwrap();
        let (code, verdict) = verdict(&golden("bottleneck.train.pt2"), &[&"--config", &config]);
        assert_eq!(code, 1, "{key}");
        let failed: Vec<_> =
            verdict["rules"].as_array().unwrap().iter().filter(|rule| rule["passed"] == false).collect();
        assert_eq!(failed.iter().map(|rule| &rule["name"]).collect::<Vec<_>>(), [name], "{key}: {failed:?}");
    }
    std::fs::write(&config, "[validator]\ntrial = false\n").unwrap();
    let (code, untried) = verdict(&golden("bottleneck.train.pt2"), &[&"--config", &config]);
    assert_eq!((code, &untried["trial"]), (0, &Value::Null));
    std::fs::write(&config, "[validator]\nrequire_signature = true\n").unwrap();
    let (code, text) = run(&[&"validate", &golden("conv2d.eval.pt2"), &"--config", &config]);
    assert!(code == 2 && text.contains("validator.trusted_keys is empty"), "{text}");
}

#[test]
fn an_archive_that_does_not_say_its_shape_is_tried_with_the_one_given() {
    let file = golden("conv_bn_relu.train.pt");
    let (code, silent) = verdict(&file, &[]);
    assert_eq!((code, &silent["input_shape"], &silent["trial"]), (0, &Value::Null, &Value::Null));
    let (_, other) = verdict(&golden("conv_bn_relu.train.pt2"), &[]);
    let sizes: Vec<String> =
        other["input_shape"].as_array().unwrap().iter().map(ToString::to_string).collect();
    let (code, told) = verdict(&file, &[&"--input-shape", &sizes.join(",")]);
    assert_eq!((code, &told["output_shape"]), (0, &other["output_shape"]));
    assert!(told["trial"].is_object());
    let (code, wrong) = verdict(&file, &[&"--input-shape", &"1,2"]);
    assert_eq!((code, &rule(&wrong, "shapes.declared").unwrap()["passed"]), (1, &json!(false)));

    let folder = tempfile::tempdir().unwrap();
    let entry = folder.path().join("entry.json");
    let about = json!({"id": "k", "status": "validated", "metadata": {
        "input_shape": other["input_shape"], "output_shape": [1, 1, 1]}});
    std::fs::write(&entry, about.to_string()).unwrap();
    let (code, declared) = verdict(&file, &[&"--entry", &entry]);
    let shapes = rule(&declared, "shapes.declared").unwrap();
    assert!(code == 1 && shapes["detail"].as_str().unwrap().contains("[1, 1, 1] is declared"), "{shapes}");
}

#[test]
fn a_kernel_is_held_to_its_signature() {
    let folder = tempfile::tempdir().unwrap();
    let (key, file) = (folder.path().join("key.pem"), folder.path().join("k.pt2"));
    let bytes = std::fs::read(golden("conv2d.eval.pt2")).unwrap();
    std::fs::write(&file, &bytes).unwrap();
    let (code, text) = run(&[&"keygen", &"--out", &key]);
    assert_eq!(code, 0, "{text}");
    let line = text.lines().find(|line| line.starts_with("trusted_keys = ")).unwrap();
    let config = folder.path().join("kasmina.toml");
    std::fs::write(&config, format!("[validator]\nrequire_signature = true\n{line}\n")).unwrap();
    let (code, text) = run(&[&"keygen", &"--out", &key]);
    assert!(code == 2 && text.contains("there already"), "a key is not written over: {text}");

    let judge = || {
        let (code, verdict) = verdict(&file, &[&"--config", &config]);
        let rule = rule(&verdict, "signature.trusted").unwrap();
        (code, rule["detail"].as_str().unwrap().to_owned(), verdict["format"].clone())
    };
    let (code, detail, format) = judge();
    assert!(code == 1 && detail.contains("not signed"), "{detail}");
    assert_eq!(format, Value::Null, "an unsigned artifact is not even read");
    let (code, text) = run(&[&"sign", &file, &"--key", &key]);
    assert_eq!(code, 0, "{text}");
    let (code, detail, _) = judge();
    assert!(code == 0 && detail.starts_with("signed by ed25519:"), "{detail}");
    // One bit of a weight is not what was signed.
    let mut other = bytes;
    let middle = other.len() / 2;
    other[middle] ^= 1;
    std::fs::write(&file, &other).unwrap();
    let (code, detail, _) = judge();
    assert!(code == 1 && detail.contains("changed after they were signed"), "{detail}");
    std::fs::write(folder.path().join("k.pt2.sig"), "no signature").unwrap();
    let (code, detail, _) = judge();
    assert!(code == 1 && detail.contains("128 hexadecimal digits"), "{detail}");
    let (code, text) = run(&[&"sign", &file, &"--key", &config]);
    assert!(code == 2 && text.contains("no Ed25519 private key"), "{text}");
}

#[test]
fn inspect_shows_modules_program_and_costs() {
    let (code, text) =
        run(&[&"inspect", &golden("bottleneck.train.pt2"), &"--mode", &"train", &"--backward"]);
    assert_eq!(code, 0, "{text}");
    for part in [
        "golden_modules.Bottleneck",
        "parameter float32[4, 4, 3, 3]",
        "buffer int64[]",
        "program in training mode, input float32[1, 8, 6, 6]",
        "conv2d(input_0, reduce.0.weight)",
        "reduce.1.running_mean = ",
        "\nbackward\n",
        "grad reduce.0.weight = ",
        "kFLOP",
    ] {
        assert!(text.contains(part), "{part:?} is missing in {text}");
    }
    let (code, text) = run(&[&"inspect", &golden("conv_bn_relu.train.pt")]);
    assert!(code == 0 && text.contains("give --input-shape"), "{text}");
    let folder = tempfile::tempdir().unwrap();
    let garbage = folder.path().join("garbage.pt2");
    std::fs::write(&garbage, b"no archive").unwrap();
    let (code, text) = run(&[&"inspect", &garbage]);
    assert!(code == 2 && text.contains("archive.readable"), "{text}");
}
