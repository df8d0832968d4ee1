//! Connections: few at a time, one request each, none for long.

use std::{
    io, net::TcpListener as StdTcp, os::unix::net::UnixListener as StdUnix, sync::Arc, thread, time::Duration,
};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
};

use super::routes::{Probe, router};

/// Connections at a time; one more waits until one of them ends.
const CONNECTIONS: usize = 16;

/// The longest that a client may take to send a request's head.
const HEADER_LIMIT: Duration = Duration::from_secs(5);

/// The longest that a connection may live.
const CONNECTION_LIMIT: Duration = Duration::from_secs(20);

/// The largest head of a request.
const HEADER_BYTES: usize = 16 << 10;

/// How long nothing is accepted after the system refused to: it is short of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What is listened on.
#[derive(Debug)]
pub enum Socket {
    /// An address and a port.
    Tcp(StdTcp),
    /// A Unix socket.
    Unix(StdUnix),
}

pub(super) enum Accepting {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// The server, on a thread and a runtime of its own: it answers in time where the control plane does not. Ends
/// when dropped, with what is under way.
#[derive(Debug)]
pub struct HttpServer {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl HttpServer {
    /// Begins to serve.
    ///
    /// # Errors
    /// The system's, where it gives no thread or no runtime.
    pub fn start(socket: Socket, probe: Probe) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let accepting = {
            let _within = runtime.enter();
            match socket {
                Socket::Tcp(listener) => {
                    listener.set_nonblocking(true)?;
                    Accepting::Tcp(TcpListener::from_std(listener)?)
                }
                Socket::Unix(listener) => {
                    listener.set_nonblocking(true)?;
                    Accepting::Unix(UnixListener::from_std(listener)?)
                }
            }
        };
        let (stop, stopped) = oneshot::channel();
        let thread = thread::Builder::new().name("kasmina-http".to_owned()).spawn(move || {
            runtime.block_on(async move {
                tokio::select! {
                    () = accept(accepting, router(probe)) => {}
                    // Dropped is as good as told.
                    _ = stopped => {}
                }
            });
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            // One that has panicked has said so.
            let _ = thread.join();
        }
    }
}

pub(super) async fn accept(listener: Accepting, router: Router) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let accepted = match &listener {
            Accepting::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                tokio::spawn(serve(stream, router.clone(), place));
            }),
            Accepting::Unix(listener) => listener.accept().await.map(|(stream, _)| {
                tokio::spawn(serve(stream, router.clone(), place));
            }),
        };
        if let Err(error) = accepted {
            tracing::warn!(%error, "cannot accept a connection for metrics");
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
    }
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    router: Router,
    place: OwnedSemaphorePermit,
) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEADER_LIMIT)
        .max_buf_size(HEADER_BYTES)
        // A client that keeps its connection would keep its place.
        .keep_alive(false);
    let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    match tokio::time::timeout(CONNECTION_LIMIT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "connection for metrics ended"),
        Err(_) => tracing::debug!("connection for metrics took too long"),
    }
    drop(place);
}
