//! Urza's catalogue at one or several endpoints.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use reqwest::{
    StatusCode, Url,
    header::{self, HeaderMap, HeaderValue},
};

use super::{
    GuardPolicy, OriginError,
    service::Service,
    web::{Asker, Web, answered, failed},
};
use crate::{
    backoff::Jitter,
    cache::read_secret,
    clock::Clock,
    fault::{ErrorClass, Fault},
    guard::{BreakerOpen, BreakerState, BreakerStatus, Permit, Retry},
    id::KernelId,
    validation::Metadata,
};

const ORIGIN: &str = "urza";
const ADVICE: &str = "check the token in origin.urza.token_file";

/// A server of the catalogue.
#[derive(Debug)]
struct Endpoint {
    base: String,
    service: Service,
}

/// Several servers with the same catalogue, asked one after the other.
///
/// Those in good health are asked first, in the order of the configuration. What cannot be reached, is late or
/// fails is passed over for the next; any other answer stands, with one exception: a kernel that one server
/// does not know may be known to the next, which copies are late to reach. So "no such kernel" is believed
/// once every server that answers says it.
#[derive(Debug)]
pub(super) struct Catalogue {
    endpoints: Vec<Endpoint>,
    web: Web,
    token_file: PathBuf,
    max_entry_bytes: u64,
    timeout: Duration,
    retry: Retry,
}

/// An endpoint that takes part in a call: once its turn has come and its breaker let it pass, with leave, which one
/// call has once, and what it last said.
struct Candidate<'a> {
    endpoint: &'a Endpoint,
    asked: Mutex<Option<Asked<'a>>>,
}

struct Asked<'a> {
    permit: Permit<'a>,
    said: Option<Result<(), OriginError>>,
}

impl<'a> Candidate<'a> {
    /// Gets leave, where this call has none yet. Not before its turn: a trial's place that is taken by who waits for
    /// another endpoint is lost to everybody.
    fn admit(&self) -> Result<(), BreakerOpen> {
        let mut asked = self.lock();
        if asked.is_none() {
            *asked = Some(Asked { permit: self.endpoint.service.admit()?, said: None });
        }
        Ok(())
    }

    fn note(&self, result: Result<(), OriginError>) {
        if let Some(asked) = &mut *self.lock() {
            asked.said = Some(result);
        }
    }

    fn record(self) {
        let asked = self.asked.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(Asked { permit, said: Some(said) }) = asked {
            permit.record(said.as_ref().copied());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Asked<'a>>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What came of asking them in turn.
enum Round {
    Found(Box<Metadata>),
    /// Not one could be asked, so that asking again at once is of no use.
    Refused(OriginError),
}

impl Catalogue {
    pub(super) fn new(
        bases: &[String],
        web: Web,
        token_file: PathBuf,
        max_entry_bytes: u64,
        policy: &GuardPolicy,
        clock: &Arc<dyn Clock>,
    ) -> Self {
        let endpoint = |base: &String| {
            let base = base.trim_end_matches('/').to_owned();
            Endpoint { service: Service::new(&format!("{ORIGIN} {base}"), policy, clock.clone()), base }
        };
        let retry = Retry::new(policy.retry, Jitter::from_process());
        let endpoints = bases.iter().map(endpoint).collect();
        Self { endpoints, web, token_file, max_entry_bytes, timeout: policy.timeout, retry }
    }

    pub(super) fn breakers(&self) -> Vec<BreakerStatus> {
        self.endpoints.iter().map(|endpoint| endpoint.service.status()).collect()
    }

    /// A kernel's entry, from the first endpoint that has it.
    pub(super) async fn entry(self: &Arc<Self>, id: &KernelId) -> Result<Metadata, OriginError> {
        let candidates = self.candidates();
        let result = self.retry.run(|| Box::pin(self.round(&candidates, id))).await;
        candidates.into_iter().for_each(Candidate::record);
        match result? {
            Round::Found(metadata) => {
                self.look_after_the_others(id);
                Ok(*metadata)
            }
            Round::Refused(error) => Err(error),
        }
    }

    /// All endpoints, the healthy first.
    fn candidates(&self) -> Vec<Candidate<'_>> {
        let healthy = |endpoint: &&Endpoint| endpoint.service.status().state == BreakerState::Closed;
        let (first, rest): (Vec<_>, Vec<_>) = self.endpoints.iter().partition(healthy);
        let candidate = |endpoint| Candidate { endpoint, asked: Mutex::default() };
        first.into_iter().chain(rest).map(candidate).collect()
    }

    async fn round(&self, candidates: &[Candidate<'_>], id: &KernelId) -> Result<Round, OriginError> {
        let (mut unknown, mut failure, mut refused) = (None, None, None);
        for one in candidates {
            if let Err(open) = one.admit() {
                refused = refused.or(Some(OriginError::from(open)));
                continue;
            }
            let result = one.endpoint.service.in_time(self.timeout, self.ask(one.endpoint, id)).await;
            one.note(result.as_ref().map(|_| ()).map_err(Clone::clone));
            match result {
                Ok(metadata) => return Ok(Round::Found(Box::new(metadata))),
                Err(error) => match error.class() {
                    ErrorClass::NotFound => unknown = unknown.or(Some(error)),
                    ErrorClass::Unavailable | ErrorClass::Overloaded => {
                        tracing::debug!(endpoint = one.endpoint.base, %error, "asking the next endpoint");
                        failure = failure.or(Some(error));
                    }
                    _ => return Err(error),
                },
            }
        }
        if let Some(error) = unknown.or(failure) {
            return Err(error);
        }
        Ok(Round::Refused(refused.unwrap_or_else(|| OriginError::Unavailable {
            origin: ORIGIN.to_owned(),
            place: "origin.urza.endpoints".into(),
            reason: "no endpoint is configured".to_owned(),
        })))
    }

    async fn ask(&self, endpoint: &Endpoint, id: &KernelId) -> Result<Metadata, OriginError> {
        let place = format!("{}/kernels/{id}", endpoint.base);
        let unavailable = |reason: String| OriginError::Unavailable {
            origin: ORIGIN.to_owned(),
            place: place.clone().into(),
            reason,
        };
        let url = Url::parse(&place).map_err(|error| unavailable(error.to_string()))?;
        let asker = Asker { origin: ORIGIN, id, advice: ADVICE };
        let headers = headers(&self.token_file).await.map_err(unavailable)?;
        let mut response = self.web.get(&url, headers, asker).await?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND | StatusCode::GONE => {
                let (origin, id) = (ORIGIN.to_owned(), id.clone());
                return Err(OriginError::NotFound { origin, id, here_only: false });
            }
            _ => return Err(answered(&response, &url, asker)),
        }
        let (what, limit_bytes) = ("the catalogue entry", self.max_entry_bytes);
        let too_large = || OriginError::TooLarge { id: id.clone(), what, limit_bytes };
        if response.content_length().is_some_and(|length| length > limit_bytes) {
            return Err(too_large());
        }
        let mut json = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(|error| failed(error, &url, asker))? {
            if (json.len() + piece.len()) as u64 > limit_bytes {
                return Err(too_large());
            }
            json.extend_from_slice(&piece);
        }
        // As somebody answers who is not the catalogue: that says nothing of the kernel.
        if serde_json::from_slice::<serde::de::IgnoredAny>(&json).is_err() {
            let reason = "its answer is not JSON: see whether the address is the catalogue's".to_owned();
            return Err(OriginError::Unavailable { origin: ORIGIN.to_owned(), place: (&url).into(), reason });
        }
        let metadata = Metadata::from_json(&json).map_err(|source| OriginError::Entry {
            origin: ORIGIN.to_owned(),
            id: id.clone(),
            source,
        })?;
        match metadata.id == *id {
            true => Ok(metadata),
            false => {
                let (origin, id) = (ORIGIN.to_owned(), id.clone());
                Err(OriginError::OtherKernel { origin, id, found: metadata.id })
            }
        }
    }

    /// Tries endpoints that were down and whose time has come, so that they are found again while others
    /// answer. Nobody waits for it.
    fn look_after_the_others(self: &Arc<Self>, id: &KernelId) {
        for (n, endpoint) in self.endpoints.iter().enumerate() {
            let status = endpoint.service.status();
            if status.state == BreakerState::Closed || status.retry_in_ms.is_some_and(|ms| ms > 0) {
                continue;
            }
            let (this, id) = (self.clone(), id.clone());
            tokio::spawn(async move {
                let endpoint = &this.endpoints[n];
                // Refused is: somebody else is trying.
                let _ = endpoint.service.once(this.timeout, this.ask(endpoint, &id)).await;
            });
        }
    }
}

/// The token's header, where there is a token. Read anew each time, so that a changed one is taken up.
pub(super) async fn headers(token_file: &std::path::Path) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    if let Some(token) = read_secret(token_file).await? {
        let value = HeaderValue::try_from(format!("Bearer {token}"));
        let mut value = value.map_err(|_| format!("{} holds no token", token_file.display()))?;
        value.set_sensitive(true);
        headers.insert(header::AUTHORIZATION, value);
    }
    Ok(headers)
}
