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
    for no_signature in [&b"no signature"[..], b"\xff\xfe\x00", &[b'0'; 10_000]] {
        std::fs::write(folder.path().join("k.pt2.sig"), no_signature).unwrap();
        let (code, detail, _) = judge();
        assert!(code == 1 && detail.contains("128 hexadecimal digits"), "{detail}");
    }
    let (code, text) = run(&[&"sign", &file, &"--key", &config]);
    assert!(code == 2 && text.contains("no Ed25519 private key"), "{text}");
}

#[test]
fn an_entry_is_judged_as_an_origin_would() {
    let folder = tempfile::tempdir().unwrap();
    let (entry, file) = (folder.path().join("entry.json"), golden("conv2d.eval.pt2"));
    let config = folder.path().join("kasmina.toml");
    std::fs::write(&config, "[origin]\naccept_testing = true\n").unwrap();
    let digest = verdict(&file, &[]).1["digest"].as_str().unwrap().to_owned();
    let other = digest.replace(['0', '1'], "2");
    let judge = |status: &str, checksum: &str, more: &[&dyn AsRef<OsStr>]| {
        let about = json!({"id": "k", "status": status, "metadata": {"checksum": checksum}});
        std::fs::write(&entry, about.to_string()).unwrap();
        let mut arguments: Vec<&dyn AsRef<OsStr>> = vec![&"--entry", &entry];
        arguments.extend(more);
        let (code, verdict) = verdict(&file, &arguments);
        assert_eq!(verdict["accepted"], code == 0);
        let failed = verdict["rules"].as_array().unwrap().iter().find(|rule| rule["passed"] == false);
        (code, failed.map(|rule| rule["name"].as_str().unwrap().to_owned()))
    };
    assert_eq!(judge("validated", &digest, &[]), (0, None));
    assert_eq!(judge("invalid", &digest, &[]), (1, Some("catalogue.status".into())));
    assert_eq!(judge("testing", &digest, &[]), (1, Some("catalogue.status".into())));
    assert_eq!(judge("testing", &digest, &[&"--config", &config]), (0, None));
    assert_eq!(judge("deployed", &other, &[]), (1, Some("catalogue.checksum".into())));
    std::fs::write(&entry, vec![b' '; (1 << 20) + 1]).unwrap();
    let (code, text) = run(&[&"validate", &file, &"--entry", &entry]);
    assert!(code == 2 && text.contains("at most 1048576 bytes"), "{text}");
}

#[test]
fn the_entrys_signature_goes_before_the_file_beside() {
    let folder = tempfile::tempdir().unwrap();
    let [key, file, entry, config] =
        ["key", "k.pt2", "entry.json", "kasmina.toml"].map(|name| folder.path().join(name));
    std::fs::copy(golden("conv2d.eval.pt2"), &file).unwrap();
    let (_, text) = run(&[&"keygen", &"--out", &key]);
    let line = text.lines().find(|line| line.starts_with("trusted_keys = ")).unwrap();
    std::fs::write(&config, format!("[validator]\nrequire_signature = true\n{line}\n")).unwrap();
    run(&[&"sign", &file, &"--key", &key]);
    let beside = folder.path().join("k.pt2.sig");
    let good = std::fs::read_to_string(&beside).unwrap();
    for (in_entry, beside_it, expected) in [(good.trim(), "00", 0), ("00", good.trim(), 1)] {
        let about = json!({"id": "k", "status": "validated", "metadata": {"signature": in_entry}});
        std::fs::write(&entry, about.to_string()).unwrap();
        std::fs::write(&beside, beside_it).unwrap();
        assert_eq!(verdict(&file, &[&"--entry", &entry, &"--config", &config]).0, expected);
    }
}

#[test]
fn a_file_that_is_too_large_is_not_blamed_for_anything_else() {
    let folder = tempfile::tempdir().unwrap();
    let [config, file] = ["kasmina.toml", "k.pt2"].map(|name| folder.path().join(name));
    let key = "ed25519:d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
    let settings = format!(
        "max_artifact_bytes = \"1MiB\"\nmax_entry_bytes = \"1MiB\"\ntrusted_keys = [{key:?}]\nrequire_signature = true"
    );
    std::fs::write(&config, format!("[validator]\n{settings}\n")).unwrap();
    std::fs::write(&file, vec![7; (1 << 20) + 3000]).unwrap();
    let (code, verdict) = verdict(&file, &[&"--config", &config]);
    let rules = verdict["rules"].as_array().unwrap();
    assert_eq!((code, rules.len(), &rules[0]["name"]), (1, 1, &json!("archive.limits")));
    assert!(rules[0]["detail"].as_str().unwrap().contains("max_artifact_bytes"), "{rules:?}");
    assert_eq!((&verdict["digest"], &verdict["size_bytes"]), (&Value::Null, &json!((1 << 20) + 3000)));
    let (code, text) = run(&[&"inspect", &file, &"--config", &config]);
    assert!(code == 1 && text.contains("not known"), "{text}");
}

#[test]
fn keys_are_made_whole_and_shown_again() {
    let folder = tempfile::tempdir().unwrap();
    let [key, public, file] = ["key.pem", "key.pem.pub", "k.pt2"].map(|name| folder.path().join(name));
    std::fs::write(&public, "something else").unwrap();
    let (code, text) = run(&[&"keygen", &"--out", &key]);
    assert!(code == 2 && text.contains("key.pem.pub: it is there already"), "{text}");
    assert!(!key.exists(), "no half of a pair is left");
    std::fs::remove_file(&public).unwrap();
    let (_, made) = run(&[&"keygen", &"--out", &key]);
    let line = made.lines().find(|line| line.starts_with("trusted_keys = ")).unwrap();
    let pem = std::fs::read(&public).unwrap();
    std::fs::remove_file(&public).unwrap();
    for _ in 0..2 {
        let (code, shown) = run(&[&"keygen", &"--show", &key]);
        assert!(code == 0 && shown.contains(line), "{shown}");
        assert_eq!(std::fs::read(&public).unwrap(), pem);
    }
    let (code, text) = run(&[&"keygen", &"--show", &public]);
    assert!(code == 2 && text.contains("no Ed25519 private key"), "{text}");

    std::fs::copy(golden("conv2d.eval.pt2"), &file).unwrap();
    let missing = folder.path().join("missing\u{1b}[31m.pt2");
    let (code, text) = run(&[&"sign", &missing, &file, &"--key", &key]);
    assert!(code == 2 && folder.path().join("k.pt2.sig").exists(), "{text}");
    assert!(text.contains("missing\\u{1b}[31m.pt2") && !text.contains('\u{1b}'), "{text}");
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
    let config = folder.path().join("kasmina.toml");
    std::fs::write(&config, "[validator]\nmax_trial_flops = 1000\n").unwrap();
    let (code, text) = run(&[&"inspect", &golden("bottleneck.train.pt2"), &"--config", &config]);
    assert!(code == 1 && text.contains("FAIL  trial.runs"), "inspect judges as validate does: {text}");
    let (code, text) = run(&[&"inspect", &garbage]);
    assert!(code == 2 && text.contains("archive.readable"), "{text}");
}
