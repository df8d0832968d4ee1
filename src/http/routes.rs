//! What is answered: `/metrics`, `/livez`, `/readyz`.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};

use super::{
    encode::{Form, encode},
    reports::{Actors, Reports},
    samples::Samples,
};
use crate::{
    actor::{
        KernelCache, Supervisor,
        base::{AskError, Handle},
    },
    telemetry::resident_bytes,
};

/// The longest that a scrape waits for the actors; Prometheus itself waits 10 s by default.
const SCRAPE_LIMIT: Duration = Duration::from_secs(5);

/// The longest that a scrape waits for one tier to say what it holds.
const TIER_PATIENCE: Duration = Duration::from_secs(1);

/// The longest that the supervisor may take for a sign of life.
const LIFE_LIMIT: Duration = Duration::from_secs(2);

/// Whom the answers come from.
#[derive(Clone, Debug)]
pub struct Probe {
    pub(super) reports: Arc<dyn Reports>,
    /// What the daemon is doing now.
    pub(super) phase: fn() -> &'static str,
    /// Whether it takes new work.
    pub(super) ready: fn() -> bool,
}

impl Probe {
    /// Asks the daemon's actors. `phase` is what the daemon is doing now, `ready` whether it takes new work.
    pub fn new(
        supervisor: Handle<Supervisor>,
        cache: Handle<KernelCache>,
        phase: fn() -> &'static str,
        ready: fn() -> bool,
    ) -> Self {
        Self { reports: Arc::new(Actors { supervisor, cache }), phase, ready }
    }
}

pub(super) fn router(probe: Probe) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .fallback(async || (StatusCode::NOT_FOUND, "there are /metrics, /livez and /readyz\n"))
        .with_state(probe)
}

/// Asks the supervisor and waits no longer than `limit`; the answer to give where it does not answer.
async fn ask<T>(limit: Duration, asked: impl Future<Output = Result<T, AskError>>) -> Result<T, Response> {
    let refused = |reason: &str| (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response();
    match tokio::time::timeout(limit, asked).await {
        Ok(answer) => answer.map_err(|error| refused(&error.to_string())),
        Err(_) => Err(refused(&format!("the supervisor has not answered in {} s", limit.as_secs()))),
    }
}

async fn metrics(State(probe): State<Probe>, headers: HeaderMap) -> Result<Response, Response> {
    let (status, cache) = tokio::join!(
        ask(SCRAPE_LIMIT, probe.reports.status()),
        tokio::time::timeout(SCRAPE_LIMIT, probe.reports.cache(TIER_PATIENCE)),
    );
    let mut status = status?;
    status.version = env!("CARGO_PKG_VERSION").to_owned();
    status.resident_bytes = resident_bytes();
    let cache = cache.ok().and_then(Result::ok);
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    let form = Form::accepted(accept.unwrap_or_default());
    let page = encode(Samples::of(&status, cache.as_ref(), (probe.ready)()), form);
    let page =
        page.map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response())?;
    Ok(([(header::CONTENT_TYPE, form.content_type())], page).into_response())
}

async fn livez(State(probe): State<Probe>) -> Result<&'static str, Response> {
    ask(LIFE_LIMIT, probe.reports.ping()).await.map(|()| "alive\n")
}

async fn readyz(State(probe): State<Probe>) -> (StatusCode, String) {
    match (probe.ready)() {
        true => (StatusCode::OK, "ready\n".to_owned()),
        false => (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", (probe.phase)())),
    }
}
