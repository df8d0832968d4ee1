//! Urza: a REST catalogue whose entries refer to blobs elsewhere.

use std::{collections::HashSet, net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use reqwest::Url;

use super::{
    Blob, GuardPolicy, Origin, OriginError, S3Options,
    address::Addresses,
    blobs::{BlobLimits, Blobs},
    catalogue::Catalogue,
    port::accept_status,
    reference::Allow,
    web::Web,
};
use crate::{
    cache::FetchBudget, clock::Clock, config, guard::BreakerStatus, id::KernelId, validation::Metadata,
};

const NAME: &str = "urza";

/// Where the catalogue is, and what its entries may refer to.
#[derive(Clone, Debug)]
pub struct UrzaOptions {
    /// The endpoints, each a URL that ends in `/api/v1`.
    pub endpoints: Vec<String>,
    /// The file that holds a bearer token; empty is none.
    pub token_file: PathBuf,
    /// A PEM file of authorities to trust beside the system's; empty is none.
    pub ca_file: PathBuf,
    /// The largest catalogue entry, in bytes.
    pub max_entry_bytes: u64,
    /// Whether kernels in status `testing` are given.
    pub accept_testing: bool,
    /// The largest artifact, in bytes.
    pub max_artifact_bytes: u64,
    /// Hosts that blobs may come from, beside the endpoints.
    pub allowed_hosts: Vec<String>,
    /// Buckets, or `bucket/prefix`, that blobs may come from.
    pub allowed_buckets: Vec<String>,
    /// Folders that blobs may come from.
    pub allowed_folders: Vec<PathBuf>,
    /// Whether allowed hosts may have private addresses.
    pub allow_private_addresses: bool,
    /// Redirects of one blob.
    pub max_redirects: u32,
    /// How long no byte of a blob may come.
    pub stall_timeout: Duration,
    /// How long one blob may take, with its retries.
    pub blob_timeout: Duration,
    /// S3's own settings.
    pub s3: S3Options,
    /// Patience with each part.
    pub policy: GuardPolicy,
}

impl From<&config::Config> for UrzaOptions {
    fn from(settings: &config::Config) -> Self {
        let config::Origin { urza, blob, s3, accept_testing, .. } = &settings.origin;
        Self {
            endpoints: urza.endpoints.clone(),
            token_file: urza.token_file.clone(),
            ca_file: urza.ca_file.clone(),
            max_entry_bytes: urza.max_entry_bytes.0,
            accept_testing: *accept_testing,
            max_artifact_bytes: settings.validator.max_artifact_bytes.0,
            allowed_hosts: blob.allowed_hosts.clone(),
            allowed_buckets: blob.allowed_buckets.clone(),
            allowed_folders: blob.allowed_folders.clone(),
            allow_private_addresses: blob.allow_private_addresses,
            max_redirects: blob.max_redirects,
            stall_timeout: blob.stall_timeout,
            blob_timeout: blob.timeout,
            s3: S3Options::from(s3),
            policy: GuardPolicy::from(&settings.origin),
        }
    }
}

impl UrzaOptions {
    /// A token is as good as its way is closed.
    fn warn_of_open_tokens(&self) {
        if self.token_file.as_os_str().is_empty() {
            return;
        }
        for endpoint in self.endpoints.iter().filter(|endpoint| is_open(endpoint)) {
            tracing::warn!(
                endpoint,
                "the token in origin.urza.token_file goes to this endpoint unencrypted, and whoever reads it on its \
                 way can use it: write https://"
            );
        }
    }

    /// What references may lead to: what is listed, and the endpoints' own hosts.
    pub(super) fn allow(&self) -> Allow {
        let urls = || self.endpoints.iter().filter_map(|base| Url::parse(base).ok());
        let place = |url: Url| Some(format!("{}:{}", url.host_str()?, url.port_or_known_default()?));
        let names: HashSet<String> = urls().filter_map(|url| url.host_str().map(str::to_owned)).collect();
        Allow {
            hosts: self.allowed_hosts.iter().map(|host| host.to_ascii_lowercase()).collect(),
            buckets: self.allowed_buckets.clone(),
            folders: self.allowed_folders.clone(),
            endpoints: urls().filter_map(place).collect(),
            addresses: Addresses { allow_private: self.allow_private_addresses, endpoints: Arc::new(names) },
        }
    }
}

/// A catalogue with failover, and the stores its blobs are in; each endpoint and each store has a breaker of
/// its own.
#[derive(Debug)]
pub struct UrzaOrigin {
    catalogue: Arc<Catalogue>,
    blobs: Blobs,
    accept_testing: bool,
}

impl UrzaOrigin {
    /// Nothing is asked before the first kernel is.
    ///
    /// # Errors
    /// When the authorities' file cannot be read.
    ///
    /// Blocking: reads that file.
    pub fn new(options: UrzaOptions, clock: Arc<dyn Clock>) -> Result<Self, OriginError> {
        let allow = Arc::new(options.allow());
        options.warn_of_open_tokens();
        let web = Web::new(allow, &options.ca_file, options.max_redirects).map_err(|reason| {
            OriginError::Unavailable {
                origin: NAME.to_owned(),
                place: options.ca_file.clone().into(),
                reason,
            }
        })?;
        let limits = BlobLimits {
            max_bytes: options.max_artifact_bytes,
            stall: options.stall_timeout,
            total: options.blob_timeout,
        };
        let catalogue = Catalogue::new(
            &options.endpoints,
            web.clone(),
            options.token_file,
            options.max_entry_bytes,
            &options.policy,
            &clock,
        );
        let blobs = Blobs::new(NAME, web, options.s3, limits, options.policy, clock);
        Ok(Self { catalogue: Arc::new(catalogue), blobs, accept_testing: options.accept_testing })
    }

    /// The same, but the bytes of blobs take of a budget before there is memory for them.
    #[must_use]
    pub fn within(mut self, budget: Arc<FetchBudget>) -> Self {
        self.blobs.budget = Some(budget);
        self
    }
}

impl Origin for UrzaOrigin {
    fn name(&self) -> &str {
        NAME
    }

    fn metadata<'a>(&'a self, id: &'a KernelId) -> BoxFuture<'a, Result<Metadata, OriginError>> {
        Box::pin(async move {
            let metadata = self.catalogue.entry(id).await?;
            accept_status(&metadata, self.accept_testing)?;
            Ok(metadata)
        })
    }

    fn artifact<'a>(&'a self, metadata: &'a Metadata) -> BoxFuture<'a, Result<Blob, OriginError>> {
        Box::pin(self.blobs.read(metadata))
    }

    fn breakers(&self) -> Vec<BreakerStatus> {
        self.catalogue.breakers().into_iter().chain(self.blobs.breakers()).collect()
    }
}

/// Whether what goes to an endpoint can be read on its way: not within this machine.
fn is_open(endpoint: &str) -> bool {
    let Ok(url) = Url::parse(endpoint) else { return false };
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let is_loopback = |address: IpAddr| address.is_loopback();
    url.scheme() == "http" && host != "localhost" && !host.parse().is_ok_and(is_loopback)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_open_but_within_the_machine() {
        for (endpoint, open) in [
            ("http://urza.example/api/v1", true),
            ("http://10.0.0.1:8000/api/v1", true),
            ("https://urza.example/api/v1", false),
            ("http://localhost:8000/api/v1", false),
            ("http://127.0.0.1:8000/api/v1", false),
            ("http://[::1]:8000/api/v1", false),
        ] {
            assert_eq!(is_open(endpoint), open, "{endpoint}");
        }
    }
}
