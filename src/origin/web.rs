//! HTTP as the origin speaks it: no proxies, no cookies, no compression, no redirect that was not looked at.

use std::{path::Path, sync::Arc, time::Duration};

use reqwest::{
    Client, Response, StatusCode, Url,
    header::{self, HeaderMap},
    redirect::Policy,
};

use super::{
    OriginError, Place,
    address::{AddressRefused, CheckedResolver},
    reference::Allow,
};
use crate::{fault::shortened, id::KernelId};

/// The most header lines of an answer.
const MAX_HEADERS: usize = 64;

/// A client whose every connection goes to a checked address.
#[derive(Clone, Debug)]
pub(super) struct Web {
    client: Client,
    pub(super) allow: Arc<Allow>,
    max_redirects: u32,
}

/// For whom a request is made, for its errors.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asker<'a> {
    pub(super) origin: &'a str,
    pub(super) id: &'a KernelId,
    pub(super) advice: &'static str,
}

impl Web {
    /// `ca` is a PEM file of authorities to trust beside the system's; empty is none.
    pub(super) fn new(allow: Arc<Allow>, ca: &Path, max_redirects: u32) -> Result<Self, String> {
        // Only the first provider counts; every part of the process installs the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = Client::builder()
            .no_proxy()
            .redirect(Policy::none())
            .retry(reqwest::retry::never())
            .http1_only()
            .http1_max_headers(MAX_HEADERS)
            .connect_timeout(Duration::from_secs(5))
            .pool_idle_timeout(Duration::from_secs(30))
            .user_agent(concat!("kasmina/", env!("CARGO_PKG_VERSION")))
            .dns_resolver(CheckedResolver(allow.addresses.clone()));
        if !ca.as_os_str().is_empty() {
            let pem = std::fs::read(ca)
                .map_err(|error| format!("authorities {} cannot be read: {error}", ca.display()))?;
            let authorities = reqwest::Certificate::from_pem_bundle(&pem)
                .map_err(|error| format!("{} holds no certificates in PEM: {error}", ca.display()))?;
            if authorities.is_empty() {
                return Err(format!("{} holds no certificates in PEM", ca.display()));
            }
            builder = builder.tls_certs_merge(authorities);
        }
        let client =
            builder.build().map_err(|error| format!("no HTTP client can be made: {}", chain(&error)))?;
        Ok(Self { client, allow, max_redirects })
    }

    /// A GET that follows no redirect.
    pub(super) async fn get(
        &self,
        url: &Url,
        headers: HeaderMap,
        asker: Asker<'_>,
    ) -> Result<Response, OriginError> {
        self.send(self.client.get(url.clone()).headers(headers), url, asker).await
    }

    /// A POST of JSON.
    pub(super) async fn post(
        &self,
        url: &Url,
        headers: HeaderMap,
        body: &serde_json::Value,
        asker: Asker<'_>,
    ) -> Result<Response, OriginError> {
        self.send(self.client.post(url.clone()).headers(headers).json(body), url, asker).await
    }

    /// A GET that follows redirects, each held to the same rules as the first address.
    pub(super) async fn follow(
        &self,
        url: &Url,
        headers: HeaderMap,
        asker: Asker<'_>,
    ) -> Result<Response, OriginError> {
        let refused = |reference: &Url, reason: String| OriginError::Reference {
            id: asker.id.clone(),
            reference: reference.into(),
            reason: shortened(&reason),
        };
        let mut at = url.clone();
        for _ in 0..=self.max_redirects {
            self.allow.url(&at).map_err(|reason| refused(&at, reason))?;
            let response = self.get(&at, headers.clone(), asker).await?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
            let next = location.and_then(|location| at.join(location).ok());
            let next = next.ok_or_else(|| refused(&at, "it redirects without saying where".to_owned()))?;
            if at.scheme() == "https" && next.scheme() != "https" {
                return Err(refused(&next, "a redirect leads from https to http".to_owned()));
            }
            at = next;
        }
        let most = self.max_redirects;
        Err(refused(url, format!("it redirects more than {most} times (origin.blob.max_redirects)")))
    }

    async fn send(
        &self,
        request: reqwest::RequestBuilder,
        url: &Url,
        asker: Asker<'_>,
    ) -> Result<Response, OriginError> {
        let response = request.send().await.map_err(|error| failed(error, url, asker))?;
        let coded = response.headers().get(header::CONTENT_ENCODING);
        if let Some(coding) = coded.filter(|coding| coding.as_bytes() != b"identity") {
            let reason = format!("it sends {coding:?}, though no compression was asked for");
            return Err(OriginError::Reference { id: asker.id.clone(), reference: url.into(), reason });
        }
        Ok(response)
    }
}

/// What a connection's failure means.
pub(super) fn failed(error: reqwest::Error, url: &Url, asker: Asker<'_>) -> OriginError {
    // Whose text it would be part of, whatever it holds.
    let error = error.without_url();
    let mut cause: Option<&dyn std::error::Error> = Some(&error);
    while let Some(error) = cause {
        if let Some(refused) = error.downcast_ref::<AddressRefused>() {
            let (reference, reason) = (url.into(), shortened(&refused.reason));
            return OriginError::Reference { id: asker.id.clone(), reference, reason };
        }
        cause = error.source();
    }
    let advice = if is_distrusted(&error) { " (authorities of one's own: origin.urza.ca_file)" } else { "" };
    OriginError::Unavailable {
        origin: asker.origin.to_owned(),
        place: url.into(),
        reason: format!("{}{advice}", shortened(&chain(&error))),
    }
}

/// Whether it is the server's certificate that is not believed.
fn is_distrusted(error: &(dyn std::error::Error + 'static)) -> bool {
    if let Some(error) = error.downcast_ref::<rustls::Error>() {
        return matches!(error, rustls::Error::InvalidCertificate(_));
    }
    // What an I/O error holds is not its source.
    let held = error.downcast_ref::<std::io::Error>().and_then(|error| error.get_ref());
    held.is_some_and(|held| is_distrusted(held)) || error.source().is_some_and(is_distrusted)
}

/// What an answer that is no success means, a 404 aside.
pub(super) fn answered(response: &Response, url: &Url, asker: Asker<'_>) -> OriginError {
    let (origin, place, status) = (asker.origin.to_owned(), Place::from(url), response.status());
    match status {
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
            let seconds = response.headers().get(header::RETRY_AFTER);
            let seconds = seconds.and_then(|value| value.to_str().ok()?.trim().parse().ok());
            let retry_after = seconds.map(Duration::from_secs);
            OriginError::Busy { origin, place, status: status.as_u16(), retry_after }
        }
        StatusCode::REQUEST_TIMEOUT => unavailable(origin, place, status),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
            OriginError::Denied { origin, place, status: status.as_u16(), advice: asker.advice }
        }
        status if status.is_redirection() => {
            let advice = "name the address it redirects to instead";
            OriginError::Denied { origin, place, status: status.as_u16(), advice }
        }
        status if status.is_client_error() => {
            OriginError::Refused { origin, id: asker.id.clone(), place, status: status.as_u16() }
        }
        status => unavailable(origin, place, status),
    }
}

fn unavailable(origin: String, place: Place, status: StatusCode) -> OriginError {
    OriginError::Unavailable { origin, place, reason: format!("it answered {status}") }
}

/// An error with its causes: the library's own text names only the outermost.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let (mut text, mut cause) = (error.to_string(), error.source());
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
