//! `kasmina publish`: a kernel from a file to where daemons find it.

use std::path::PathBuf;

use super::{
    CliError, Exit,
    parent::{inherit, parent_of},
    sign::read_key,
    subject::{Subject, SubjectOptions},
    table::{say, say_json},
    validate,
};
use crate::{
    config::OriginKind,
    digest::Digest,
    id::KernelId,
    origin::{Destination, Publication, UrzaOptions, publish_to_folder, publish_to_urza},
    validation::{self, Metadata, Policy, Status, Verdict},
};

/// What to publish where.
#[derive(Debug)]
pub struct PublishOptions {
    /// The artifact, and the settings: `[validator]` decides, `[origin]` says how to reach things.
    pub subject: SubjectOptions,
    /// The kernel's id.
    pub name: KernelId,
    /// The blueprint it is of; without one, its entry's or its parent's, else one of the kernel's own name.
    pub blueprint: Option<KernelId>,
    /// A private key to sign with.
    pub key: Option<PathBuf>,
    /// `s3://bucket/prefix` or a folder; without one, the folder of a directory origin.
    pub to: Option<String>,
    /// Urza's address; without one, the first of the settings where their origin is Urza.
    pub urza: Option<String>,
    /// Whether to print JSON.
    pub json: bool,
}

/// Judges the artifact, stores its bytes, registers it, and prints id and digest: 0 published or there
/// already, 1 rejected.
///
/// # Errors
/// [`CliError`] when the file cannot be read, other bytes have the name, or a server does not take it.
pub fn publish(options: &PublishOptions) -> Result<Exit, CliError> {
    let subject = Subject::open(&options.subject)?;
    let config = &options.subject.config;
    let policy = Policy::from(&config.validator);
    let Some(bytes) = subject.bytes.clone() else {
        return refuse(options, &subject.judge(&policy));
    };
    let digest = Digest::of(&bytes);
    let metadata = match parent_of(&options.subject.file, &digest)? {
        Some(parent) => inherit(subject.metadata, parent),
        None => subject.metadata,
    };
    let signature = match &options.key {
        Some(path) => Some(read_key(path)?.sign(&digest).to_string()),
        None => metadata.signature,
    };
    // It becomes a part of an address: what is no id is passed over.
    let known = metadata.blueprint_id.as_deref().and_then(|known| known.parse().ok());
    let blueprint = options.blueprint.clone().or(known).unwrap_or_else(|| options.name.clone()).to_string();
    let described = Metadata {
        blueprint_id: Some(blueprint),
        status: Status::Validated,
        compilation_pipeline: Some("kasmina-publish".to_owned()),
        checksum: Some(digest),
        signature,
        id: options.name.clone(),
        kernel_binary_ref: None,
        ..metadata
    };
    let verdict = validation::validate(bytes.clone(), Some(&described), &policy).verdict;
    if !verdict.accepted {
        return refuse(options, &verdict);
    }
    let metadata = Metadata {
        input_shape: verdict.input_shape.clone().or(described.input_shape),
        output_shape: verdict.output_shape.clone().or(described.output_shape),
        parameter_count: Some(verdict.parameters),
        ..described
    };
    let ending = if verdict.format.as_deref() == Some("pt2") { "pt2" } else { "pt" };
    let publication = Publication { metadata, bytes, digest, ending };

    let mut urza = UrzaOptions::from(config);
    match &options.urza {
        Some(address) => urza.endpoints = vec![address.clone()],
        None if config.origin.kind == OriginKind::Urza => {}
        None => urza.endpoints.clear(),
    }
    let to = destination(options)?;
    let published = match &to {
        Destination::Folder(folder) if urza.endpoints.is_empty() => publish_to_folder(folder, &publication)?,
        Destination::S3 { .. } if urza.endpoints.is_empty() => {
            return Err(CliError::usage("nobody would find it in the bucket: give --urza URL too"));
        }
        to => runtime()?.block_on(publish_to_urza(&urza, to, &publication))?,
    };
    if options.json {
        say_json(&published)?;
    } else {
        let word = if published.new { "published" } else { "is there already" };
        say(&format!(
            "{} {word}\n  sha256     {}\n  reference  {}\n",
            published.id, published.digest, published.reference
        ));
        if let Some(parent) = &publication.metadata.parent_kernel_id {
            say(&format!("  trained    from {parent}\n"));
        }
    }
    Ok(Exit::Ok)
}

/// Prints why not.
fn refuse(options: &PublishOptions, verdict: &Verdict) -> Result<Exit, CliError> {
    let file = options.subject.file.display().to_string();
    match options.json {
        true => say_json(verdict)?,
        false => say(&validate::report(&file, verdict)),
    }
    Ok(validate::exit(verdict))
}

fn destination(options: &PublishOptions) -> Result<Destination, CliError> {
    let origin = &options.subject.config.origin;
    match options.to.as_deref() {
        Some(text) => match text.strip_prefix("s3://") {
            Some(rest) => {
                let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
                if bucket.is_empty() {
                    return Err(CliError::usage("write --to s3://bucket/prefix"));
                }
                Ok(Destination::S3 { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
            }
            None if text.contains("://") => {
                Err(CliError::usage(format!("--to {text}: write s3://bucket/prefix or a folder")))
            }
            None => Ok(Destination::Folder(text.into())),
        },
        None if origin.kind == OriginKind::Directory && options.urza.is_none() => {
            Ok(Destination::Folder(origin.path.clone()))
        }
        None => Err(CliError::usage("say where the bytes go: --to s3://bucket/prefix or --to FOLDER")),
    }
}

/// A runtime of this thread's own.
pub(super) fn runtime() -> Result<tokio::runtime::Runtime, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| CliError::usage(format!("no runtime can be made: {error}")))
}
