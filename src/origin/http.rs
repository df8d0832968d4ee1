//! Blobs by HTTP: streamed, and taken up again where a connection broke.

use std::sync::Arc;

use reqwest::{
    Response, StatusCode, Url,
    header::{self, HeaderMap, HeaderValue},
};
use tokio::sync::Mutex;

use super::{
    Blob, OriginError,
    filling::Filling,
    want::Want,
    web::{Web, answered, failed},
};
use crate::cache::Reservation;

const ADVICE: &str = "blobs are asked for without credentials, let the daemon read them or use s3://";

/// What attempts hand on to each other.
#[derive(Debug, Default)]
pub(super) struct Progress(Mutex<Option<Begun>>);

#[derive(Debug)]
struct Begun {
    filling: Filling,
    total: Option<u64>,
    hold: Option<Reservation>,
    /// The version the bytes are of; without one, nothing is taken up again.
    version: Option<HeaderValue>,
}

impl Progress {
    /// The blob, after an attempt that succeeded.
    pub(super) async fn finish(&self) -> Option<Blob> {
        let Begun { filling, hold, .. } = self.0.lock().await.take()?;
        let mut hold = hold;
        hold.iter_mut().for_each(|hold| hold.shrink_to(filling.filled() as u64));
        Some(Blob { hold: hold.map(Arc::new), ..filling.finish()? })
    }
}

/// One attempt at the rest of a blob.
pub(super) async fn attempt(
    web: &Web,
    want: &Want<'_>,
    url: &Url,
    progress: &Progress,
) -> Result<(), OriginError> {
    let mut state = progress.0.lock().await;
    let mut headers = HeaderMap::new();
    let resumed = state.as_ref().and_then(|begun| {
        let version = begun.version.clone()?;
        (begun.filling.filled() > 0).then(|| (begun.filling.filled(), version))
    });
    if let Some((filled, version)) = resumed {
        let range = HeaderValue::try_from(format!("bytes={filled}-")).expect("digits and signs are a header");
        headers.insert(header::RANGE, range);
        headers.insert(header::IF_RANGE, version);
    } else {
        *state = None;
    }
    let mut response = want.in_time(web.follow(url, headers, want.asker(ADVICE))).await??;
    let place = response.url().clone();
    match response.status() {
        StatusCode::OK => {
            // What was there goes first, or it would wait for itself.
            *state = None;
            *state = Some(begin(&response, want).await?);
        }
        StatusCode::PARTIAL_CONTENT if state.as_ref().is_some_and(|begun| continues(&response, begun)) => {}
        StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
            *state = None;
            return Err(want.failed("it answered with another range than was asked for"));
        }
        StatusCode::NOT_FOUND | StatusCode::GONE => return Err(want.absent("there is no such blob", false)),
        _ => return Err(answered(&response, &place, want.asker(ADVICE))),
    }
    let Some(begun) = state.as_mut() else { return Err(want.failed("it answered without a body")) };
    loop {
        let piece = want.in_time(response.chunk()).await?;
        match piece.map_err(|error| failed(error, &place, want.asker(ADVICE)))? {
            Some(piece) => begun.filling.push(&piece).map_err(|_| want.too_large())?,
            None => break,
        }
    }
    match begun.total {
        Some(total) if begun.filling.filled() as u64 != total => {
            Err(want.failed(format!("it ended after {} of {total} bytes", begun.filling.filled())))
        }
        _ => Ok(()),
    }
}

async fn begin(response: &Response, want: &Want<'_>) -> Result<Begun, OriginError> {
    let total = response.content_length();
    if total.is_some_and(|total| total > want.limit_bytes) {
        return Err(want.too_large());
    }
    let hold = want.reserve(total.unwrap_or(want.limit_bytes)).await?;
    let filling = Filling::new(total, want.limit_bytes).map_err(|_| want.too_large())?;
    let strong = |tag: &&HeaderValue| !tag.as_bytes().starts_with(b"W/");
    let version = response.headers().get(header::ETAG).filter(strong).cloned();
    Ok(Begun { filling, total, hold, version })
}

/// Whether the answer goes on where the bytes so far end, in the same version.
fn continues(response: &Response, begun: &Begun) -> bool {
    let range = response.headers().get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
    let Some((from, total)) = range.and_then(content_range) else { return false };
    let same = response.headers().get(header::ETAG) == begun.version.as_ref();
    same && from == begun.filling.filled() as u64 && begun.total.is_none_or(|known| known == total)
}

/// First byte and total of `bytes 5-9/10`.
pub(super) fn content_range(text: &str) -> Option<(u64, u64)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (from, _) = range.split_once('-')?;
    Some((from.trim().parse().ok()?, total.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read() {
        assert_eq!(content_range("bytes 5-9/10"), Some((5, 10)));
        for bad in ["", "bytes */10", "bytes 5-9/*", "items 5-9/10", "bytes 5/10"] {
            assert_eq!(content_range(bad), None, "{bad}");
        }
    }
}
