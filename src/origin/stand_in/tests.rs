//! The stand-in by HTTP, as any client sees it.

use std::{fs, net::SocketAddr};

use serde_json::{Value, json};

use super::{StandIn, StandInError};
use crate::origin::servers::stand_in;

fn client() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().build().unwrap()
}

async fn get(address: SocketAddr, path: &str) -> (u16, Value) {
    let answer = client().get(format!("http://{address}{path}")).send().await.unwrap();
    let status = answer.status().as_u16();
    (status, serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap_or_default())
}

async fn post(address: SocketAddr, path: &str, body: &Value) -> u16 {
    let answer = client().post(format!("http://{address}{path}")).json(body).send().await.unwrap();
    answer.status().as_u16()
}

#[tokio::test]
async fn what_is_posted_once_can_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let address = stand_in(folder.path()).await;
    let kernel = json!({"id": "k", "blueprint_id": "b", "status": "validated",
        "compilation_pipeline": "p", "kernel_binary_ref": "k.pt", "validation_report": null});
    assert_eq!(get(address, "/api/v1/kernels/k").await.0, 404);
    assert_eq!(post(address, "/internal/v1/kernels", &kernel).await, 404, "the blueprint is not there");
    let blueprint = json!({"id": "b", "architecture_ir": {}, "metadata": {}});
    assert_eq!(post(address, "/api/v1/blueprints", &blueprint).await, 201);
    assert_eq!(post(address, "/api/v1/blueprints", &blueprint).await, 409);
    assert_eq!(post(address, "/internal/v1/kernels", &kernel).await, 201);
    assert_eq!(post(address, "/internal/v1/kernels", &kernel).await, 409);
    let (status, found) = get(address, "/api/v1/kernels/k").await;
    assert_eq!((status, &found["blueprint_id"]), (200, &json!("b")));
    assert_eq!(found["kernel_binary_ref"], json!(format!("http://{address}/blobs/k.pt")));
    fs::write(folder.path().join("bare.pt2"), b"x").unwrap();
    let (_, list) = get(address, "/api/v1/kernels").await;
    let ids: Vec<_> = list.as_array().unwrap().iter().map(|entry| entry["id"].clone()).collect();
    assert_eq!(ids, [json!("bare"), json!("k")]);
}

#[tokio::test]
async fn nonsense_is_refused_and_never_an_error_of_the_server() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("k.pt"), b"artifact").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", folder.path().join("out")).unwrap();
    let address = stand_in(folder.path()).await;
    for path in [
        "/api/v1/kernels/..%2f..%2fetc",
        "/api/v1/kernels/none",
        "/api/v1/blueprints/none",
        "/blobs/none",
        "/blobs/out",
        "/blobs/..%2f..%2fetc%2fpasswd",
        "/blobs/%2fetc%2fpasswd",
        "/blobs/a%00b",
        "/elsewhere",
    ] {
        assert_eq!(get(address, path).await.0, 404, "{path}");
    }
    for (body, status) in
        [(json!({"id": "../x"}), 422), (json!([]), 422), (json!({"id": "x", "status": 1}), 422)]
    {
        assert_eq!(post(address, "/internal/v1/kernels", &body).await, status, "{body}");
    }
    let large = json!({"id": "x", "metadata": "x".repeat(2 << 20)});
    assert_eq!(post(address, "/api/v1/blueprints", &large).await, 413);
    let text = client().post(format!("http://{address}/api/v1/blueprints")).body("{}").send().await.unwrap();
    assert_eq!(text.status().as_u16(), 415, "a form of a web page is no JSON");
}

#[tokio::test]
async fn blobs_come_in_ranges_of_one_version() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("k.pt"), b"0123456789").unwrap();
    let url = format!("http://{}/blobs/k.pt", stand_in(folder.path()).await);
    let whole = client().get(&url).send().await.unwrap();
    let tag = whole.headers()["etag"].clone();
    assert_eq!(&whole.bytes().await.unwrap()[..], b"0123456789");
    let ask =
        |if_range: &str| client().get(&url).header("range", "bytes=4-6").header("if-range", if_range).send();
    let part = ask(tag.to_str().unwrap()).await.unwrap();
    assert_eq!(
        (part.status().as_u16(), part.headers()["content-range"].as_bytes()),
        (206, &b"bytes 4-6/10"[..])
    );
    assert_eq!(&part.bytes().await.unwrap()[..], b"456");
    assert_eq!(ask("\"old\"").await.unwrap().status().as_u16(), 200);
    let beyond = client().get(&url).header("range", "bytes=10-").send().await.unwrap();
    assert_eq!(beyond.status().as_u16(), 416);
    assert_eq!(client().head(&url).send().await.unwrap().headers()["content-length"], "10");
}

#[tokio::test]
async fn other_machines_are_let_in_only_on_purpose() {
    let folder = tempfile::tempdir().unwrap();
    let everywhere: SocketAddr = ([0, 0, 0, 0], 0).into();
    let refused = StandIn::bind(folder.path(), everywhere, false).await.unwrap_err();
    assert!(matches!(refused, StandInError::Remote { .. }) && refused.to_string().contains("--allow-remote"));
    assert!(StandIn::bind(folder.path(), everywhere, true).await.is_ok());
}
