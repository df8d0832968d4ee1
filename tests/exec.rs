//! `kasmina exec` and `kasmina validate` as a user runs them, on golden archives.

#![expect(clippy::unwrap_used, reason = "what fails in a test's helper fails the test")]

use std::{path::PathBuf, process::Command};

use safetensors::{Dtype, SafeTensors};

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/golden").join(name)
}

fn kasmina() -> Command {
    Command::new(env!("CARGO_BIN_EXE_kasmina"))
}

fn values(file: &SafeTensors<'_>, name: &str) -> Vec<f64> {
    let view = file.tensor(name).unwrap_or_else(|_| panic!("no tensor {name}"));
    match view.dtype() {
        Dtype::F32 => {
            let chunks = view.data().chunks_exact(4);
            chunks.map(|b| f32::from_le_bytes(b.try_into().unwrap()).into()).collect()
        }
        Dtype::I64 => {
            let chunks = view.data().chunks_exact(8);
            chunks.map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f64).collect()
        }
        other => panic!("{name} is of {other:?}"),
    }
}

#[test]
fn exec_writes_what_pytorch_computes() {
    let folder = tempfile::tempdir().unwrap();
    for (case, mode) in [("conv_bn_relu", "train"), ("conv_bn_relu", "eval"), ("squeeze_excite", "eval")] {
        let truth = std::fs::read(golden(&format!("{case}.{mode}.safetensors"))).unwrap();
        let truth = SafeTensors::deserialize(&truth).unwrap();
        // The golden's grad_output, under the name that exec reads.
        let gradient = folder.path().join("gradient.safetensors");
        let view = truth.tensor("grad_output").unwrap();
        std::fs::write(&gradient, safetensors::serialize([("output", view)], None).unwrap()).unwrap();
        for ending in ["pt", "pt2"] {
            let out = folder.path().join("out.safetensors");
            let status = kasmina()
                .arg("exec")
                .arg(golden(&format!("{case}.{mode}.{ending}")))
                .arg("--input")
                .arg(golden(&format!("{case}.{mode}.safetensors")))
                .arg("--grad-output")
                .arg(&gradient)
                .args(["--mode", mode, "--out"])
                .arg(&out)
                .status()
                .unwrap();
            assert!(status.success(), "{case}.{mode}.{ending}");
            let ours = std::fs::read(&out).unwrap();
            let ours = SafeTensors::deserialize(&ours).unwrap();
            let names = truth.names().into_iter().filter(|name| !["input", "grad_output"].contains(name));
            let mut compared = 0;
            for name in names {
                let (a, b) = (values(&ours, name), values(&truth, name));
                let norm = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
                let difference: Vec<f64> = a.iter().zip(&b).map(|(a, b)| a - b).collect();
                assert_eq!(a.len(), b.len());
                assert!(norm(&difference) <= 1e-4 * norm(&b).max(1e-6), "{case}.{mode}.{ending}: {name}");
                compared += 1;
            }
            assert!(compared >= 3, "{case}.{mode}.{ending} compares {compared} tensors");
        }
    }
}

#[test]
fn errors_name_the_file_and_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let garbage = folder.path().join("garbage.pt2");
    std::fs::write(&garbage, b"no archive").unwrap();
    let run = |arguments: &[&std::ffi::OsStr]| {
        let output = kasmina().args(arguments).output().unwrap();
        let text =
            String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        (output.status.code().unwrap(), text)
    };
    let (code, text) = run(&["validate".as_ref(), garbage.as_os_str()]);
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("rejected") && text.contains("archive.readable"), "{text}");
    let (code, text) =
        run(&["validate".as_ref(), golden("conv_bn_relu.train.pt2").as_os_str(), "--json".as_ref()]);
    let verdict: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &verdict["accepted"]), (0, &serde_json::Value::Bool(true)), "{text}");
    let nowhere = folder.path().join("control.sock");
    let (code, text) = run(&["status".as_ref(), "--control-socket".as_ref(), nowhere.as_os_str()]);
    assert!(code == 3 && text.contains("is kasminad running"), "{code} {text}");
    let input = golden("conv_bn_relu.train.safetensors");
    let out = folder.path().join("out.safetensors");
    let arguments = [
        "exec".as_ref(),
        garbage.as_os_str(),
        "--input".as_ref(),
        input.as_os_str(),
        "--out".as_ref(),
        out.as_os_str(),
    ];
    let (code, text) = run(&arguments);
    assert!(code == 2 && text.contains("archive"), "{code} {text}");
}
