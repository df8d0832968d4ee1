//! The directory origin on real folders.

use std::{fs, os::unix::fs::symlink, path::Path};

use serde_json::{Value, json};

use super::{
    DirectoryOptions, DirectoryOrigin, Origin, OriginError,
    contract::{Published, every_origin, fetch, id},
};
use crate::{digest::Digest, fault::Fault};

fn origin(folder: &Path) -> DirectoryOrigin {
    DirectoryOrigin::new(DirectoryOptions { max_artifact_bytes: 1000, ..DirectoryOptions::new(folder) })
}

fn publish(folder: &Path, name: &str, entry: &Value) {
    fs::write(folder.join(format!("{name}.json")), entry.to_string()).unwrap();
}

fn entry(name: &str, status: &str, reference: &str, bytes: &[u8]) -> Value {
    json!({
        "id": name, "blueprint_id": "b", "status": status, "compilation_pipeline": "standard",
        "kernel_binary_ref": reference,
        "validation_report": {
            "input_shape": [3, 8, 8], "output_shape": [3, 8, 8], "checksum": Digest::of(bytes).to_string(),
        },
        "created_at": "2026-11-23T00:00:00", "updated_at": "2026-11-23T00:00:00",
    })
}

#[tokio::test]
async fn the_directory_keeps_the_contract() {
    let (folder, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = folder.path();
    fs::create_dir(path.join("blobs")).unwrap();
    fs::write(path.join("blobs/k.pt"), b"artifact").unwrap();
    fs::write(path.join("large.pt"), [0; 1001]).unwrap();
    fs::write(outside.path().join("secret"), b"artifact").unwrap();
    symlink(outside.path().join("secret"), path.join("out")).unwrap();
    publish(path, "good", &entry("good", "validated", "blobs/k.pt", b"artifact"));
    publish(path, "invalid", &entry("invalid", "invalid", "blobs/k.pt", b"artifact"));
    publish(path, "testing", &entry("testing", "testing", "blobs/k.pt", b"artifact"));
    publish(path, "damaged", &entry("damaged", "deployed", "blobs/k.pt", b"other"));
    publish(path, "large", &entry("large", "deployed", "large.pt", &[0; 1001]));
    fs::write(path.join("malformed.json"), "{\"id\": \"malformed\"").unwrap();
    publish(path, "escaping", &entry("escaping", "validated", "out", b"artifact"));
    let published = Published {
        good: ("good", b"artifact".to_vec()),
        invalid: "invalid",
        testing: "testing",
        damaged: "damaged",
        large: "large",
        malformed: "malformed",
        escaping: "escaping",
        absent: "absent",
    };
    every_origin(&origin(path), &published).await;
    let options = DirectoryOptions { accept_testing: true, ..DirectoryOptions::new(path) };
    assert_eq!(fetch(&DirectoryOrigin::new(options), "testing").await.unwrap(), b"artifact");
}

#[tokio::test]
async fn a_bare_artifact_needs_no_entry() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a.pt"), b"torchscript").unwrap();
    fs::write(folder.path().join("b.pt"), b"torchscript").unwrap();
    fs::write(folder.path().join("b.pt2"), b"exported").unwrap();
    let origin = origin(folder.path());
    assert_eq!(fetch(&origin, "a").await.unwrap(), b"torchscript");
    assert_eq!(fetch(&origin, "b").await.unwrap(), b"exported");
    assert_eq!(origin.metadata(&id("b")).await.unwrap().kernel_binary_ref.as_deref(), Some("b.pt2"));
    let mut without = entry("a", "validated", "", b"torchscript");
    without["kernel_binary_ref"] = Value::Null;
    publish(folder.path(), "a", &without);
    assert_eq!(fetch(&origin, "a").await.unwrap(), b"torchscript");
}

#[tokio::test]
async fn no_reference_leads_out_of_the_folder() {
    let outer = tempfile::tempdir().unwrap();
    let path = outer.path().join("kernels");
    fs::create_dir_all(path.join("inner")).unwrap();
    fs::write(outer.path().join("secret"), b"secret").unwrap();
    fs::write(path.join("inside"), b"inside").unwrap();
    symlink("../secret", path.join("file-link")).unwrap();
    symlink("..", path.join("folder-link")).unwrap();
    symlink("loop", path.join("loop")).unwrap();
    symlink("inside", path.join("inside-link")).unwrap();
    let origin = origin(&path);
    let absolute = outer.path().join("secret").display().to_string();
    let url = format!("file://{absolute}");
    let bad = [
        "../secret",
        "inner/../../secret",
        "file-link",
        "folder-link/secret",
        &absolute,
        &url,
        "s3://bucket/key",
        "",
        ".",
        "inner",
        "gone",
        "inside/under",
        "a\0b",
    ];
    for reference in bad {
        publish(&path, "k", &entry("k", "validated", reference, b"secret"));
        let error = fetch(&origin, "k").await.unwrap_err();
        // Whether there is a file is not told of what lies outside.
        let code = match reference {
            "gone" | "inside/under" => "kernel.not_found",
            _ => "kernel.rejected",
        };
        assert_eq!((error.code(), error.holds_everywhere()), (code, false), "{reference:?}: {error}");
    }
    publish(&path, "k", &entry("k", "validated", "loop", b"secret"));
    assert!(fetch(&origin, "k").await.is_err());
    // What stays inside may be linked and walked.
    for reference in ["inside-link", "inner/../inside", "folder-link/kernels/inside"] {
        publish(&path, "k", &entry("k", "validated", reference, b"inside"));
        assert_eq!(fetch(&origin, "k").await.unwrap(), b"inside", "{reference}");
    }
    // Neither may the entry or the bare artifact itself be a link that leads out.
    symlink("../secret", path.join("linked.pt2")).unwrap();
    assert_eq!(fetch(&origin, "linked").await.unwrap_err().code(), "kernel.rejected");
    fs::write(outer.path().join("entry"), entry("far", "validated", "inside", b"inside").to_string())
        .unwrap();
    symlink("../entry", path.join("far.json")).unwrap();
    assert_eq!(fetch(&origin, "far").await.unwrap_err().code(), "kernel.rejected");
}

#[tokio::test]
async fn a_pipe_does_not_hold_the_daemon() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("k.pt2");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RWXU).unwrap();
    let error = fetch(&origin(folder.path()), "k").await.unwrap_err();
    assert!(error.to_string().contains("not a regular file"), "{error}");
}

#[tokio::test]
async fn an_entry_under_another_name_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    publish(folder.path(), "a", &entry("b", "validated", "k.pt", b""));
    let error = fetch(&origin(folder.path()), "a").await.unwrap_err();
    assert!(matches!(&error, OriginError::OtherKernel { .. }), "{error}");
}

#[tokio::test]
async fn a_missing_folder_is_a_failure_not_an_absence() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("later");
    let origin = origin(&path);
    let error = fetch(&origin, "a").await.unwrap_err();
    assert!(error.class().is_retryable(), "{error}");
    assert!(error.to_string().contains("later"), "{error}");
    fs::create_dir(&path).unwrap();
    assert_eq!(fetch(&origin, "a").await.unwrap_err().code(), "kernel.not_found");
}

#[tokio::test]
async fn a_signature_stands_in_the_entry_or_beside_the_artifact() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::write(path.join("bare.pt2"), b"artifact").unwrap();
    let signature = async |name: &str| origin(path).metadata(&id(name)).await.unwrap().signature;
    assert_eq!(signature("bare").await, None);
    fs::write(path.join("bare.pt2.sig"), "beside\n").unwrap();
    assert_eq!(signature("bare").await.as_deref(), Some("beside"));
    let mut told = entry("told", "validated", "bare.pt2", b"artifact");
    publish(path, "told", &told);
    assert_eq!(signature("told").await.as_deref(), Some("beside"));
    told["metadata"] = json!({"signature": "told"});
    publish(path, "told", &told);
    assert_eq!(signature("told").await.as_deref(), Some("told"));
}
