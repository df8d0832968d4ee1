//! The routes of the stand-in.

use std::{io, net::SocketAddr, path::Path};

use axum::{
    Json, Router,
    body::Body,
    extract::{DefaultBodyLimit, Path as Segment, State, rejection::JsonRejection},
    http::{HeaderMap, Method, Response, StatusCode, header},
    response::IntoResponse,
    routing::{get, post},
    serve::ListenerExt as _,
};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::{
    blob,
    store::{Added, Store},
};
use crate::{
    fault::{ErrorClass, Fault},
    id::KernelId,
    validation::Metadata,
};

/// The largest body of a request; blobs are not among them.
const MAX_BODY_BYTES: usize = 1 << 20;

/// Why the stand-in cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum StandInError {
    /// Others could reach it, and it asks nobody who he is.
    #[error(
        "{address} can be reached from other machines, and there is no password: use 127.0.0.1, or give --allow-remote"
    )]
    Remote {
        /// The address.
        address: SocketAddr,
    },
    /// The folder cannot be used.
    #[error("folder {folder}: {source}")]
    Folder {
        /// The folder.
        folder: String,
        /// What the system says.
        source: io::Error,
    },
    /// The address cannot be listened on, or the server failed.
    #[error("{address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
}

impl Fault for StandInError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Remote { .. } => ErrorClass::Invalid,
            Self::Folder { .. } | Self::Listen { .. } => ErrorClass::Unavailable,
        }
    }

    fn code(&self) -> &'static str {
        "cli.usage"
    }
}

/// A stand-in that listens.
#[derive(Debug)]
pub struct StandIn {
    listener: TcpListener,
    address: SocketAddr,
    store: Store,
}

impl StandIn {
    /// Listens on `address`, with `folder` made where it is missing.
    ///
    /// # Errors
    /// [`StandInError`] where the address is not this machine's own and `allow_remote` is not set, or the
    /// system refuses.
    pub async fn bind(folder: &Path, address: SocketAddr, allow_remote: bool) -> Result<Self, StandInError> {
        if !address.ip().is_loopback() && !allow_remote {
            return Err(StandInError::Remote { address });
        }
        let store = Store::open(folder)
            .map_err(|source| StandInError::Folder { folder: folder.display().to_string(), source })?;
        let failed = |source| StandInError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address, store })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `end`, and what is under way then to its end.
    ///
    /// # Errors
    /// [`StandInError::Listen`] when the system fails.
    pub async fn serve(self, end: impl Future<Output = ()> + Send + 'static) -> Result<(), StandInError> {
        let (address, router) = (self.address, router(self.store));
        // An answer's last piece would else wait for the acknowledgement of the one before, 40 ms.
        let listener = self.listener.tap_io(|stream| {
            let _ = stream.set_nodelay(true);
        });
        let served = axum::serve(listener, router).with_graceful_shutdown(end).await;
        served.map_err(|source| StandInError::Listen { address, source })
    }
}

fn router(store: Store) -> Router {
    Router::new()
        .route("/api/v1/kernels", get(list))
        .route("/api/v1/kernels/{id}", get(kernel))
        .route("/api/v1/blueprints", post(add_blueprint))
        .route("/api/v1/blueprints/{id}", get(blueprint))
        .route("/internal/v1/kernels", post(add_kernel))
        .route("/blobs/{*name}", get(blob))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(store)
}

/// An answer that is no success, in the form the original gives it.
struct Refusal(StatusCode, String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response<Body> {
        (self.0, Json(json!({"detail": self.1}))).into_response()
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    }
}

impl From<JsonRejection> for Refusal {
    fn from(rejection: JsonRejection) -> Self {
        Self(rejection.status(), rejection.body_text())
    }
}

fn missing(what: &str, id: &str) -> Refusal {
    Refusal(StatusCode::NOT_FOUND, format!("no {what} {id}"))
}

/// The address by which this client reaches the server, from its own request.
fn base(headers: &HeaderMap) -> String {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    format!("http://{}", host.unwrap_or("localhost"))
}

/// Files are read and written away from the threads that answer.
async fn blocking<T: Send + 'static>(
    store: Store,
    work: impl FnOnce(&Store) -> io::Result<T> + Send + 'static,
) -> Result<T, Refusal> {
    let done = tokio::task::spawn_blocking(move || work(&store)).await;
    Ok(done.map_err(io::Error::other)??)
}

async fn list(State(store): State<Store>, headers: HeaderMap) -> Result<Json<Vec<Value>>, Refusal> {
    let base = base(&headers);
    blocking(store, move |store| store.kernels(&base)).await.map(Json)
}

async fn kernel(
    State(store): State<Store>,
    Segment(name): Segment<String>,
    headers: HeaderMap,
) -> Result<Json<Value>, Refusal> {
    // What cannot be a name is the name of nothing.
    let id: KernelId = name.parse().map_err(|_| missing("kernel", &name))?;
    let base = base(&headers);
    let found = blocking(store, move |store| store.kernel(&id, &base)).await?;
    found.map(Json).ok_or_else(|| missing("kernel", &name))
}

async fn blueprint(
    State(store): State<Store>,
    Segment(name): Segment<String>,
) -> Result<Json<Value>, Refusal> {
    let id: KernelId = name.parse().map_err(|_| missing("blueprint", &name))?;
    let found = blocking(store, move |store| store.blueprint(&id)).await?;
    found.map(Json).ok_or_else(|| missing("blueprint", &name))
}

/// A body's JSON with its id.
fn identified(body: Result<Json<Value>, JsonRejection>) -> Result<(KernelId, Value), Refusal> {
    let Json(value) = body?;
    let id = value.get("id").and_then(Value::as_str).unwrap_or_default().parse();
    let id = id.map_err(|error| Refusal(StatusCode::UNPROCESSABLE_ENTITY, format!("{error}")))?;
    Ok((id, value))
}

fn created(added: Added, what: &str, value: Value) -> Result<(StatusCode, Json<Value>), Refusal> {
    match added {
        Added::New => Ok((StatusCode::CREATED, Json(value))),
        Added::There => Err(Refusal(StatusCode::CONFLICT, format!("{what} {} exists", value["id"]))),
    }
}

async fn add_blueprint(
    State(store): State<Store>,
    body: Result<Json<Value>, JsonRejection>,
) -> Result<(StatusCode, Json<Value>), Refusal> {
    let (id, value) = identified(body)?;
    let kept = value.clone();
    let added = blocking(store, move |store| store.add_blueprint(&id, &kept)).await?;
    created(added, "blueprint", value)
}

async fn add_kernel(
    State(store): State<Store>,
    body: Result<Json<Value>, JsonRejection>,
) -> Result<(StatusCode, Json<Value>), Refusal> {
    let (id, value) = identified(body)?;
    let malformed = |reason: String| Refusal(StatusCode::UNPROCESSABLE_ENTITY, reason);
    let metadata = Metadata::from_json(value.to_string().as_bytes()).map_err(|e| malformed(e.to_string()))?;
    let blueprint = metadata.blueprint_id.ok_or_else(|| malformed("blueprint_id is missing".to_owned()))?;
    let of: KernelId = blueprint.parse().map_err(|_| missing("blueprint", &blueprint))?;
    if blocking(store.clone(), move |store| store.blueprint(&of)).await?.is_none() {
        return Err(missing("blueprint", &blueprint));
    }
    let kept = value.clone();
    let added = blocking(store, move |store| store.add_kernel(&id, &kept)).await?;
    created(added, "kernel", value)
}

async fn blob(
    State(store): State<Store>,
    Segment(name): Segment<String>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response<Body>, Refusal> {
    let wanted = name.clone();
    let path = blocking(store, move |store| Ok(store.blob(&wanted))).await?;
    let path = path.ok_or_else(|| missing("blob", &name))?;
    Ok(blob::answer(&path, &headers, method == Method::HEAD).await?)
}
