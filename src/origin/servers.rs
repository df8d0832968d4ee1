//! Servers that the origin's tests start in this process: the stand-in, S3, and one that misbehaves to order.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::{GuardPolicy, S3Options, StandIn, UrzaOptions, UrzaOrigin};
use crate::{
    backoff::Backoff,
    clock::ManualClock,
    config::Config,
    guard::{BreakerPolicy, RetryPolicy},
};

const ANYWHERE: ([u8; 4], u16) = ([127, 0, 0, 1], 0);

/// The stand-in over `folder`.
pub(super) async fn stand_in(folder: &Path) -> SocketAddr {
    let server = StandIn::bind(folder, ANYWHERE.into(), false).await.unwrap();
    let address = server.address();
    tokio::spawn(server.serve(std::future::pending()));
    address
}

/// An S3 server with `folder`'s subfolders as buckets, and how to reach it; keys are written to `credentials`.
pub(super) async fn s3(folder: &Path, credentials: &Path) -> S3Options {
    let mut builder = s3s::service::S3ServiceBuilder::new(s3s_fs::FileSystem::new(folder).unwrap());
    builder.set_auth(s3s::auth::SimpleAuth::from_single("ACCESS", "SECRET"));
    let service = builder.build();
    let listener = TcpListener::bind(SocketAddr::from(ANYWHERE)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service.clone();
            tokio::spawn(async move {
                let server =
                    hyper_util::server::conn::auto::Builder::new(hyper_util::rt::TokioExecutor::new());
                let stream = hyper_util::rt::TokioIo::new(stream);
                let _ = server.serve_connection(stream, service).await;
            });
        }
    });
    let text = "[team]\naws_access_key_id = ACCESS\naws_secret_access_key = SECRET\n";
    std::fs::write(credentials, text).unwrap();
    S3Options {
        endpoint: format!("http://{address}"),
        region: String::new(),
        path_style: true,
        credentials_file: credentials.to_owned(),
        profile: "team".to_owned(),
        anonymous: false,
        part_bytes: 1000,
        parallel_parts: 3,
    }
}

/// How an answer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Close,
    /// As when the peer's process dies.
    Reset,
    /// Nothing more, ever.
    Hang,
    /// The last bytes again and again, one at a time.
    Drip,
    /// The last bytes again and again, as fast as they go.
    Flood,
}

/// An answer on the wire.
pub(super) struct Reply(pub(super) Vec<u8>, pub(super) End);

impl Reply {
    /// Status line, headers and body, well-formed.
    pub(super) fn ok(status: &str, headers: &str, body: &[u8]) -> Self {
        let length = body.len();
        Self::raw(
            &format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n{headers}\r\n"),
            body,
            End::Close,
        )
    }

    pub(super) fn raw(head: &str, body: &[u8], end: End) -> Self {
        Self([head.as_bytes(), body].concat(), end)
    }
}

/// A server that answers as the script says.
pub(super) struct Scripted {
    pub(super) address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Scripted {
    /// `script` gets the request's number and its head.
    pub(super) async fn start(script: impl Fn(usize, &str) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(SocketAddr::from(ANYWHERE)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::<Mutex<Vec<String>>>::default();
        let (seen, script, count) = (requests.clone(), Arc::new(script), Arc::new(AtomicUsize::new(0)));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (seen, script, count) = (seen.clone(), script.clone(), count.clone());
                tokio::spawn(async move {
                    let mut stream = stream;
                    let Some(head) = read_head(&mut stream).await else { return };
                    let n = count.fetch_add(1, Ordering::SeqCst);
                    let reply = script(n, &head);
                    seen.lock().unwrap().push(head);
                    answer(stream, reply).await;
                });
            }
        });
        Self { address, requests }
    }

    /// The heads of the requests so far.
    pub(super) fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }

    pub(super) fn api(&self) -> String {
        api(self.address)
    }
}

/// TLS before a server, as the certificates in `folder` have it: for `localhost`.
pub(super) async fn behind_tls(server: SocketAddr, folder: &Path) -> SocketAddr {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let chain = CertificateDer::pem_file_iter(folder.join("server.pem")).unwrap().map(Result::unwrap);
    let key = PrivateKeyDer::from_pem_file(folder.join("server.key")).unwrap();
    let config = rustls::ServerConfig::builder().with_no_client_auth();
    let config = config.with_single_cert(chain.collect(), key).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind(SocketAddr::from(ANYWHERE)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut client) = acceptor.accept(stream).await else { return };
                let mut server = TcpStream::connect(server).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    address
}

pub(super) fn api(address: SocketAddr) -> String {
    format!("http://{address}/api/v1")
}

async fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8_lossy(&head).into_owned())
}

async fn answer(mut stream: TcpStream, Reply(bytes, end): Reply) {
    if stream.write_all(&bytes).await.is_err() {
        return;
    }
    let last = bytes.last().copied().unwrap_or_default();
    match end {
        End::Close => drop(stream.shutdown().await),
        End::Reset => {
            let _ = stream.set_zero_linger();
        }
        End::Hang => std::future::pending().await,
        End::Drip => {
            let mut tick = tokio::time::interval(Duration::from_millis(2));
            while stream.write_all(&[last]).await.is_ok() {
                tick.tick().await;
            }
        }
        End::Flood => while stream.write_all(&[last; 4096]).await.is_ok() {},
    }
}

/// More than anything takes that is answered at all, on a machine with much to do.
const PATIENCE: Duration = Duration::from_secs(60);

/// As [`options`], for servers that do not answer: for what is waited for in vain.
pub(super) fn hasty(endpoints: Vec<String>) -> UrzaOptions {
    let patient = options(endpoints);
    UrzaOptions {
        stall_timeout: Duration::from_millis(300),
        blob_timeout: Duration::from_secs(3),
        policy: GuardPolicy { timeout: Duration::from_millis(500), ..patient.policy },
        ..patient
    }
}

/// An origin's options for tests: small, and nothing allowed but the endpoints.
pub(super) fn options(endpoints: Vec<String>) -> UrzaOptions {
    let backoff =
        Backoff { first: Duration::from_millis(1), max: Duration::from_millis(5), ..Backoff::default() };
    UrzaOptions {
        endpoints,
        max_artifact_bytes: 10_000,
        max_entry_bytes: 10_000,
        stall_timeout: PATIENCE,
        blob_timeout: PATIENCE,
        policy: GuardPolicy {
            timeout: PATIENCE,
            retry: RetryPolicy { attempts: 3, backoff },
            breaker: BreakerPolicy::default(),
        },
        ..UrzaOptions::from(&Config::default())
    }
}

pub(super) fn origin(options: UrzaOptions) -> UrzaOrigin {
    UrzaOrigin::new(options, Arc::new(ManualClock::default())).unwrap()
}
