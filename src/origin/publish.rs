//! Publishing: the bytes to a folder or to S3, then the entry to the folder or to Urza, and the same again
//! without harm.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use reqwest::{StatusCode, Url};
use serde_json::{Value, json};

use super::{
    OriginError, UrzaOptions,
    catalogue::headers,
    s3::S3,
    stand_in::{Added, add},
    want::Want,
    web::{Asker, Web, answered, failed},
};
use crate::{
    digest::Digest,
    fault::{ErrorClass, Fault},
    id::KernelId,
    validation::{Metadata, Status},
};

const ORIGIN: &str = "urza";
const ADVICE: &str = "check the token in origin.urza.token_file";
const MAX_ANSWER_BYTES: usize = 1 << 20;

/// Where the bytes go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// Below a folder.
    Folder(PathBuf),
    /// Into a bucket, below a prefix, which may be empty.
    S3 {
        /// The bucket.
        bucket: String,
        /// What keys begin with.
        prefix: String,
    },
}

/// What is published.
#[derive(Clone, Debug)]
pub struct Publication {
    /// The entry, with checksum and without a reference.
    pub metadata: Metadata,
    /// The artifact.
    pub bytes: Arc<[u8]>,
    /// Its SHA-256.
    pub digest: Digest,
    /// Its file ending, `pt2` or `pt`.
    pub ending: &'static str,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Published {
    /// The kernel.
    pub id: KernelId,
    /// SHA-256 of its bytes.
    pub digest: Digest,
    /// Where its bytes are.
    pub reference: String,
    /// Whether it was not there before.
    pub new: bool,
}

/// Why a kernel is not published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// Kernels are immutable.
    #[error("kernel {id} is published already, with {published}: give these bytes another name")]
    Taken {
        /// Which.
        id: KernelId,
        /// What is known of the other bytes.
        published: String,
    },
    /// A file cannot be written.
    #[error("{path}: {source}", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The settings do not go together.
    #[error("{reason}")]
    Settings {
        /// What is wrong and what to do.
        reason: String,
    },
    /// Urza does not take it.
    #[error("{place} answered {status}: {text}")]
    Answer {
        /// The address.
        place: String,
        /// The HTTP status.
        status: u16,
        /// What it says.
        text: String,
    },
    /// Urza or S3 failed.
    #[error(transparent)]
    Origin(#[from] OriginError),
}

impl Fault for PublishError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::File { .. } | Self::Answer { status: 500.., .. } => ErrorClass::Unavailable,
            Self::Taken { .. } | Self::Settings { .. } | Self::Answer { .. } => ErrorClass::Invalid,
            Self::Origin(error) => error.class(),
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Taken { .. } => "publish.taken",
            Self::Settings { .. } | Self::File { .. } => "cli.usage",
            Self::Answer { .. } => "origin.unavailable",
            Self::Origin(error) => error.code(),
        }
    }
}

/// Publishes into a folder, where a directory origin or the stand-in finds it.
///
/// # Errors
/// [`PublishError::Taken`] where other bytes have the name; else what the system says.
///
/// Blocking: reads and writes files.
pub fn publish_to_folder(folder: &Path, publication: &Publication) -> Result<Published, PublishError> {
    let id = &publication.metadata.id;
    let entry = folder.join(format!("{id}.json"));
    let there = |published: &Metadata| same(published, publication);
    if let Some(published) = read_entry(&entry)? {
        return there(&published);
    }
    let reference = write_blob(folder, publication)?;
    let metadata = Metadata { kernel_binary_ref: Some(reference.clone()), ..publication.metadata.clone() };
    let json = format!("{:#}\n", report(&metadata));
    let added = add(folder, &format!("{id}.json"), json.as_bytes()).map_err(file(&entry))?;
    match (added, read_entry(&entry)?) {
        // Somebody else was faster.
        (Added::There, Some(published)) => there(&published),
        _ => Ok(Published { id: id.clone(), digest: publication.digest, reference, new: true }),
    }
}

/// Publishes the bytes to `to` and the entry to the first Urza of those that `options` name which answers.
///
/// # Errors
/// [`PublishError::Taken`] where other bytes have the name; else what a server or the system says.
pub async fn publish_to_urza(
    options: &UrzaOptions,
    to: &Destination,
    publication: &Publication,
) -> Result<Published, PublishError> {
    let (urza, published) = Urza::answering(options, &publication.metadata.id).await?;
    if let Some(published) = published {
        return same(&published, publication);
    }
    let reference = upload(options, to, publication).await?;
    let metadata = Metadata { kernel_binary_ref: Some(reference.clone()), ..publication.metadata.clone() };
    urza.add_blueprint(metadata.blueprint_id.as_deref().unwrap_or_default()).await?;
    match urza.post("internal/v1/kernels", &report(&metadata)).await {
        Ok(()) => {
            let id = metadata.id;
            Ok(Published { id, digest: publication.digest, reference, new: true })
        }
        // The original has one answer for "exists" and for everything else; only looking tells them apart.
        Err(error) => match urza.kernel().await? {
            Some(published) => same(&published, publication),
            None => Err(error),
        },
    }
}

/// The entry as Urza's contract has it: the description within the report, which every server keeps.
fn report(metadata: &Metadata) -> Value {
    let described = serde_json::from_str::<Value>(&metadata.to_json()).unwrap_or_default();
    json!({
        "id": metadata.id,
        "blueprint_id": metadata.blueprint_id,
        "status": metadata.status,
        "compilation_pipeline": metadata.compilation_pipeline,
        "kernel_binary_ref": metadata.kernel_binary_ref,
        "validation_report": described["metadata"],
    })
}

/// The same bytes again are no error, others are.
fn same(published: &Metadata, publication: &Publication) -> Result<Published, PublishError> {
    let id = published.id.clone();
    if published.status == Status::Invalid {
        let published = "status invalid, which no daemon takes".to_owned();
        return Err(PublishError::Taken { id, published });
    }
    if published.checksum == Some(publication.digest) {
        let reference = published.kernel_binary_ref.clone().unwrap_or_default();
        return Ok(Published { id, digest: publication.digest, reference, new: false });
    }
    let published = match published.checksum {
        Some(digest) => format!("other bytes, SHA-256 {digest}"),
        None => "no checksum to compare".to_owned(),
    };
    Err(PublishError::Taken { id, published })
}

/// By the digest, so that of two who publish different bytes under one name neither writes over the other's: the
/// entry alone decides who was first.
fn blob_name(publication: &Publication) -> String {
    format!("kernels/{}/{}.{}", publication.metadata.id, publication.digest, publication.ending)
}

/// Writes the bytes below a folder and gives their name within it.
fn write_blob(folder: &Path, publication: &Publication) -> Result<String, PublishError> {
    let name = blob_name(publication);
    let path = folder.join(&name);
    let parent = path.parent().unwrap_or(folder);
    std::fs::create_dir_all(parent).map_err(file(parent))?;
    let last = path.file_name().and_then(|last| last.to_str()).unwrap_or_default();
    // No entry refers to what may lie there from a publication that was cut off.
    if add(parent, last, &publication.bytes).map_err(file(&path))? == Added::There
        && std::fs::read(&path).map_err(file(&path))? != *publication.bytes
    {
        std::fs::remove_file(&path).map_err(file(&path))?;
        add(parent, last, &publication.bytes).map_err(file(&path))?;
    }
    Ok(name)
}

fn read_entry(path: &Path) -> Result<Option<Metadata>, PublishError> {
    let malformed = |error: &dyn std::fmt::Display| PublishError::Settings {
        reason: format!("{}: {error}: correct or remove it", path.display()),
    };
    match std::fs::read(path) {
        Ok(json) => Metadata::from_json(&json).map(Some).map_err(|error| malformed(&error)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(file(path)(error)),
    }
}

fn file(path: &Path) -> impl FnOnce(io::Error) -> PublishError + '_ {
    move |source| PublishError::File { path: path.to_owned(), source }
}

async fn upload(
    options: &UrzaOptions,
    to: &Destination,
    publication: &Publication,
) -> Result<String, PublishError> {
    match to {
        Destination::Folder(folder) => {
            let folder = std::path::absolute(folder).map_err(file(folder))?;
            let (target, publication) = (folder.clone(), publication.clone());
            let written = tokio::task::spawn_blocking(move || write_blob(&target, &publication)).await;
            let name = written.map_err(|error| file(&folder)(io::Error::other(error)))??;
            Ok(format!("file://{}", folder.join(name).display()))
        }
        Destination::S3 { bucket, prefix } => {
            let prefix = prefix.trim_matches('/');
            let name = blob_name(publication);
            let key = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
            let reference = format!("s3://{bucket}/{key}");
            let want = Want {
                origin: "s3",
                id: &publication.metadata.id,
                reference: &reference,
                limit_bytes: options.max_artifact_bytes,
                // The whole is sent before the first byte of the answer comes.
                stall: options.blob_timeout,
                budget: None,
            };
            S3::new(options.s3.clone()).write(&want, bucket, &key, &publication.bytes).await?;
            Ok(reference)
        }
    }
}

/// One server of Urza, as the publisher of one kernel sees it.
struct Urza<'a> {
    web: Web,
    root: String,
    id: &'a KernelId,
    token_file: &'a Path,
    timeout: Duration,
}

impl<'a> Urza<'a> {
    /// The first server that answers, and what it has under the name. Copies of one catalogue share what is
    /// published to any of them.
    async fn answering(
        options: &'a UrzaOptions,
        id: &'a KernelId,
    ) -> Result<(Self, Option<Metadata>), PublishError> {
        let mut failure = None;
        for endpoint in &options.endpoints {
            let urza = Self::new(options, endpoint, id)?;
            match urza.kernel().await {
                Ok(published) => return Ok((urza, published)),
                Err(error) if error.class() == ErrorClass::Unavailable => failure = failure.or(Some(error)),
                Err(error) => return Err(error),
            }
        }
        let nobody = || PublishError::Settings { reason: "name Urza's address".to_owned() };
        Err(failure.unwrap_or_else(nobody))
    }

    fn new(options: &'a UrzaOptions, endpoint: &str, id: &'a KernelId) -> Result<Self, PublishError> {
        let settings = |reason: String| PublishError::Settings { reason };
        let root = endpoint.trim_end_matches('/').trim_end_matches("/api/v1").to_owned();
        let web = Web::new(Arc::new(options.allow()), &options.ca_file, 0).map_err(settings)?;
        Ok(Self { web, root, id, token_file: &options.token_file, timeout: options.policy.timeout })
    }

    fn asker(&self) -> Asker<'a> {
        Asker { origin: ORIGIN, id: self.id, advice: ADVICE }
    }

    fn url(&self, path: &str) -> Result<Url, PublishError> {
        let place = format!("{}/{path}", self.root);
        let wrong = |error| PublishError::Settings { reason: format!("{place} is no address: {error}") };
        Url::parse(&place).map_err(wrong)
    }

    /// The answer's status and text, whatever it is.
    async fn ask(&self, path: &str, body: Option<&Value>) -> Result<(StatusCode, Vec<u8>), PublishError> {
        let (url, asker) = (self.url(path)?, self.asker());
        let headers = headers(self.token_file).await.map_err(|reason| PublishError::Settings { reason })?;
        let call = async {
            let mut response = match body {
                None => self.web.get(&url, headers, asker).await?,
                Some(body) => self.web.post(&url, headers, body, asker).await?,
            };
            if matches!(response.status().as_u16(), 300..=403) {
                return Err(answered(&response, &url, asker));
            }
            let mut text = Vec::new();
            while let Some(piece) = response.chunk().await.map_err(|error| failed(error, &url, asker))? {
                text.extend_from_slice(&piece);
                if text.len() > MAX_ANSWER_BYTES {
                    let (what, limit_bytes) = ("the answer", MAX_ANSWER_BYTES as u64);
                    return Err(OriginError::TooLarge { id: self.id.clone(), what, limit_bytes });
                }
            }
            Ok((response.status(), text))
        };
        let (origin, limit) = (ORIGIN.to_owned(), self.timeout);
        let timed_out = OriginError::TimedOut { origin, limit, setting: "origin.timeout" };
        Ok(tokio::time::timeout(self.timeout, call).await.unwrap_or(Err(timed_out))?)
    }

    fn refusal(&self, path: &str, status: StatusCode, text: &[u8]) -> PublishError {
        let text: String = String::from_utf8_lossy(text).chars().take(300).collect();
        PublishError::Answer { place: format!("{}/{path}", self.root), status: status.as_u16(), text }
    }

    async fn kernel(&self) -> Result<Option<Metadata>, PublishError> {
        let path = format!("api/v1/kernels/{}", self.id);
        match self.ask(&path, None).await? {
            (StatusCode::OK, json) => {
                let entry = Metadata::from_json(&json);
                let (origin, id) = (ORIGIN.to_owned(), self.id.clone());
                Ok(Some(entry.map_err(|source| OriginError::Entry { origin, id, source })?))
            }
            (StatusCode::NOT_FOUND, _) => Ok(None),
            (status, text) => Err(self.refusal(&path, status, &text)),
        }
    }

    async fn post(&self, path: &str, body: &Value) -> Result<(), PublishError> {
        match self.ask(path, Some(body)).await? {
            (status, _) if status.is_success() => Ok(()),
            (status, text) => Err(self.refusal(path, status, &text)),
        }
    }

    /// Makes the blueprint unless it is there.
    async fn add_blueprint(&self, blueprint: &str) -> Result<(), PublishError> {
        let path = format!("api/v1/blueprints/{blueprint}");
        if self.ask(&path, None).await?.0 == StatusCode::OK {
            return Ok(());
        }
        let body =
            json!({"id": blueprint, "architecture_ir": {}, "metadata": {"made_by": "kasmina publish"}});
        let made = self.post("api/v1/blueprints", &body).await;
        match made {
            Ok(()) => Ok(()),
            Err(_) if self.ask(&path, None).await?.0 == StatusCode::OK => Ok(()),
            // A server without that address can only be found out about by going on.
            Err(PublishError::Answer { status: 409 | 500, .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
