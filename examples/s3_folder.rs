//! Serves a folder as S3, to try `[origin.s3]` and `kasmina publish --to s3://…` on one machine:
//!
//! ```text
//! mkdir -p /tmp/s3/kernels
//! printf '[default]\naws_access_key_id = me\naws_secret_access_key = secret\n' > /tmp/s3-keys
//! cargo run --example s3_folder -- --dir /tmp/s3 --credentials-file /tmp/s3-keys --listen 127.0.0.1:9000
//! ```
//!
//! The folder's subfolders are the buckets. It is no store for a cluster: it knows a single pair of keys, whose
//! holder may do everything, and speaks no TLS.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::Context as _;
use clap::Parser;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use s3s::{auth::SimpleAuth, service::S3ServiceBuilder};
use s3s_fs::FileSystem;
use tokio::net::TcpListener;

#[derive(Parser)]
struct Options {
    /// The folder whose subfolders are the buckets.
    #[arg(long)]
    dir: PathBuf,
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:9000")]
    listen: SocketAddr,
    /// The keys that clients must have, in Amazon's form: the file that origin.s3.credentials_file names.
    #[arg(long)]
    credentials_file: PathBuf,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let text = std::fs::read_to_string(&options.credentials_file)
        .with_context(|| format!("cannot read {}", options.credentials_file.display()))?;
    let files = FileSystem::new(&options.dir)
        .map_err(|error| anyhow::anyhow!("cannot serve {}: {error:?}", options.dir.display()))?;
    let mut service = S3ServiceBuilder::new(files);
    service.set_auth(SimpleAuth::from_single(
        setting(&text, "aws_access_key_id")?,
        setting(&text, "aws_secret_access_key")?,
    ));
    let service = service.build();
    let listener = TcpListener::bind(options.listen)
        .await
        .with_context(|| format!("cannot listen on {}", options.listen))?;
    eprintln!("{} is served as S3 at http://{}", options.dir.display(), listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        let service = service.clone();
        tokio::spawn(async move {
            let server = auto::Builder::new(TokioExecutor::new());
            // A client that goes away is its own affair.
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

/// The first value of that name, whichever profile it stands in.
fn setting<'a>(text: &'a str, name: &str) -> anyhow::Result<&'a str> {
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    let mut values = pairs.filter(|(key, _)| key.trim() == name).map(|(_, value)| value.trim());
    values.next().with_context(|| format!("the credentials file has no {name}"))
}
