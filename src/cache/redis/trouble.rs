//! What Redis's errors mean, and what to do about them.

use redis::{ErrorKind, RedisError};

/// The codes of Redis's errors that an operator can do something about.
const ADVICE: [(&str, &str); 10] = [
    ("OOM", "raise Redis's maxmemory, or let it evict: maxmemory-policy allkeys-lru"),
    ("WRONGPASS", "check cache.redis.user and cache.redis.password_file"),
    ("NOAUTH", "name the password's file in cache.redis.password_file"),
    ("NOPERM", "give the ACL user the commands and keys that docs/tiers.md lists"),
    ("READONLY", "let cache.redis.url name the primary, not a replica"),
    ("MISCONF", "Redis cannot write to its disk: see its log"),
    ("LOADING", "Redis is reading its data and will answer soon"),
    ("BusyLoading", "Redis is reading its data and will answer soon"),
    ("CLUSTERDOWN", "the cluster does not cover every slot: see CLUSTER INFO"),
    ("MOVED", "it is a cluster: set cache.redis.cluster"),
];

/// The error with what to do about it.
pub(in crate::cache) fn explain(error: &RedisError) -> String {
    let text = said(error);
    match code(&text) {
        Some((_, advice)) => format!("{text}; {advice}"),
        None => text,
    }
}

/// Whether what is there can still be read.
pub(super) fn is_overloaded(error: &RedisError) -> bool {
    matches!(code(&said(error)), Some(("OOM" | "READONLY" | "MISCONF", _)))
}

/// Whether something else than one of our hashes stands under the key.
pub(super) fn is_foreign(error: &RedisError) -> bool {
    error.code() == Some("WRONGTYPE")
}

/// Whether a password that has been changed since may be the reason.
pub(super) fn is_refusal(error: &RedisError) -> bool {
    matches!(code(&said(error)), Some(("WRONGPASS" | "NOAUTH", _)))
}

fn code(text: &str) -> Option<(&'static str, &'static str)> {
    let words = |code: &str| {
        text.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| word.eq_ignore_ascii_case(code))
    };
    ADVICE.into_iter().find(|(code, _)| words(code))
}

/// Its text. The client writes some codes in its own way (`NoPerm`), and lists those of a transaction.
fn said(error: &RedisError) -> String {
    let text = error.to_string();
    if error.kind() == ErrorKind::AuthenticationFailed {
        // The client does not pass on what the server called it.
        return format!("{text} (WRONGPASS)");
    }
    text
}
