//! Urza and its blobs behind TLS, by an authority of one's own.

use std::{fs, path::Path};

use serde_json::json;

use super::{
    UrzaOptions,
    contract::fetch,
    servers::{behind_tls, options, origin, stand_in},
};
use crate::{cache::certificates, digest::Digest, fault::Fault};

/// A catalogue of one kernel, and the port of localhost it is at.
async fn catalogue(folder: &Path) -> u16 {
    certificates(folder);
    let port = behind_tls(stand_in(&folder.join("urza")).await, folder).await.port();
    let entry = json!({
        "id": "k", "status": "validated", "kernel_binary_ref": format!("https://localhost:{port}/blobs/k.pt"),
        "validation_report": {"checksum": Digest::of(b"artifact").to_string()},
    });
    fs::create_dir_all(folder.join("urza")).unwrap();
    fs::write(folder.join("urza/k.json"), entry.to_string()).unwrap();
    fs::write(folder.join("urza/k.pt"), b"artifact").unwrap();
    port
}

#[tokio::test]
async fn an_authority_of_ones_own_is_trusted_by_name_only() {
    let folder = tempfile::tempdir().unwrap();
    let port = catalogue(folder.path()).await;
    let ca_file = folder.path().join("ca.pem");
    let with = |host: &str, ca_file: &Path| {
        let endpoints = vec![format!("https://{host}:{port}/api/v1")];
        origin(UrzaOptions { ca_file: ca_file.to_owned(), ..options(endpoints) })
    };
    assert_eq!(fetch(&with("localhost", &ca_file), "k").await.unwrap(), b"artifact");
    for (host, ca_file, problem) in
        [("localhost", Path::new(""), "UnknownIssuer"), ("127.0.0.1", &ca_file, "not valid for name")]
    {
        let error = fetch(&with(host, ca_file), "k").await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains(problem) && text.contains("origin.urza.ca_file"), "{text}");
        assert_eq!(error.code(), "origin.unavailable");
    }
}

#[test]
fn an_authority_that_is_none_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let ca_file = folder.path().join("ca.pem");
    fs::write(&ca_file, "no certificate").unwrap();
    for (path, problem) in [(&ca_file, "no certificates"), (&folder.path().join("none"), "cannot be read")] {
        let options =
            UrzaOptions { ca_file: path.clone(), ..options(vec!["https://localhost/api/v1".to_owned()]) };
        let clock = std::sync::Arc::new(crate::clock::ManualClock::default());
        let error = super::UrzaOrigin::new(options, clock).unwrap_err().to_string();
        assert!(error.contains(problem) && error.contains(path.to_str().unwrap()), "{error}");
    }
}
