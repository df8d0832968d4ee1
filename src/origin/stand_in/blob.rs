//! A file as an HTTP answer: whole or a range of it, streamed.

use std::{io::SeekFrom, path::Path, time::UNIX_EPOCH};

use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, Response, StatusCode, header},
};
use futures_util::stream;
use tokio::{
    fs::File,
    io::{AsyncReadExt as _, AsyncSeekExt as _},
};

const PIECE: usize = 256 << 10;

/// Answers a GET or a HEAD.
pub(super) async fn answer(path: &Path, headers: &HeaderMap, head: bool) -> std::io::Result<Response<Body>> {
    let mut file = File::open(path).await?;
    let about = file.metadata().await?;
    let changed = about.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (total, tag) = (about.len(), format!("\"{:x}-{:x}\"", about.len(), changed.as_nanos()));
    let header = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let answer = Response::builder()
        .header(header::ACCEPT_RANGES, "bytes")
        .header(header::ETAG, &tag)
        .header(header::CONTENT_TYPE, "application/octet-stream");
    let finish =
        |answer: axum::http::response::Builder, body| answer.body(body).map_err(std::io::Error::other);
    if header(header::IF_MATCH).is_some_and(|wanted| wanted != "*" && wanted != tag) {
        return finish(answer.status(StatusCode::PRECONDITION_FAILED), Body::empty());
    }
    // The range of another version is no range.
    let asked =
        header(header::RANGE).filter(|_| header(header::IF_RANGE).is_none_or(|version| version == tag));
    let (from, length, answer) = match asked.and_then(|text| range(text, total)) {
        None => (0, total, answer.status(StatusCode::OK)),
        Some(None) => {
            let answer = answer.header(header::CONTENT_RANGE, format!("bytes */{total}"));
            return finish(answer.status(StatusCode::RANGE_NOT_SATISFIABLE), Body::empty());
        }
        Some(Some((from, last))) => {
            let said = format!("bytes {from}-{last}/{total}");
            let answer = answer.header(header::CONTENT_RANGE, said).status(StatusCode::PARTIAL_CONTENT);
            (from, last - from + 1, answer)
        }
    };
    let answer = answer.header(header::CONTENT_LENGTH, length);
    if head {
        return finish(answer, Body::empty());
    }
    file.seek(SeekFrom::Start(from)).await?;
    let pieces = stream::unfold((file, length), |(mut file, left)| async move {
        if left == 0 {
            return None;
        }
        let mut piece = vec![0; PIECE.min(usize::try_from(left).unwrap_or(PIECE))];
        let read = match file.read(&mut piece).await {
            Ok(0) => Err(std::io::ErrorKind::UnexpectedEof.into()),
            other => other,
        };
        Some(match read {
            Ok(read) => {
                piece.truncate(read);
                (Ok(Bytes::from(piece)), (file, left.saturating_sub(read as u64)))
            }
            Err(error) => (Err(error), (file, 0)),
        })
    });
    finish(answer, Body::from_stream(pieces))
}

/// First and last byte of `bytes=5-9`, `bytes=5-` or `bytes=-5`; an inner nothing cannot be satisfied, an
/// outer one is no range that is understood, which is passed over.
fn range(text: &str, total: u64) -> Option<Option<(u64, u64)>> {
    let (from, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let end = total.checked_sub(1);
    let (from, last) = match (from.trim(), last.trim()) {
        ("", tail) => (total.saturating_sub(tail.parse().ok()?), end),
        (from, "") => (from.parse().ok()?, end),
        (from, last) => (from.parse().ok()?, end.map(|end| last.parse().unwrap_or(end).min(end))),
    };
    Some(last.filter(|last| from <= *last).map(|last| (from, last)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_those_of_http() {
        for (text, expected) in [
            ("bytes=0-3", Some(Some((0, 3)))),
            ("bytes=5-", Some(Some((5, 9)))),
            ("bytes=5-99", Some(Some((5, 9)))),
            ("bytes=-4", Some(Some((6, 9)))),
            ("bytes=10-", Some(None)),
            ("bytes=4-2", Some(None)),
            ("bytes=x-", None),
            ("items=0-1", None),
        ] {
            assert_eq!(range(text, 10), expected, "{text}");
        }
        assert_eq!(range("bytes=0-0", 0), Some(None));
    }
}
