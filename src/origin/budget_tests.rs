//! The bytes of an artifact take their share of a budget before there is memory for them, wherever they lie.

use std::{fs, path::Path, sync::Arc, time::Duration};

use serde_json::json;

use super::{
    DirectoryOptions, DirectoryOrigin, GuardPolicy, Guarded, UrzaOptions,
    contract::id,
    servers::{End, Reply, Scripted, api, options, origin, s3, stand_in},
};
use crate::{
    backoff::Jitter, cache::FetchBudget, clock::ManualClock, digest::Digest, fault::Fault as _,
    guard::BreakerState,
};

const BUDGET: u64 = 64 << 10;
/// What is counted at a time.
const UNIT: u64 = 4096;

fn guarded(options: UrzaOptions, budget: &Arc<FetchBudget>) -> Guarded {
    let urza = Arc::new(origin(options).within(budget.clone()));
    Guarded::by_parts(urza, Arc::new(ManualClock::default()))
}

fn publish(folder: &Path, reference: &str, bytes: &[u8]) {
    let checksum = Digest::of(bytes).to_string();
    let report = json!({"input_shape": [8], "output_shape": [8], "checksum": checksum});
    let entry = json!({
        "id": "k", "blueprint_id": "b", "status": "validated", "compilation_pipeline": "standard",
        "kernel_binary_ref": reference, "validation_report": report,
        "created_at": "2026-11-23T00:00:00", "updated_at": "2026-11-23T00:00:00",
    });
    fs::write(folder.join("k.json"), entry.to_string()).unwrap();
}

#[tokio::test]
async fn blobs_of_every_kind_hold_their_share_until_nobody_needs_them() {
    let (folder, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let bytes = vec![7; 5000];
    let bucket = store.path().join("kernels");
    fs::create_dir_all(&bucket).unwrap();
    fs::write(bucket.join("k.pt"), &bytes).unwrap();
    let address = stand_in(folder.path()).await;
    fs::create_dir_all(folder.path().join("b")).unwrap();
    fs::write(folder.path().join("b/k.pt"), &bytes).unwrap();
    let endpoints = vec![api(address)];
    let s3 = s3(store.path(), &folder.path().join("credentials")).await;
    let options = UrzaOptions {
        allowed_buckets: vec!["kernels".to_owned()],
        allowed_folders: vec![store.path().to_owned()],
        s3,
        ..options(endpoints)
    };
    let file = format!("file://{}", bucket.join("k.pt").display());
    for reference in ["b/k.pt", "s3://kernels/k.pt", &file] {
        publish(folder.path(), reference, &bytes);
        let budget = FetchBudget::new(BUDGET);
        let guarded = guarded(options.clone(), &budget);
        let fetched = guarded.fetch(&id("k")).await.unwrap();
        assert_eq!(budget.stats().bytes, 2 * UNIT, "{reference}");
        drop(fetched);
        assert_eq!(budget.stats().bytes, 0, "{reference}");
    }
}

#[tokio::test]
async fn a_body_without_a_length_counts_as_the_largest_until_it_is_there() {
    let bytes = vec![7; 5000];
    let (folder, budget) = (tempfile::tempdir().unwrap(), FetchBudget::new(BUDGET));
    let body = bytes.clone();
    let server = Scripted::start(move |_, _| Reply::raw("HTTP/1.1 200 OK\r\n\r\n", &body, End::Close)).await;
    publish(folder.path(), &format!("http://{}/k.pt", server.address), &bytes);
    let allowed_hosts = vec![server.address.to_string()];
    let endpoints = vec![api(stand_in(folder.path()).await)];
    let options = UrzaOptions { allowed_hosts, allow_private_addresses: true, ..options(endpoints) };
    let fetched = guarded(options.clone(), &budget).fetch(&id("k")).await.unwrap();
    assert_eq!((fetched.stored.bytes.len(), budget.stats().bytes), (5000, 2 * UNIT));
    drop(fetched);

    // The largest is 10,000 bytes: three units, of which two are free. It waits, and is no failure of the server.
    let _most = budget.reserve(BUDGET - 2 * UNIT).await.unwrap();
    let options = UrzaOptions { blob_timeout: Duration::from_secs(2), ..options };
    let guarded = guarded(options, &budget);
    let error = guarded.fetch(&id("k")).await.unwrap_err();
    assert_eq!((error.code(), server.requests().len()), ("cache.fetch_budget", 2), "{error}");
    assert!(error.to_string().contains("kernel k: 10000 bytes were to be fetched"), "{error}");
    assert!(guarded.breakers().iter().all(|b| b.state == BreakerState::Closed && b.failures == 0));
}

#[tokio::test(start_paused = true)]
async fn a_folders_artifacts_take_their_share_too() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("k.pt"), [7; 5000]).unwrap();
    let budget = FetchBudget::new(BUDGET);
    let directory = DirectoryOrigin::new(DirectoryOptions::new(folder.path()));
    let (policy, clock) = (GuardPolicy::default(), Arc::new(ManualClock::default()));
    let guarded = Guarded::new(Arc::new(directory), policy, Jitter::seeded(1), clock);
    let guarded = guarded.within(budget.clone(), BUDGET / 2);
    let fetched = guarded.fetch(&id("k")).await.unwrap();
    assert_eq!(budget.stats().bytes, 2 * UNIT);
    drop(fetched);
    let all = budget.reserve(BUDGET).await.unwrap();
    // Longer than an attempt may take.
    let error = guarded.fetch(&id("k")).await.unwrap_err();
    assert_eq!((error.code(), guarded.breakers()[0].failures), ("cache.fetch_budget", 0), "{error}");
    drop(all);
    assert!(guarded.fetch(&id("k")).await.is_ok());
}
