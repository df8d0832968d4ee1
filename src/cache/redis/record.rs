//! A kernel as a Redis hash: what stands in its fields, and what is believed of it.

use std::sync::Arc;

use redis::{Cmd, Pipeline};
use serde::{Deserialize, Serialize};

use crate::{
    cache::{
        Held, Negative, Stored,
        seal::{Described, verdict_json},
    },
    clock::NODES_DIFFER_MS,
    digest::Digest,
    id::KernelId,
};

/// The fields of a kernel.
const FIELDS: [&str; 7] = ["digest", "metadata", "verdict", "confirmed", "seal", "bytes", "negative"];

/// The place of the seal among them.
const SEAL: usize = 4;

/// The key of a kernel. The braces make the id alone decide the slot; a change of format changes `v1`.
pub(super) fn key(prefix: &str, id: &KernelId) -> String {
    format!("{prefix}:v1:{{{id}}}")
}

/// Every key of a prefix.
pub(super) fn every_key(prefix: &str) -> String {
    format!("{prefix}:v1:{{*}}")
}

/// The command that asks for all that is known of a kernel; nothing comes of one that is larger than that, for nodes may
/// have other limits and Redis gives half a gigabyte.
pub(super) fn read(key: &str, max_artifact_bytes: u64) -> Cmd {
    // The fields stand in the script: Redis takes no long command of somebody who has not said who he is, and says that
    // instead of asking.
    let script = format!(
        "local bytes = redis.pcall('HSTRLEN', KEYS[1], 'bytes')
         if type(bytes) == 'table' then return bytes end
         if bytes > tonumber(ARGV[1]) then return false end
         return redis.call('HMGET', KEYS[1], '{}')",
        FIELDS.join("', '")
    );
    let mut command = redis::cmd("EVAL");
    command.arg(script).arg(1).arg(key).arg(max_artifact_bytes);
    command
}

/// The command that drops a damaged record: only while it is the one that was read, for another node may have
/// put a good one there. `values` is none where it was no record at all.
pub(super) fn drop_damaged(key: &str, values: Option<&Values>) -> Cmd {
    let script = "local seal = redis.pcall('HGET', KEYS[1], 'seal')
                  if type(seal) ~= 'table' and (seal or '') ~= ARGV[1] then return 0 end
                  return redis.call('UNLINK', KEYS[1])";
    let seal = values.and_then(|values| values.get(SEAL)?.as_deref()).unwrap_or_default();
    let mut command = redis::cmd("EVAL");
    command.arg(script).arg(1).arg(key).arg(seal);
    command
}

/// The values of [`FIELDS`], in that order.
pub(super) type Values = Vec<Option<Vec<u8>>>;

/// What a record says.
pub(super) enum Read {
    Nothing,
    Kernel(Stored),
    Negative(Negative),
    Damaged,
}

/// Compares all of a record with its seals.
///
/// Blocking: hashes all of it.
pub(super) fn unseal(id: &KernelId, values: &Values, now_unix_ms: i64) -> Read {
    if values.iter().all(Option::is_none) {
        return Read::Nothing;
    }
    let [digest, metadata, verdict, confirmed, seal, bytes, negative] = values.as_slice() else {
        return Read::Damaged;
    };
    if let Some(negative) = negative {
        return match seal.as_deref().and_then(|seal| open_negative(id, negative, seal)) {
            None => Read::Damaged,
            Some(noted) if noted.is_believed(now_unix_ms) => Read::Negative(noted.negative()),
            Some(_) => Read::Nothing,
        };
    }
    let kernel = || {
        let described = Described {
            id,
            digest: Digest::from_bytes(digest.as_deref()?.try_into().ok()?),
            metadata: str::from_utf8(metadata.as_deref()?).ok()?,
            verdict: verdict.as_deref().map(str::from_utf8).transpose().ok()?,
            confirmed_unix_ms: number(confirmed)?,
        };
        described.open(seal.as_deref()?, bytes.as_deref()?)
    };
    kernel().map_or(Read::Damaged, Read::Kernel)
}

/// The commands that put a kernel in place of whatever is under its key.
pub(super) fn write(key: &str, stored: &Stored, now_unix_ms: i64, ttl_ms: i64) -> Pipeline {
    let metadata = stored.metadata.to_json();
    let verdict = stored.verdict.as_ref().map(|verdict| verdict_json(verdict));
    let described = Described {
        id: stored.id(),
        digest: stored.digest,
        metadata: &metadata,
        verdict: verdict.as_deref(),
        confirmed_unix_ms: stored.confirmed_unix_ms,
    };
    let mut pipeline = redis::pipe();
    pipeline.atomic().cmd("DEL").arg(key).ignore();
    pipeline.cmd("HSET").arg(key);
    pipeline.arg("digest").arg(stored.digest.as_bytes().as_slice());
    pipeline.arg("metadata").arg(&metadata);
    if let Some(verdict) = &verdict {
        pipeline.arg("verdict").arg(verdict);
    }
    pipeline.arg("confirmed").arg(stored.confirmed_unix_ms).arg("stored").arg(now_unix_ms);
    pipeline.arg("seal").arg(described.seal().as_bytes().as_slice());
    pipeline.arg("bytes").arg(&stored.bytes[..]).ignore();
    pipeline.cmd("PEXPIRE").arg(key).arg(ttl_ms).ignore();
    pipeline
}

/// A description as it stands, for a verdict to be added.
pub(super) struct Description {
    digest: Digest,
    metadata: String,
    confirmed_unix_ms: i64,
    /// The seal that must still be there when the verdict is added.
    pub(super) seal: Vec<u8>,
}

impl Description {
    pub(super) fn read(key: &str) -> Cmd {
        let mut command = redis::cmd("HMGET");
        command.arg(key).arg(&["digest", "metadata", "confirmed", "seal"]);
        command
    }

    /// The description, where it is one of this artifact.
    pub(super) fn of(values: Values, digest: Digest) -> Option<Self> {
        let [found, metadata, confirmed, seal] = <[_; 4]>::try_from(values).ok()?;
        let metadata = String::from_utf8(metadata?).ok()?;
        let confirmed_unix_ms = number(&confirmed)?;
        (found? == digest.as_bytes()).then_some(Self { digest, metadata, confirmed_unix_ms, seal: seal? })
    }

    /// The seal with a verdict.
    pub(super) fn sealed_with(&self, id: &KernelId, verdict: &str) -> Digest {
        let (digest, metadata) = (self.digest, self.metadata.as_str());
        let confirmed_unix_ms = self.confirmed_unix_ms;
        Described { id, digest, metadata, verdict: Some(verdict), confirmed_unix_ms }.seal()
    }
}

/// The commands that ask what is here of a kernel.
pub(super) fn about(key: &str) -> Cmd {
    let mut command = redis::cmd("EVAL");
    // One round trip, and the bytes stay where they are.
    let script = "local f = redis.call('HMGET', KEYS[1], 'digest', 'confirmed', 'stored', 'verdict')
                  f[5] = redis.call('HSTRLEN', KEYS[1], 'bytes')
                  return f";
    command.arg(script).arg(1).arg(key);
    command
}

/// What [`about`] found.
pub(super) type About = (Option<Vec<u8>>, Option<i64>, Option<i64>, Option<Vec<u8>>, u64);

/// What is here of a kernel, if its bytes are.
pub(super) fn held((digest, confirmed, stored, verdict, bytes): About) -> Option<Held> {
    Some(Held {
        digest: Digest::from_bytes(digest?.as_slice().try_into().ok()?),
        bytes,
        stored_unix_ms: stored?,
        used_unix_ms: None,
        confirmed_unix_ms: confirmed?,
        verdict: verdict.and_then(|verdict| serde_json::from_slice(&verdict).ok()).map(Arc::new),
    })
}

/// The command that asks for a negative result and its seal.
pub(super) fn read_negative(key: &str) -> Cmd {
    let mut command = redis::cmd("HMGET");
    command.arg(key).arg(&["negative", "seal"]);
    command
}

/// What [`read_negative`] found, where it is whole and believed.
pub(super) fn believed_negative(id: &KernelId, values: &Values, now_unix_ms: i64) -> Option<Negative> {
    let [Some(negative), Some(seal)] = values.as_slice() else { return None };
    let noted = open_negative(id, negative, seal)?;
    noted.is_believed(now_unix_ms).then(|| noted.negative())
}

#[derive(Serialize, Deserialize)]
struct Noted {
    code: String,
    reason: String,
    noted_unix_ms: i64,
    until_unix_ms: i64,
    /// In hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    policy: Option<Digest>,
}

impl Noted {
    /// A clock that has been set back would otherwise believe it for as long as it was set back.
    fn is_believed(&self, now_unix_ms: i64) -> bool {
        self.until_unix_ms > now_unix_ms && self.noted_unix_ms <= now_unix_ms.saturating_add(NODES_DIFFER_MS)
    }

    fn negative(self) -> Negative {
        let Self { code, reason, until_unix_ms, policy, .. } = self;
        Negative { code, reason, until_unix_ms, policy }
    }
}

fn open_negative(id: &KernelId, text: &[u8], sealed: &[u8]) -> Option<Noted> {
    if negative_seal(id, text).as_bytes() != sealed {
        return None;
    }
    serde_json::from_slice(text).ok()
}

fn negative_seal(id: &KernelId, text: &[u8]) -> Digest {
    Digest::of(&[id.as_str().as_bytes(), b"\0negative\0", text].concat())
}

/// The commands that put a negative result in place of whatever is under a key.
pub(super) fn write_negative(
    key: &str,
    id: &KernelId,
    negative: &Negative,
    now_unix_ms: i64,
    ttl_ms: i64,
) -> Pipeline {
    let noted = Noted {
        code: negative.code.clone(),
        reason: negative.reason.clone(),
        noted_unix_ms: now_unix_ms,
        until_unix_ms: negative.until_unix_ms,
        policy: negative.policy,
    };
    let text = serde_json::to_vec(&noted).expect("it has only string keys");
    let seal = negative_seal(id, &text);
    let mut pipeline = redis::pipe();
    pipeline.atomic().cmd("DEL").arg(key).ignore();
    pipeline.cmd("HSET").arg(key).arg("negative").arg(&text);
    pipeline.arg("seal").arg(seal.as_bytes().as_slice()).ignore();
    // What it says of its own end counts; Redis only has to drop it some time after.
    let left = negative.until_unix_ms.saturating_sub(now_unix_ms).max(0);
    let lifetime = left.saturating_add(60_000).min(ttl_ms.max(60_000));
    pipeline.cmd("PEXPIRE").arg(key).arg(lifetime).ignore();
    pipeline
}

fn number(text: &Option<Vec<u8>>) -> Option<i64> {
    str::from_utf8(text.as_deref()?).ok()?.parse().ok()
}
