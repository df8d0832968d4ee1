//! Urza against real servers: the contract over every kind of blob, failover, and publishing.

use std::{fs, path::Path, sync::Arc};

use serde_json::{Value, json};

use super::{
    Destination, Guarded, Origin, Publication, PublishError, S3Options, UrzaOptions,
    contract::{Published, every_origin, fetch, id},
    publish_to_folder, publish_to_urza,
    servers::{End, Reply, Scripted, api, hasty, options, origin, s3, stand_in},
};
use crate::{clock::ManualClock, digest::Digest, fault::Fault, guard::BreakerState, validation::Metadata};

fn entry(name: &str, status: &str, reference: &str, bytes: &[u8]) -> Value {
    json!({
        "id": name, "blueprint_id": "b", "status": status, "compilation_pipeline": "standard",
        "kernel_binary_ref": reference,
        "validation_report": {
            "input_shape": [3, 8, 8], "output_shape": [3, 8, 8], "checksum": Digest::of(bytes).to_string(),
        },
        "created_at": "2026-11-23T00:00:00", "updated_at": "2026-11-23T00:00:00", "unknown": {"field": 1},
    })
}

/// Fills a folder for the stand-in; `place` makes a reference of a blob's name.
fn fill(folder: &Path, place: impl Fn(&str) -> String, good: &[u8], escaping: &str) -> Published {
    let put = |name: &str, entry: &Value| {
        fs::write(folder.join(format!("{name}.json")), entry.to_string()).unwrap();
    };
    put("good", &entry("good", "validated", &place("k.pt"), good));
    put("invalid", &entry("invalid", "invalid", &place("k.pt"), good));
    put("testing", &entry("testing", "testing", &place("k.pt"), good));
    put("damaged", &entry("damaged", "deployed", &place("k.pt"), b"other"));
    put("large", &entry("large", "deployed", &place("large.pt"), &[0; 10_001]));
    put("malformed", &json!({"id": "malformed", "status": 7}));
    put("escaping", &entry("escaping", "validated", escaping, good));
    Published {
        good: ("good", good.to_vec()),
        invalid: "invalid",
        testing: "testing",
        damaged: "damaged",
        large: "large",
        malformed: "malformed",
        escaping: "escaping",
        absent: "absent",
    }
}

fn blobs(folder: &Path, good: &[u8]) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("k.pt"), good).unwrap();
    fs::write(folder.join("large.pt"), vec![0; 10_001]).unwrap();
}

#[tokio::test]
async fn urza_with_blobs_by_http_keeps_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    blobs(&folder.path().join("b"), b"artifact");
    let published = fill(folder.path(), |name| format!("b/{name}"), b"artifact", "http://10.0.0.1/k.pt");
    let address = stand_in(folder.path()).await;
    let urza = origin(options(vec![api(address)]));
    every_origin(&urza, &published).await;
    let states: Vec<_> = urza.breakers().into_iter().map(|b| (b.dependency, b.state)).collect();
    let names = [format!("urza {}", api(address)), "s3".into(), "file".into(), format!("http {address}")];
    assert_eq!(states, names.map(|name| (name, BreakerState::Closed)), "answers are no failures");
}

#[tokio::test]
async fn urza_with_blobs_in_folders_keeps_the_contract() {
    let (folder, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    blobs(store.path(), b"artifact");
    std::os::unix::fs::symlink("/etc/passwd", store.path().join("out")).unwrap();
    let place = |name: &str| format!("file://{}/{name}", store.path().display());
    let published = fill(folder.path(), place, b"artifact", &place("out"));
    let endpoints = vec![api(stand_in(folder.path()).await)];
    let allowed_folders = vec![store.path().to_owned()];
    every_origin(&origin(UrzaOptions { allowed_folders, ..options(endpoints) }), &published).await;
}

#[tokio::test]
async fn urza_with_blobs_in_s3_keeps_the_contract() {
    let (folder, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // Ten parts, the last one short.
    let good: Vec<u8> = (0..9_500_u32).map(|n| (n % 251) as u8).collect();
    blobs(&store.path().join("kernels"), &good);
    let published = fill(folder.path(), |name| format!("s3://kernels/{name}"), &good, "s3://secrets/k.pt");
    let s3 = s3(store.path(), &folder.path().join("credentials")).await;
    let endpoints = vec![api(stand_in(folder.path()).await)];
    let allowed_buckets = vec!["kernels".to_owned()];
    let options = UrzaOptions { allowed_buckets, s3, ..options(endpoints) };
    every_origin(&origin(options), &published).await;
}

#[tokio::test]
async fn s3_says_what_is_missing_and_what_is_not_allowed() {
    let (folder, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    blobs(&store.path().join("kernels"), b"artifact");
    fill(folder.path(), |_| "s3://kernels/none.pt".to_owned(), b"artifact", "");
    let mut s3 = s3(store.path(), &folder.path().join("credentials")).await;
    let endpoints = vec![api(stand_in(folder.path()).await)];
    let allowed_buckets = vec!["kernels".to_owned()];
    let with =
        |s3| UrzaOptions { allowed_buckets: allowed_buckets.clone(), s3, ..options(endpoints.clone()) };
    let error = fetch(&origin(with(s3.clone())), "good").await.unwrap_err();
    assert!(error.to_string().contains("no such blob") && !error.class().is_retryable(), "{error}");
    assert_eq!((error.code(), error.holds_everywhere()), ("kernel.not_found", true));
    let wrong = "[team]\naws_access_key_id = ACCESS\naws_secret_access_key = GUESSED\n";
    s3.credentials_file = folder.path().join("wrong");
    fs::write(&s3.credentials_file, wrong).unwrap();
    let urza = origin(with(s3.clone()));
    let error = fetch(&urza, "good").await.unwrap_err().to_string();
    assert!(error.contains("origin.s3.credentials_file") && !error.contains("GUESSED"), "{error}");
    // A file without the profile, none at all, and then the right one: it is looked at again each time.
    for missing in [true, false] {
        match missing {
            true => fs::write(&s3.credentials_file, "[other]\n").unwrap(),
            false => fs::remove_file(&s3.credentials_file).unwrap(),
        }
        for urza in [&urza, &origin(with(s3.clone()))] {
            let error = fetch(urza, "good").await.unwrap_err();
            assert!(error.to_string().contains("origin.s3.credentials_file"), "{error}");
            assert_eq!(error.code(), "origin.unavailable");
        }
    }
    fs::copy(folder.path().join("credentials"), &s3.credentials_file).unwrap();
    let error = fetch(&urza, "good").await.unwrap_err();
    assert!(error.to_string().contains("no such blob"), "{error}");
}

#[tokio::test]
async fn a_public_bucket_is_read_without_credentials() {
    let folder = tempfile::tempdir().unwrap();
    let reference = "s3://kernels/k.pt";
    fill(folder.path(), |_| reference.to_owned(), b"artifact", "");
    let public = Scripted::start(|_, head| match head.to_lowercase().contains("authorization:") {
        true => Reply::ok("403 Forbidden", "", b""),
        false => Reply::ok("206 Partial", "etag: \"1\"\r\ncontent-range: bytes 0-7/8\r\n", b"artifact"),
    })
    .await;
    let s3 = s3(folder.path(), &folder.path().join("credentials")).await;
    let s3 = S3Options { endpoint: format!("http://{}", public.address), ..s3 };
    let endpoints = vec![api(stand_in(folder.path()).await)];
    let options = UrzaOptions { allowed_buckets: vec!["kernels".to_owned()], s3, ..options(endpoints) };
    assert!(fetch(&origin(options.clone()), "good").await.is_err());
    let s3 = S3Options { anonymous: true, credentials_file: "".into(), ..options.s3.clone() };
    assert_eq!(fetch(&origin(UrzaOptions { s3, ..options }), "good").await.unwrap(), b"artifact");
}

#[tokio::test]
async fn s3_says_that_it_is_the_clock_that_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    fill(folder.path(), |_| "s3://kernels/k.pt".to_owned(), b"artifact", "");
    let skewed = Scripted::start(|_, _| {
        let body = b"<Error><Code>RequestTimeTooSkewed</Code><Message>too far apart</Message></Error>";
        Reply::ok("403 Forbidden", "content-type: application/xml\r\n", body)
    })
    .await;
    let s3 = s3(folder.path(), &folder.path().join("credentials")).await;
    let s3 = S3Options { endpoint: format!("http://{}", skewed.address), ..s3 };
    let endpoints = vec![api(stand_in(folder.path()).await)];
    let options = UrzaOptions { allowed_buckets: vec!["kernels".to_owned()], s3, ..options(endpoints) };
    let error = fetch(&origin(options), "good").await.unwrap_err().to_string();
    assert!(error.contains("clock") && !error.contains("credentials"), "{error}");
}

#[tokio::test]
async fn publishing_to_an_s3_that_hangs_ends_and_registers_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let silent = Scripted::start(|_, _| Reply(Vec::new(), End::Hang)).await;
    let s3 = s3(folder.path(), &folder.path().join("credentials")).await;
    let s3 = S3Options { endpoint: format!("http://{}", silent.address), ..s3 };
    let endpoints = vec![api(stand_in(&folder.path().join("urza")).await)];
    let blob_timeout = std::time::Duration::from_millis(100);
    let options = UrzaOptions { s3, blob_timeout, ..options(endpoints) };
    let to = Destination::S3 { bucket: "kernels".to_owned(), prefix: String::new() };
    let error = publish_to_urza(&options, &to, &publication("k", b"artifact")).await.unwrap_err();
    assert_eq!(error.code(), "origin.unavailable");
    let error = fetch(&origin(options), "k").await.unwrap_err();
    assert_eq!(error.code(), "kernel.not_found");
}

#[tokio::test]
async fn what_fails_is_passed_over_for_the_next_endpoint() {
    let folder = tempfile::tempdir().unwrap();
    blobs(folder.path(), b"artifact");
    fill(folder.path(), str::to_owned, b"artifact", "");
    let good = api(stand_in(folder.path()).await);
    let failing = Scripted::start(|_, _| Reply::ok("500 Oops", "", b"")).await;
    let silent = Scripted::start(|_, _| Reply(Vec::new(), End::Hang)).await;
    let dead = "http://127.0.0.1:1/api/v1".to_owned();
    let urza = origin(hasty(vec![dead, failing.api(), silent.api(), good]));
    assert_eq!(fetch(&urza, "good").await.unwrap(), b"artifact");
    let failures: Vec<_> = urza.breakers().iter().take(4).map(|breaker| breaker.failures).collect();
    assert_eq!(failures, [1, 1, 1, 0], "each counts once, for itself");
    assert_eq!(failing.requests().len(), 1, "the next endpoint is asked before the same one again");
}

#[tokio::test]
async fn a_kernel_is_unknown_once_every_endpoint_says_so() {
    let (early, late) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    blobs(early.path(), b"artifact");
    fill(early.path(), str::to_owned, b"artifact", "");
    let endpoints = vec![api(stand_in(late.path()).await), api(stand_in(early.path()).await)];
    let urza = origin(options(endpoints));
    assert_eq!(fetch(&urza, "good").await.unwrap(), b"artifact");
    assert_eq!(fetch(&urza, "absent").await.unwrap_err().code(), "kernel.not_found");
    assert!(urza.breakers().iter().all(|breaker| breaker.failures == 0));
}

#[tokio::test]
async fn a_blob_that_is_not_there_is_absent_and_a_refused_one_is_refused() {
    let (folder, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = format!("file://{}/none.pt", store.path().display());
    let answers = [
        ("none.pt", "kernel.not_found", true),
        (file.as_str(), "kernel.not_found", false),
        ("http://10.0.0.1/none.pt", "kernel.rejected", false),
    ];
    for (reference, code, everywhere) in answers {
        fill(folder.path(), |_| reference.to_owned(), b"artifact", "");
        let endpoints = vec![api(stand_in(folder.path()).await)];
        let allowed_folders = vec![store.path().to_owned()];
        let urza = origin(UrzaOptions { allowed_folders, ..options(endpoints) });
        let error = fetch(&urza, "good").await.unwrap_err();
        assert_eq!((error.code(), error.holds_everywhere()), (code, everywhere), "{error}");
    }
}

#[tokio::test]
async fn a_call_takes_an_endpoints_trial_when_its_turn_comes() {
    let hanging = Scripted::start(|n, _| match n {
        0..5 => Reply::ok("500 Oops", "", b""),
        _ => Reply(Vec::new(), End::Hang),
    });
    let back = Scripted::start(|n, _| match n {
        0..5 => Reply::ok("500 Oops", "", b""),
        _ => Reply::ok("200 OK", "", entry("k", "validated", "k.pt", b"x").to_string().as_bytes()),
    });
    let (hanging, back, clock) = (hanging.await, back.await, ManualClock::default());
    let mut options = options(vec![hanging.api(), back.api()]);
    (options.policy.timeout, options.policy.retry.attempts) = (std::time::Duration::from_secs(600), 1);
    let urza = Arc::new(super::UrzaOrigin::new(options, Arc::new(clock.clone())).unwrap());
    for _ in 0..5 {
        urza.metadata(&id("k")).await.unwrap_err();
    }
    assert!(urza.breakers()[..2].iter().all(|breaker| breaker.state == BreakerState::Open));
    let refused = urza.metadata(&id("k")).await.unwrap_err();
    assert_eq!(refused.code(), "origin.breaker_open");
    clock.advance(std::time::Duration::from_secs(60));
    let first = tokio::spawn({
        let urza = urza.clone();
        async move { urza.metadata(&id("k")).await }
    });
    while hanging.requests().len() < 6 {
        tokio::task::yield_now().await;
    }
    // The first hangs with the trial of one endpoint; the other has recovered, and serves everybody else.
    for _ in 0..3 {
        assert_eq!(urza.metadata(&id("k")).await.unwrap().id, id("k"));
    }
    assert_eq!(urza.breakers()[1].state, BreakerState::Closed);
    first.abort();
}

#[tokio::test]
async fn an_endpoint_that_was_down_is_found_again_while_others_answer() {
    let folder = tempfile::tempdir().unwrap();
    blobs(folder.path(), b"artifact");
    fill(folder.path(), str::to_owned, b"artifact", "");
    let flapping = Scripted::start(|n, _| match n {
        0..5 => Reply::ok("503 Busy", "", b""),
        _ => Reply::ok("404 No", "", b""),
    });
    let (flapping, clock) = (flapping.await, ManualClock::default());
    let endpoints = vec![flapping.api(), api(stand_in(folder.path()).await)];
    let urza = super::UrzaOrigin::new(options(endpoints), Arc::new(clock.clone())).unwrap();
    for _ in 0..8 {
        urza.metadata(&id("good")).await.unwrap();
    }
    assert_eq!((urza.breakers()[0].state, flapping.requests().len()), (BreakerState::Open, 5));
    clock.advance(std::time::Duration::from_secs(60));
    while urza.breakers()[0].state != BreakerState::Closed {
        // Answered by the other; the trial runs beside. One that comes late opens the breaker again.
        clock.advance(std::time::Duration::from_secs(60));
        urza.metadata(&id("good")).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert!(flapping.requests().len() >= 8, "three successes close it");
}

#[tokio::test]
async fn a_token_goes_to_the_catalogue_alone() {
    let folder = tempfile::tempdir().unwrap();
    let token_file = folder.path().join("token");
    fs::write(&token_file, "hush\n").unwrap();
    let server = Scripted::start(|_, head| {
        let host = head.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
        let reference = format!("http://{host}/blobs/k.pt");
        match head.contains("/api/") {
            true => Reply::ok("200 OK", "", entry("k", "validated", &reference, b"x").to_string().as_bytes()),
            false => Reply::ok("200 OK", "", b"x"),
        }
    })
    .await;
    let urza = origin(UrzaOptions { token_file, ..options(vec![server.api()]) });
    assert_eq!(fetch(&urza, "k").await.unwrap(), b"x");
    let requests = server.requests();
    assert!(requests[0].contains("authorization: Bearer hush") && !requests[1].contains("hush"));
    assert!(requests.iter().all(|head| !head.to_lowercase().contains("accept-encoding")), "{requests:?}");
    assert!(!format!("{urza:?}").contains("hush"));
}

#[tokio::test]
async fn an_answer_that_will_stay_is_not_asked_for_again() {
    for (status, code) in
        [("401 No", "origin.unavailable"), ("422 No", "kernel.rejected"), ("302 Go", "origin.unavailable")]
    {
        let server =
            Scripted::start(move |_, _| Reply::ok(status, "location: http://169.254.169.254/\r\n", b""))
                .await;
        let urza = origin(options(vec![server.api()]));
        let error = fetch(&urza, "k").await.unwrap_err();
        assert_eq!((error.code(), server.requests().len()), (code, 1), "{status}: {error}");
    }
}

#[tokio::test]
async fn a_server_that_asks_for_time_gets_it_within_bounds() {
    for (after, requests) in [("0", 3), ("3600", 1), ("soon", 3)] {
        let header = format!("retry-after: {after}\r\n");
        let server = Scripted::start(move |_, _| Reply::ok("429 Busy", &header, b"")).await;
        let urza = origin(options(vec![server.api()]));
        let error = fetch(&urza, "k").await.unwrap_err();
        assert_eq!(server.requests().len(), requests, "{after}: {error}");
        assert_eq!(urza.breakers()[0].failures, 0, "a server that defends itself is not down");
    }
}

fn publication(name: &str, bytes: &[u8]) -> Publication {
    let digest = Digest::of(bytes);
    let metadata = Metadata {
        blueprint_id: Some("blueprint".to_owned()),
        checksum: Some(digest),
        signature: Some("signed".to_owned()),
        ..Metadata::bare(id(name))
    };
    Publication { metadata, bytes: bytes.into(), digest, ending: "pt" }
}

/// An empty Urza and an empty bucket, and where in it to publish.
async fn publishing(folder: &Path) -> (UrzaOptions, Destination) {
    let buckets = folder.join("buckets");
    fs::create_dir_all(buckets.join("kernels")).unwrap();
    let s3 = s3(&buckets, &folder.join("credentials")).await;
    let allowed_buckets = vec!["kernels".to_owned()];
    let endpoints = vec![api(stand_in(&folder.join("urza")).await)];
    let to = Destination::S3 { bucket: "kernels".to_owned(), prefix: "team/".to_owned() };
    (UrzaOptions { allowed_buckets, s3, ..options(endpoints) }, to)
}

#[tokio::test]
async fn publishing_is_repeatable_and_kernels_are_immutable() {
    let folder = tempfile::tempdir().unwrap();
    let (options, to) = publishing(folder.path()).await;
    let first = publish_to_urza(&options, &to, &publication("k", b"artifact")).await.unwrap();
    let reference = format!("s3://kernels/team/kernels/k/{}.pt", first.digest);
    assert_eq!((first.new, first.reference.as_str()), (true, reference.as_str()));
    let again = publish_to_urza(&options, &to, &publication("k", b"artifact")).await.unwrap();
    assert_eq!((again.new, again.digest), (false, first.digest));
    let other = publish_to_urza(&options, &to, &publication("k", b"others")).await.unwrap_err();
    assert!(matches!(other, PublishError::Taken { .. }), "{other}");
    let second = publish_to_urza(&options, &to, &publication("l", b"others")).await.unwrap();
    assert!(second.new, "the blueprint that is there is no obstacle");
    let urza = Guarded::by_parts(Arc::new(origin(options)), Arc::new(ManualClock::default()));
    let fetched = urza.fetch(&id("k")).await.unwrap().stored;
    assert_eq!((&fetched.bytes[..], fetched.digest), (&b"artifact"[..], first.digest));
    assert_eq!(fetched.metadata.signature.as_deref(), Some("signed"), "it stands in the entry");
}

#[tokio::test]
async fn publishing_goes_to_the_first_endpoint_that_answers() {
    let folder = tempfile::tempdir().unwrap();
    let (good, to) = publishing(folder.path()).await;
    let failing = Scripted::start(|_, _| Reply::ok("500 Oops", "", b"")).await;
    let endpoints = vec![format!("http://{}/api/v1", failing.address), good.endpoints[0].clone()];
    let both = UrzaOptions { endpoints, ..good.clone() };
    assert!(publish_to_urza(&both, &to, &publication("k", b"artifact")).await.unwrap().new);
    assert_eq!(fetch(&origin(good), "k").await.unwrap(), b"artifact");
    let none = UrzaOptions { endpoints: both.endpoints[..1].to_vec(), ..both };
    let error = publish_to_urza(&none, &to, &publication("l", b"artifact")).await.unwrap_err();
    assert_eq!(error.code(), "origin.unavailable", "{error}");
}

#[tokio::test]
async fn what_stands_there_as_invalid_is_not_published() {
    let folder = tempfile::tempdir().unwrap();
    let (options, to) = publishing(folder.path()).await;
    fs::create_dir_all(folder.path().join("urza")).unwrap();
    let invalid = entry("k", "invalid", "s3://kernels/k", b"artifact");
    fs::write(folder.path().join("urza/k.json"), invalid.to_string()).unwrap();
    let error = publish_to_urza(&options, &to, &publication("k", b"artifact")).await.unwrap_err();
    assert!(error.to_string().contains("status invalid"), "{error}");
}

#[tokio::test]
async fn what_a_catalogue_says_at_length_is_repeated_in_brief() {
    let folder = tempfile::tempdir().unwrap();
    let long = "x".repeat(500_000);
    for (name, reference) in [
        ("long", format!("https://not-allowed.example/{long}?X-Amz-Signature=secret")),
        ("odd", format!("gopher://{long}")),
        ("user", "https://somebody:secret@not-allowed.example/k".to_owned()),
    ] {
        let json = entry(name, "validated", &reference, b"artifact").to_string();
        fs::write(folder.path().join(format!("{name}.json")), json).unwrap();
        let urza = origin(options(vec![api(stand_in(folder.path()).await)]));
        let error = fetch(&urza, name).await.unwrap_err().to_string();
        assert!(error.len() < 1500 && !error.contains("secret"), "{error}");
    }
}

#[tokio::test]
async fn of_those_who_publish_other_bytes_under_one_name_at_once_one_is_first_and_whole() {
    let folder = tempfile::tempdir().unwrap();
    let (options, to) = publishing(folder.path()).await;
    for round in 0..10 {
        let name = format!("k{round}");
        let publications: Vec<_> = (0..4).map(|n| publication(&name, &[n; 100])).collect();
        let all = publications.iter().map(|publication| publish_to_urza(&options, &to, publication));
        let results = futures_util::future::join_all(all).await;
        let first: Vec<_> = results.iter().flatten().collect();
        assert!(matches!(first[..], [published] if published.new), "{results:?}");
        let taken = results.iter().filter(|result| matches!(result, Err(PublishError::Taken { .. })));
        assert_eq!(taken.count(), 3, "{results:?}");
        let fetched = fetch(&origin(options.clone()), &name).await.unwrap();
        assert_eq!(Digest::of(&fetched), first[0].digest);
    }
}

#[tokio::test]
async fn what_is_published_to_a_folder_is_found_there() {
    let folder = tempfile::tempdir().unwrap();
    assert!(publish_to_folder(folder.path(), &publication("k", b"artifact")).unwrap().new);
    assert!(!publish_to_folder(folder.path(), &publication("k", b"artifact")).unwrap().new);
    let taken = publish_to_folder(folder.path(), &publication("k", b"others")).unwrap_err();
    assert_eq!(taken.code(), "publish.taken");
    let directory = super::DirectoryOrigin::new(super::DirectoryOptions::new(folder.path()));
    assert_eq!(fetch(&directory, "k").await.unwrap(), b"artifact");
    let urza = origin(options(vec![api(stand_in(folder.path()).await)]));
    assert_eq!(fetch(&urza, "k").await.unwrap(), b"artifact");
}
