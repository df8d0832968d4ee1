//! The stores that blobs come from, each behind its own breaker.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::future::BoxFuture;

use super::{
    Blob, GuardPolicy, OriginError, S3Options, folder,
    http::{self, Progress},
    reference::BlobPlace,
    s3::S3,
    service::Service,
    want::{Want, patience},
    web::Web,
};
use crate::{
    cache::{FetchBudget, Reservation},
    clock::Clock,
    guard::BreakerStatus,
    validation::Metadata,
};

/// Hosts with a breaker of their own; those beyond share one. A list of hosts is short, a `*` need not be.
const MOST_HOSTS: usize = 64;

/// How blobs are read.
#[derive(Clone, Debug)]
pub(super) struct BlobLimits {
    pub(super) max_bytes: u64,
    /// How long no byte may come.
    pub(super) stall: Duration,
    /// How long one blob may take, with its retries.
    pub(super) total: Duration,
}

/// Every store by its scheme.
#[derive(Debug)]
pub(super) struct Blobs {
    origin: &'static str,
    web: Web,
    s3: S3,
    s3_service: Service,
    file_service: Service,
    hosts: Mutex<BTreeMap<String, Arc<Service>>>,
    limits: BlobLimits,
    policy: GuardPolicy,
    clock: Arc<dyn Clock>,
    pub(super) budget: Option<Arc<FetchBudget>>,
}

impl Blobs {
    pub(super) fn new(
        origin: &'static str,
        web: Web,
        s3: S3Options,
        limits: BlobLimits,
        policy: GuardPolicy,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            origin,
            web,
            s3: S3::new(s3),
            s3_service: Service::of_blobs("s3", &policy, clock.clone()),
            file_service: Service::of_blobs("file", &policy, clock.clone()),
            hosts: Mutex::default(),
            limits,
            policy,
            clock,
            budget: None,
        }
    }

    /// The breakers of S3 and of every host that was asked.
    pub(super) fn breakers(&self) -> Vec<BreakerStatus> {
        let hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        let fixed = [&self.s3_service, &self.file_service];
        fixed.into_iter().map(Service::status).chain(hosts.values().map(|host| host.status())).collect()
    }

    /// The bytes that a catalogue entry refers to, in agreement with its checksum.
    pub(super) async fn read(&self, metadata: &Metadata) -> Result<Blob, OriginError> {
        let reference = metadata.kernel_binary_ref.as_deref().unwrap_or_default();
        let want = Want {
            origin: self.origin,
            id: &metadata.id,
            reference,
            limit_bytes: self.limits.max_bytes,
            stall: self.limits.stall,
            budget: self.budget.as_deref().map(|budget| (budget, patience(self.limits.total))),
        };
        if reference.is_empty() {
            return Err(want.refused("the entry names no blob"));
        }
        let total = self.limits.total;
        let blob = match self.web.allow.place(reference).map_err(|reason| want.refused(reason))? {
            BlobPlace::S3 { bucket, key } => {
                let service = &self.s3_service;
                service.once(total, self.s3.read(&want, &bucket, &key, service.retry())).await
            }
            BlobPlace::Http(url) => {
                let (service, progress) = (self.host(&url), Progress::default());
                let attempt = || {
                    Box::pin(http::attempt(&self.web, &want, &url, &progress))
                        as BoxFuture<'_, Result<(), OriginError>>
                };
                service.call(total, attempt).await?;
                progress.finish().await.ok_or_else(|| want.failed("its end did not come"))
            }
            BlobPlace::File(path) => {
                let (folders, origin) = (self.web.allow.folders.clone(), self.origin);
                let (id, reference, limits) =
                    (metadata.id.clone(), reference.to_owned(), self.limits.clone());
                let service = &self.file_service;
                // Read in one go, so that the whole may be the largest.
                let hold = want.reserve(want.limit_bytes).await?;
                let read = tokio::task::spawn_blocking(move || {
                    let (limit_bytes, stall) = (limits.max_bytes, limits.stall);
                    let reference = &reference;
                    let want = Want { origin, id: &id, reference, limit_bytes, stall, budget: None };
                    folder::read(&want, &path, &folders)
                });
                let ended = async { read.await.unwrap_or_else(|error| Err(want.failed(error.to_string()))) };
                let blob = service.once(total, ended).await;
                blob.map(|blob| held(blob, hold))
            }
        };
        blob?.checked(metadata)
    }

    fn host(&self, url: &reqwest::Url) -> Arc<Service> {
        let port = url.port_or_known_default().unwrap_or_default();
        let mut name = format!("http {}:{port}", url.host_str().unwrap_or_default());
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if hosts.len() >= MOST_HOSTS && !hosts.contains_key(&name) {
            name = "http".to_owned();
        }
        let made = || Arc::new(Service::of_blobs(&name, &self.policy, self.clock.clone()));
        hosts.entry(name.clone()).or_insert_with(made).clone()
    }
}

/// A blob with the share that was taken for it, or what is left of that.
pub(super) fn held(blob: Blob, hold: Option<Reservation>) -> Blob {
    let shrunk = |mut hold: Reservation| {
        hold.shrink_to(blob.bytes.len() as u64);
        Arc::new(hold)
    };
    Blob { hold: hold.map(shrunk), ..blob }
}
