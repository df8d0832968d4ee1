//! Blobs in S3, and whatever speaks its protocol: in parts side by side, all of one version.

use std::{path::PathBuf, sync::Arc, time::Duration};

use aws_config::{
    BehaviorVersion, Region, profile::ProfileFileCredentialsProvider, provider_config::ProviderConfig,
    retry::RetryConfig, stalled_stream_protection::StalledStreamProtectionConfig, timeout::TimeoutConfig,
};
use aws_runtime::env_config::file::{EnvConfigFileKind, EnvConfigFiles};
use aws_sdk_s3::{
    Client,
    config::{ProvideCredentials as _, RequestChecksumCalculation, ResponseChecksumValidation},
    error::{ProvideErrorMetadata, SdkError},
    operation::get_object::GetObjectOutput,
    primitives::ByteStream,
};
use aws_smithy_http_client::{
    Builder,
    tls::{Provider, rustls_provider::CryptoMode},
};
use futures_util::{StreamExt as _, stream};
use tokio::sync::Mutex;

use super::{Blob, OriginError, http::content_range, want::Want, web::chain};
use crate::{config, digest::Hasher, guard::Retry};

const ADVICE: &str =
    "check origin.s3.credentials_file, origin.s3.profile and what these credentials may read";

/// A signature holds for some minutes only.
const CLOCK_ADVICE: &str = "its clock and this machine's differ: set the one that is wrong";

/// The most that is hashed before other tasks of the thread have a turn.
const HASHED_AT_ONCE: usize = 256 << 10;

/// Where S3 is and how to read from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Options {
    /// The endpoint's URL; empty is Amazon's own.
    pub endpoint: String,
    /// The region; empty is what the environment says.
    pub region: String,
    /// Whether the bucket stands in the path instead of the host's name.
    pub path_style: bool,
    /// A file of credentials in Amazon's form; empty is the usual chain.
    pub credentials_file: PathBuf,
    /// Which profile of it.
    pub profile: String,
    /// Whether to ask without credentials, as public buckets allow.
    pub anonymous: bool,
    /// Larger blobs are read in parts of this size.
    pub part_bytes: u64,
    /// How many parts at a time.
    pub parallel_parts: usize,
}

impl From<&config::OriginS3> for S3Options {
    fn from(settings: &config::OriginS3) -> Self {
        Self {
            endpoint: settings.endpoint.clone(),
            region: settings.region.clone(),
            path_style: settings.path_style,
            credentials_file: settings.credentials_file.clone(),
            profile: settings.profile.clone(),
            anonymous: settings.anonymous,
            part_bytes: settings.part_size.0,
            parallel_parts: settings.parallel_parts as usize,
        }
    }
}

/// The store; its client is made at the first use, because credentials are looked up then, and anew once they were
/// refused, because somebody may have put them right.
#[derive(Debug)]
pub(super) struct S3 {
    options: S3Options,
    client: Mutex<Option<Client>>,
}

/// The first part's answer, which fixes the version of all others.
struct First {
    output: GetObjectOutput,
    total: u64,
    etag: Option<String>,
    /// Whether the answer is the whole, whatever was asked for.
    whole: bool,
}

impl S3 {
    pub(super) fn new(options: S3Options) -> Self {
        Self { options, client: Mutex::default() }
    }

    async fn client(&self, want: &Want<'_>) -> Result<Client, OriginError> {
        let mut client = self.client.lock().await;
        if let Some(client) = &*client {
            return Ok(client.clone());
        }
        Ok(client.insert(connect(&self.options, want).await?).clone())
    }

    /// Looks up the credentials anew at the next use, where they were refused.
    async fn judge<T>(&self, result: Result<T, OriginError>) -> Result<T, OriginError> {
        if matches!(result, Err(OriginError::Denied { .. })) {
            *self.client.lock().await = None;
        }
        result
    }

    /// Reads a blob. A part that fails is asked for again by itself, from where it ended.
    pub(super) async fn read(
        &self,
        want: &Want<'_>,
        bucket: &str,
        key: &str,
        retry: &Retry,
    ) -> Result<Blob, OriginError> {
        let part_bytes = self.options.part_bytes.max(1);
        let client = retry.run(|| Box::pin(self.client(want))).await?;
        let object = Object { client: &client, want, bucket, key };
        let first = retry.run(|| Box::pin(object.first(part_bytes))).await;
        let first = self.judge(first).await?;
        if first.total > want.limit_bytes {
            return Err(want.too_large());
        }
        let size = usize::try_from(first.total).map_err(|_| want.too_large())?;
        let hold = want.reserve(first.total).await?.map(Arc::new);
        let mut bytes: Arc<[u8]> = std::iter::repeat_n(0, size).collect();
        let block = Arc::get_mut(&mut bytes).expect("nobody else has been given it");
        let part_size = if first.whole { size } else { usize::try_from(part_bytes).unwrap_or(usize::MAX) };
        let etag = first.etag.as_deref();
        let mut begun = Some(first.output);
        let parts = block.chunks_mut(part_size.max(1)).enumerate().map(|(n, part)| {
            let (output, from) = (begun.take(), n as u64 * part_size as u64);
            object.part(part, from, etag, output, retry)
        });
        // In order, so that the digest can be made while later parts are still coming.
        let mut parts = stream::iter(parts.collect::<Vec<_>>()).buffered(self.options.parallel_parts.max(1));
        let (mut hasher, mut hashing) = (Hasher::default(), Duration::ZERO);
        while let Some(part) = parts.next().await {
            for piece in part?.chunks(HASHED_AT_ONCE) {
                let start = std::time::Instant::now();
                hasher.update(piece);
                hashing += start.elapsed();
                tokio::task::yield_now().await;
            }
        }
        drop(parts);
        Ok(Blob { bytes, digest: hasher.finish(), hashing, hold })
    }

    /// Writes a blob.
    pub(super) async fn write(
        &self,
        want: &Want<'_>,
        bucket: &str,
        key: &str,
        bytes: &[u8],
    ) -> Result<(), OriginError> {
        let body = ByteStream::from(bytes.to_vec());
        let request = self.client(want).await?.put_object().bucket(bucket).key(key).body(body);
        want.in_time(request.send()).await?.map(drop).map_err(|error| failed(want, &error))
    }
}

/// One object, as a blob's reader sees it.
#[derive(Clone, Copy)]
struct Object<'a> {
    client: &'a Client,
    want: &'a Want<'a>,
    bucket: &'a str,
    key: &'a str,
}

impl<'a> Object<'a> {
    async fn first(&self, part_bytes: u64) -> Result<First, OriginError> {
        let output = self.get(0, part_bytes, None).await?;
        let etag = output.e_tag().map(str::to_owned);
        let (total, whole) = match output.content_range() {
            Some(range) => match content_range(range) {
                Some((0, total)) => (total, false),
                _ => return Err(self.want.failed("it answered with another range than was asked for")),
            },
            None => {
                let length = output.content_length().and_then(|length| u64::try_from(length).ok());
                (length.ok_or_else(|| self.want.failed("it does not say how large the blob is"))?, true)
            }
        };
        Ok(First { output, total, etag, whole })
    }

    /// Asks for `length` bytes from `from` on, of the version `etag` where one is known.
    async fn get(&self, from: u64, length: u64, etag: Option<&str>) -> Result<GetObjectOutput, OriginError> {
        let last = from.saturating_add(length.max(1)) - 1;
        let request = self.client.get_object().bucket(self.bucket).key(self.key);
        let request = request.range(format!("bytes={from}-{last}")).set_if_match(etag.map(str::to_owned));
        self.want.in_time(request.send()).await?.map_err(|error| failed(self.want, &error))
    }

    /// Asks for what a part still lacks. Without a version nobody could say that it belongs to the rest.
    async fn rest(
        &self,
        from: u64,
        length: usize,
        etag: Option<&str>,
    ) -> Result<GetObjectOutput, OriginError> {
        if etag.is_none() {
            return Err(self.want.failed("it gives no ETag, so that parts cannot be put together"));
        }
        let output = self.get(from, length as u64, etag).await?;
        match output.content_range().and_then(content_range) {
            Some((start, _)) if start == from => Ok(output),
            _ => Err(self.want.failed("it answered with another range than was asked for")),
        }
    }

    async fn part<'b>(
        self,
        part: &'b mut [u8],
        from: u64,
        etag: Option<&str>,
        begun: Option<GetObjectOutput>,
        retry: &Retry,
    ) -> Result<&'b [u8], OriginError> {
        let state = Mutex::new((&mut *part, 0_usize, begun));
        let state_ref = &state;
        retry
            .run(|| {
                Box::pin(async move {
                    let (part, filled, begun) = &mut *state_ref.lock().await;
                    let output = match begun.take() {
                        Some(output) => output,
                        None => self.rest(from + *filled as u64, part.len() - *filled, etag).await?,
                    };
                    self.fill(part, filled, output).await
                })
            })
            .await?;
        drop(state);
        Ok(part)
    }

    async fn fill(
        &self,
        part: &mut [u8],
        filled: &mut usize,
        output: GetObjectOutput,
    ) -> Result<(), OriginError> {
        let mut body = output.body;
        while let Some(piece) = self.want.in_time(body.next()).await? {
            let piece = piece.map_err(|error| self.want.failed(chain(&error)))?;
            let end = *filled + piece.len();
            let Some(place) = part.get_mut(*filled..end) else {
                return Err(self.want.failed("it sent more than was asked for"));
            };
            place.copy_from_slice(&piece);
            *filled = end;
        }
        match *filled == part.len() {
            true => Ok(()),
            false => Err(self.want.failed(format!("it ended after {filled} of {} bytes", part.len()))),
        }
    }
}

async fn connect(options: &S3Options, want: &Want<'_>) -> Result<Client, OriginError> {
    let http = Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https();
    let timeouts = TimeoutConfig::builder().connect_timeout(Duration::from_secs(5)).build();
    // Retries and stalls are looked after here, where a part can go on from where it ended.
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .http_client(http.clone())
        .timeout_config(timeouts)
        .retry_config(RetryConfig::disabled())
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
    if !options.region.is_empty() {
        loader = loader.region(Region::new(options.region.clone()));
    }
    if options.anonymous {
        loader = loader.no_credentials();
    } else if !options.credentials_file.as_os_str().is_empty() {
        let files = EnvConfigFiles::builder()
            .with_file(EnvConfigFileKind::Credentials, options.credentials_file.clone())
            .build();
        // A profile may send the provider on to a token service, for which it needs a client of its own.
        let settings = ProviderConfig::default().with_http_client(http.clone());
        let provider = ProfileFileCredentialsProvider::builder().configure(&settings).profile_files(files);
        loader = loader.credentials_provider(provider.profile_name(options.profile.clone()).build());
    }
    let shared = loader.load().await;
    if let Some(provider) = shared.credentials_provider() {
        // Here, because a request that finds none says so in words that name no setting.
        let found = provider.provide_credentials().await;
        found.map_err(|error| want.failed(format!("no credentials, {ADVICE}: {}", chain(&error))))?;
    }
    let mut settings = aws_sdk_s3::config::Builder::from(&shared)
        .force_path_style(options.path_style)
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
    if !options.endpoint.is_empty() {
        settings = settings.endpoint_url(options.endpoint.clone());
    }
    if shared.region().is_none() {
        // Servers of one's own rarely have regions, but a signature needs one.
        settings = settings.region(Region::new("us-east-1"));
    }
    Ok(Client::from_conf(settings.build()))
}

fn failed<E>(want: &Want<'_>, error: &SdkError<E>) -> OriginError
where
    E: std::error::Error + ProvideErrorMetadata + 'static,
    SdkError<E>: std::error::Error,
{
    let status = error.raw_response().map(|response| response.status().as_u16());
    let (origin, place) = (want.origin.to_owned(), want.reference.into());
    match status {
        Some(404) => want.absent("there is no such blob", false),
        Some(416) => want.refused("it is empty"),
        Some(412) => want.failed("it changed while it was read"),
        Some(status @ (401 | 403)) => {
            let skewed = error.code() == Some("RequestTimeTooSkewed");
            OriginError::Denied { origin, place, status, advice: if skewed { CLOCK_ADVICE } else { ADVICE } }
        }
        Some(status @ (429 | 503)) => OriginError::Busy { origin, place, status, retry_after: None },
        Some(status @ 400..=499) if status != 408 => {
            OriginError::Refused { origin, id: want.id.clone(), place, status }
        }
        _ => want.failed(chain(error)),
    }
}
