//! `[origin]`: where kernels come from, and how patient the daemon is with it.

use std::{path::PathBuf, time::Duration};

use super::{breaker::Breaker, section::section, setting::words, units::ByteSize};

/// The kind of origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OriginKind {
    /// A local directory with one artifact and one metadata file a kernel.
    Directory,
    /// A REST catalogue with blobs elsewhere.
    Urza,
}

words!(OriginKind { Directory = "directory", Urza = "urza" });

section! {
    /// Where kernels come from.
    Origin in "origin" {
        /// The kind of origin.
        kind: OriginKind = OriginKind::Directory, "directory or urza", Restart;
        /// The directory that holds the kernels.
        path: PathBuf = PathBuf::from("/var/lib/kasmina/kernels"), "path", Restart;
        /// Whether kernels in status `testing` are accepted; `invalid` ones never are.
        accept_testing: bool = false, "true or false", Restart;
        /// How long one attempt may take; for urza at the catalogue entry.
        timeout: Duration = Duration::from_secs(10), "time", Restart;
    }
    sections {
        /// The catalogue.
        urza: OriginUrza;
        /// What its entries may refer to.
        blob: OriginBlob;
        /// Blobs in S3.
        s3: OriginS3;
        /// When to stop asking for a while.
        breaker: Breaker;
        /// How often to ask again.
        retry: OriginRetry;
    }
}

section! {
    /// Attempts within one fetch, with jittered exponential delay between them.
    OriginRetry in "origin.retry" {
        /// Attempts in all; 1 never asks again.
        attempts: u32 = 3, "attempts", Restart;
        /// The delay before the second attempt; it doubles from there.
        base_delay: Duration = Duration::from_millis(100), "time", Restart;
        /// The longest delay.
        max_delay: Duration = Duration::from_secs(2), "time", Restart;
    }
}

section! {
    /// Urza's catalogue.
    OriginUrza in "origin.urza" {
        /// The servers of the catalogue, asked in this order, each a URL that ends in /api/v1.
        endpoints: Vec<String> = Vec::new(), "list of URLs", Restart;
        /// The file that holds a bearer token; empty is no token.
        token_file: PathBuf = PathBuf::new(), "path", Restart;
        /// Certificate authorities to trust beside the system's, as PEM.
        ca_file: PathBuf = PathBuf::new(), "path", Restart;
        /// The largest catalogue entry.
        max_entry_bytes: ByteSize = ByteSize::mib(1), "bytes", Restart;
    }
}

section! {
    /// What a catalogue's entries may refer to, and the limits of a download.
    OriginBlob in "origin.blob" {
        /// Hosts for http and https, beside the endpoints' own: host, host:port or *.domain.
        allowed_hosts: Vec<String> = Vec::new(), "list of hosts", Restart;
        /// Buckets for s3: bucket, or bucket/prefix.
        allowed_buckets: Vec<String> = Vec::new(), "list of buckets", Restart;
        /// Folders for file.
        allowed_folders: Vec<PathBuf> = Vec::new(), "list of paths", Restart;
        /// Whether allowed hosts may have addresses of private networks and of this machine.
        allow_private_addresses: bool = false, "true or false", Restart;
        /// Redirects of one download.
        max_redirects: u32 = 3, "redirects", Restart;
        /// How long no byte may come.
        stall_timeout: Duration = Duration::from_secs(10), "time", Restart;
        /// How long one download may take, with its retries.
        timeout: Duration = Duration::from_secs(120), "time", Restart;
    }
}

section! {
    /// Blobs in S3.
    OriginS3 in "origin.s3" {
        /// The server's URL; empty is Amazon's.
        endpoint: String = String::new(), "URL", Restart;
        /// The region; empty is what the environment says.
        region: String = String::new(), "text", Restart;
        /// Whether the bucket stands in the path, as most other servers need it.
        path_style: bool = false, "true or false", Restart;
        /// A file of credentials in Amazon's form; empty is the usual chain of environment, files and
        /// instance.
        credentials_file: PathBuf = PathBuf::new(), "path", Restart;
        /// The profile in that file.
        profile: String = "default".to_owned(), "text", Restart;
        /// Whether to ask without credentials, as public buckets allow.
        anonymous: bool = false, "true or false", Restart;
        /// Larger blobs are read in parts of this size.
        part_size: ByteSize = ByteSize::mib(8), "bytes", Restart;
        /// Parts read at a time.
        parallel_parts: u32 = 4, "parts", Restart;
    }
}
