//! Blobs that come wrong: each fault made on the socket.

use std::time::Duration;

use super::{
    Blob, Origin, OriginError, UrzaOptions, UrzaOrigin,
    contract::id,
    servers::{End, Reply, Scripted, hasty, options, origin},
};
use crate::{
    digest::Digest,
    fault::{ErrorClass, Fault},
    validation::Metadata,
};

const BYTES: &[u8] = b"0123456789abcdef";

/// Reads the blob that `server` serves under `path`.
async fn read(urza: &UrzaOrigin, server: &Scripted) -> Result<Blob, OriginError> {
    let metadata = Metadata {
        kernel_binary_ref: Some(format!("http://{}/blob", server.address)),
        checksum: Some(Digest::of(BYTES)),
        ..Metadata::bare(id("k"))
    };
    urza.artifact(&metadata).await
}

async fn outcome(
    script: impl Fn(usize, &str) -> Reply + Send + Sync + 'static,
) -> (Result<Blob, OriginError>, Scripted) {
    let server = Scripted::start(script).await;
    let result = read(&origin(hasty(vec![server.api()])), &server).await;
    (result, server)
}

#[tokio::test]
async fn a_download_goes_on_where_the_connection_broke() {
    for end in [End::Close, End::Reset, End::Hang] {
        let (result, server) = outcome(move |n, _| match n {
            0 => Reply::raw("HTTP/1.1 200 OK\r\ncontent-length: 16\r\netag: \"v1\"\r\n\r\n", &BYTES[..10], end),
            _ => {
                let head = "HTTP/1.1 206 Partial\r\ncontent-length: 6\r\netag: \"v1\"\r\ncontent-range: bytes 10-15/16\r\n\r\n";
                Reply::raw(head, &BYTES[10..], End::Close)
            }
        })
        .await;
        let requests = server.requests();
        // A reset may overtake the bytes before it; then there is nothing to go on from.
        if end != End::Reset {
            assert_eq!(&result.unwrap().bytes[..], BYTES, "{end:?}");
            assert!(requests[1].contains("range: bytes=10-") && requests[1].contains("if-range: \"v1\""));
        }
        assert!(requests.len() >= 2, "{end:?}");
    }
}

#[tokio::test]
async fn a_download_starts_again_where_versions_cannot_be_told_apart() {
    let (result, server) = outcome(|n, _| match n {
        0 => Reply::raw("HTTP/1.1 200 OK\r\ncontent-length: 16\r\n\r\n", b"another ve", End::Close),
        _ => Reply::ok("200 OK", "", BYTES),
    })
    .await;
    assert_eq!(&result.unwrap().bytes[..], BYTES);
    assert!(!server.requests()[1].contains("range:"));
}

#[tokio::test]
async fn another_version_in_the_middle_is_not_put_together() {
    let (result, _) = outcome(|n, _| match n {
        0 => Reply::raw(
            "HTTP/1.1 200 OK\r\ncontent-length: 16\r\netag: \"v1\"\r\n\r\n",
            b"another ve",
            End::Close,
        ),
        1 => {
            let headers = "etag: \"v2\"\r\ncontent-range: bytes 10-15/16\r\n";
            Reply::ok("206 Partial", headers, &BYTES[10..])
        }
        _ => Reply::ok("200 OK", "etag: \"v2\"\r\n", BYTES),
    })
    .await;
    assert_eq!(&result.unwrap().bytes[..], BYTES);
}

#[tokio::test]
async fn wrong_bytes_are_told_by_their_digest() {
    let (result, server) = outcome(|_, _| Reply::ok("200 OK", "", b"0123456789abcdeX")).await;
    let error = result.unwrap_err();
    assert_eq!((error.class(), server.requests().len()), (ErrorClass::Corrupt, 1), "{error}");
}

#[tokio::test]
async fn too_much_is_refused_before_and_while_it_comes() {
    let (result, _) = outcome(|_, _| {
        Reply::raw("HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n", b"x", End::Flood)
    })
    .await;
    assert!(matches!(result, Err(OriginError::TooLarge { .. })), "{result:?}");
    // Without a length the body ends with the connection, which does not end.
    let (result, _) = outcome(|_, _| Reply::raw("HTTP/1.1 200 OK\r\n\r\n", b"x", End::Flood)).await;
    assert!(matches!(result, Err(OriginError::TooLarge { .. })), "{result:?}");
}

#[tokio::test]
async fn what_stalls_drips_or_never_ends_its_headers_is_given_up() {
    let (result, server) = outcome(|_, _| Reply(Vec::new(), End::Hang)).await;
    let error = result.unwrap_err();
    assert!(error.to_string().contains("no byte came"), "{error}");
    assert_eq!((error.class(), server.requests().len()), (ErrorClass::Unavailable, 3));

    let server = Scripted::start(|_, _| {
        Reply::raw("HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n", b"x", End::Drip)
    })
    .await;
    let blob_timeout = Duration::from_millis(100);
    let urza = origin(UrzaOptions { blob_timeout, ..options(vec![server.api()]) });
    let error = read(&urza, &server).await.unwrap_err();
    assert!(matches!(error, OriginError::TimedOut { .. }), "{error}");
    assert!(error.to_string().contains("raise origin.blob.timeout"), "{error}");
    assert_eq!(urza.breakers().last().unwrap().failures, 1);

    let (result, _) = outcome(|_, _| Reply::raw("HTTP/1.1 200 OK\r\nx: ", b"x", End::Flood)).await;
    assert_eq!(result.unwrap_err().class(), ErrorClass::Unavailable);
    let many = "x: y\r\n".repeat(1000);
    let (result, _) = outcome(move |_, _| Reply::ok("200 OK", &many, BYTES)).await;
    assert_eq!(result.unwrap_err().class(), ErrorClass::Unavailable);
}

#[tokio::test]
async fn compression_that_nobody_asked_for_is_refused() {
    let (result, _) = outcome(|_, _| Reply::ok("200 OK", "content-encoding: gzip\r\n", BYTES)).await;
    assert!(result.unwrap_err().to_string().contains("compression"));
}

#[tokio::test]
async fn a_redirect_is_held_to_the_lists_too() {
    for (location, says) in [
        ("http://169.254.169.254/latest/meta-data", "origin.blob.allowed_hosts"),
        ("http://localhost:9/x", "origin.blob.allowed_hosts"),
        ("file:///etc/passwd", "scheme file"),
        ("/again", "more than 3 times"),
    ] {
        let header = format!("location: {location}\r\n");
        let (result, server) = outcome(move |_, _| Reply::ok("302 Found", &header, b"")).await;
        let error = result.unwrap_err();
        assert!(error.to_string().contains(says), "{location}: {error}");
        assert_eq!(error.class(), ErrorClass::Invalid);
        assert_eq!(server.requests().len(), if location == "/again" { 4 } else { 1 });
    }
    let server =
        Scripted::start(|_, _| Reply::ok("302 Found", "location: http://169.254.169.254/\r\n", b"")).await;
    let allowed_hosts = vec!["169.254.169.254".to_owned()];
    let listed = UrzaOptions { allowed_hosts, allow_private_addresses: true, ..options(vec![server.api()]) };
    let error = read(&origin(listed), &server).await.unwrap_err();
    assert!(error.to_string().contains("metadata"), "not even where it is listed: {error}");
    let (result, _) = outcome(|_, head| match head.contains("/moved") {
        true => Reply::ok("200 OK", "", BYTES),
        false => Reply::ok("307 Moved", "location: /moved\r\n", b""),
    })
    .await;
    assert_eq!(&result.unwrap().bytes[..], BYTES);
}

#[tokio::test]
async fn a_store_that_fails_is_left_alone_and_others_are_not() {
    let failing = Scripted::start(|_, _| Reply::ok("500 Oops", "", b"")).await;
    let good = Scripted::start(|_, _| Reply::ok("200 OK", "", BYTES)).await;
    let urza = origin(options(vec![failing.api(), good.api()]));
    for _ in 0..5 {
        assert_eq!(read(&urza, &failing).await.unwrap_err().code(), "origin.unavailable");
    }
    assert_eq!(failing.requests().len(), 15);
    let refused = read(&urza, &failing).await.unwrap_err();
    assert_eq!((refused.code(), failing.requests().len()), ("origin.breaker_open", 15));
    assert_eq!(&read(&urza, &good).await.unwrap().bytes[..], BYTES);
}
