//! What is asked of the database, one function a request. Every statement is one that both understand.

use std::sync::Arc;

use super::{
    connection::{Connection, Pool, Row, Value},
    uses::{Noted, Uses},
};
use crate::{
    cache::{
        Held, Negative, Stored,
        seal::{Described, verdict_json},
    },
    clock::{Clock, NODES_DIFFER_MS},
    digest::Digest,
    id::KernelId,
    validation::Verdict,
};

use Value::{Bytes, Int, MaybeBytes, MaybeText, Text};

/// Negative results kept; beyond that those that would end soonest go.
const MAX_NEGATIVES: i64 = 10_000;

/// Kernels forgotten in one request where all are to be: of the largest, those that a slow disk can manage.
const PORTION: i64 = 16;

/// Days for which uses are kept.
const KEPT_DAYS: i64 = 400;

/// Kernels whose uses are written in one transaction: each takes up to two round trips, and the whole must end in the
/// time of one request.
pub(super) const USES_AT_ONCE: usize = 200;

const MS_PER_DAY: i64 = 24 * 60 * 60 * 1000;

/// The day a time in milliseconds since 1970 falls into.
pub(super) fn day_of(unix_ms: i64) -> i64 {
    unix_ms.div_euclid(MS_PER_DAY)
}

pub(super) fn to_i64(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The row of a kernel with its bytes, not yet compared with anything.
pub(super) async fn kernel(pool: &Pool, id: &KernelId) -> Result<Option<Row>, sqlx::Error> {
    let found = "SELECT digest, metadata, verdict, confirmed_at_ms, seal, bytes
                 FROM kernels JOIN artifacts USING (id) WHERE id = $1";
    pool.reader().await?.row(found, &[Text(id.as_str())]).await
}

/// The kernel of a row; `None` where anything in it differs from what was stored.
///
/// Blocking: hashes all of it.
pub(super) fn unseal(id: &KernelId, row: &Row) -> Option<Stored> {
    let described = Described {
        id,
        digest: Digest::from_bytes(row.bytes(0).ok()?.try_into().ok()?),
        metadata: row.text(1).ok()?,
        verdict: row.maybe_text(2).ok()?,
        confirmed_unix_ms: row.int(3).ok()?,
    };
    described.open(row.bytes(4).ok()?, row.bytes(5).ok()?)
}

/// Drops a damaged row, unless another has taken its place since.
pub(super) async fn drop_damaged(pool: &Pool, id: &KernelId, row: &Row) -> Result<(), sqlx::Error> {
    let mut change = pool.writer().await?;
    let values = [Text(id.as_str()), Bytes(row.bytes(4)?)];
    change.execute("DELETE FROM kernels WHERE id = $1 AND seal = $2", &values).await?;
    change.commit().await
}

/// What is known against a kernel and believed at `now`.
pub(super) async fn negative(pool: &Pool, id: &KernelId, now: i64) -> Result<Option<Negative>, sqlx::Error> {
    // A clock that has been set back would otherwise believe a result for as long as it was set back.
    let known = "SELECT code, reason, until_ms, policy FROM negatives
                 WHERE id = $1 AND until_ms > $2 AND noted_at_ms <= $3";
    let values = [Text(id.as_str()), Int(now), Int(now.saturating_add(NODES_DIFFER_MS))];
    let Some(row) = pool.reader().await?.row(known, &values).await? else { return Ok(None) };
    let (code, reason) = (row.text(0)?.to_owned(), row.text(1)?.to_owned());
    let policy = row.maybe_bytes(3)?.and_then(|policy| policy.try_into().ok()).map(Digest::from_bytes);
    Ok(Some(Negative { code, reason, until_unix_ms: row.int(2)?, policy }))
}

/// Stores a kernel and puts out what no longer fits beside it; says how many went.
pub(super) async fn store(
    pool: &Pool,
    stored: &Stored,
    room: u64,
    clock: &dyn Clock,
) -> Result<u64, sqlx::Error> {
    let id = Text(stored.id().as_str());
    let metadata = stored.metadata.to_json();
    let verdict = stored.verdict.as_ref().map(|verdict| verdict_json(verdict));
    let described = Described {
        id: stored.id(),
        digest: stored.digest,
        metadata: &metadata,
        verdict: verdict.as_deref(),
        confirmed_unix_ms: stored.confirmed_unix_ms,
    };
    let seal = described.seal();
    let size = size_of(stored);
    let mut change = pool.writer().await?;
    // Read now, for a writer may have waited.
    let now = clock.unix_ms();
    change.execute("DELETE FROM negatives WHERE id = $1 OR until_ms <= $2", &[id, Int(now)]).await?;
    change.execute("DELETE FROM daily_uses WHERE day < $1", &[Int(day_of(now) - KEPT_DAYS)]).await?;
    // Keeps the longest row of most recently used kernels that fits beside the newcomer.
    let make_room = "DELETE FROM kernels WHERE id IN (
                         SELECT id FROM (
                             SELECT id, SUM(size_bytes) OVER (ORDER BY use_order DESC, id) AS newer
                             FROM kernels WHERE id <> $1) AS ranked
                         WHERE newer > $2)";
    let evicted = change.execute(make_room, &[id, Int(to_i64(room))]).await?;
    let keep = "INSERT INTO kernels (id, digest, metadata, verdict, confirmed_at_ms, seal, size_bytes,
                                     stored_at_ms, used_at_ms, use_order)
                VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $8,
                        (SELECT COALESCE(MAX(use_order), 0) + 1 FROM kernels))
                ON CONFLICT (id) DO UPDATE SET
                    digest = excluded.digest, metadata = excluded.metadata, verdict = excluded.verdict,
                    confirmed_at_ms = excluded.confirmed_at_ms, seal = excluded.seal,
                    size_bytes = excluded.size_bytes, stored_at_ms = excluded.stored_at_ms,
                    used_at_ms = excluded.used_at_ms, use_order = excluded.use_order";
    let values = [
        id,
        Bytes(stored.digest.as_bytes()),
        Text(&metadata),
        MaybeText(verdict.as_deref()),
        Int(stored.confirmed_unix_ms),
        Bytes(seal.as_bytes()),
        Int(to_i64(size)),
        Int(now),
    ];
    change.execute(keep, &values).await?;
    let keep_bytes = "INSERT INTO artifacts (id, bytes) VALUES ($1, $2)
                      ON CONFLICT (id) DO UPDATE SET bytes = excluded.bytes";
    change.execute(keep_bytes, &[id, Bytes(&stored.bytes)]).await?;
    change.commit().await?;
    Ok(evicted)
}

/// What a kernel takes of a tier's limit: the artifact and its description.
pub(super) fn size_of(stored: &Stored) -> u64 {
    let verdict = stored.verdict.as_ref().map_or(0, |verdict| verdict_json(verdict).len());
    (stored.bytes.len() + stored.metadata.to_json().len() + verdict) as u64
}

/// Notes a verdict; `false` where these bytes are not here.
pub(super) async fn store_verdict(
    pool: &Pool,
    id: &KernelId,
    digest: Digest,
    verdict: &Verdict,
) -> Result<bool, sqlx::Error> {
    let mut change = pool.writer().await?;
    let found = "SELECT metadata, confirmed_at_ms FROM kernels WHERE id = $1 AND digest = $2";
    let values = [Text(id.as_str()), Bytes(digest.as_bytes())];
    let Some(row) = change.row(found, &values).await? else { return Ok(false) };
    let verdict = verdict_json(verdict);
    let (metadata, confirmed_unix_ms) = (row.text(0)?, row.int(1)?);
    let seal = Described { id, digest, metadata, verdict: Some(&verdict), confirmed_unix_ms }.seal();
    let values = [Text(id.as_str()), Text(&verdict), Bytes(seal.as_bytes())];
    change.execute("UPDATE kernels SET verdict = $2, seal = $3 WHERE id = $1", &values).await?;
    change.commit().await?;
    Ok(true)
}

/// Notes that a kernel is not to be had, and drops its bytes.
pub(super) async fn store_negative(
    pool: &Pool,
    id: &KernelId,
    negative: &Negative,
    now: i64,
) -> Result<(), sqlx::Error> {
    let mut change = pool.writer().await?;
    let id = Text(id.as_str());
    change.execute("DELETE FROM kernels WHERE id = $1", &[id]).await?;
    change.execute("DELETE FROM negatives WHERE id = $1 OR until_ms <= $2", &[id, Int(now)]).await?;
    let bound = "DELETE FROM negatives WHERE id IN (
                     SELECT id FROM negatives ORDER BY until_ms DESC, id LIMIT $2 OFFSET $1)";
    change.execute(bound, &[Int(MAX_NEGATIVES - 1), Int(i64::MAX)]).await?;
    let note = "INSERT INTO negatives (id, code, reason, noted_at_ms, until_ms, policy)
                VALUES ($1, $2, $3, $4, $5, $6)";
    let (code, reason) = (Text(&negative.code), Text(&negative.reason));
    let policy = MaybeBytes(negative.policy.as_ref().map(|policy| policy.as_bytes().as_slice()));
    change.execute(note, &[id, code, reason, Int(now), Int(negative.until_unix_ms), policy]).await?;
    change.commit().await
}

/// Writes a portion of the uses down and says how many kernels' it was; kernels that are gone by now are passed over.
///
/// They are taken when no other writer can pass, so that who writes next finds them written.
pub(super) async fn note_uses(pool: &Pool, uses: &Uses, clock: &dyn Clock) -> Result<usize, sqlx::Error> {
    let mut change = pool.writer().await?;
    let taken = Taken::from(uses);
    write_uses(&mut change, &taken.noted, clock.unix_ms()).await?;
    change.commit().await?;
    Ok(taken.written())
}

/// Uses on their way into the database. They wait again where they do not arrive.
struct Taken<'a> {
    noted: Vec<Noted>,
    from: &'a Uses,
}

impl<'a> From<&'a Uses> for Taken<'a> {
    fn from(from: &'a Uses) -> Self {
        Self { noted: from.take(USES_AT_ONCE), from }
    }
}

impl Taken<'_> {
    fn written(mut self) -> usize {
        std::mem::take(&mut self.noted).len()
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.from.give_back(std::mem::take(&mut self.noted));
    }
}

async fn write_uses(change: &mut Connection, uses: &[Noted], now: i64) -> Result<(), sqlx::Error> {
    for noted in uses {
        let id = Text(noted.id.as_str());
        let count = "INSERT INTO daily_uses (id, day, uses) SELECT id, $2, $3 FROM kernels WHERE id = $1
                     ON CONFLICT (id, day) DO UPDATE SET uses = daily_uses.uses + excluded.uses";
        let here = change.execute(count, &[id, Int(day_of(now)), Int(to_i64(noted.count))]).await?;
        if noted.last_read.is_some() && here > 0 {
            let last = "UPDATE kernels SET used_at_ms = $2,
                               use_order = (SELECT MAX(use_order) + 1 FROM kernels) WHERE id = $1";
            change.execute(last, &[id, Int(now)]).await?;
        }
    }
    Ok(())
}

/// Forgets one kernel; says how many kernels and how many negative results went.
pub(super) async fn forget(pool: &Pool, id: &KernelId) -> Result<(u64, u64), sqlx::Error> {
    let mut change = pool.writer().await?;
    let id = [Text(id.as_str())];
    let kernels = change.execute("DELETE FROM kernels WHERE id = $1", &id).await?;
    let negatives = change.execute("DELETE FROM negatives WHERE id = $1", &id).await?;
    change.commit().await?;
    Ok((kernels, negatives))
}

/// Forgets every negative result and a portion of the kernels; says how many of these, and whether they were
/// the last.
pub(super) async fn forget_some(pool: &Pool) -> Result<(u64, bool), sqlx::Error> {
    let mut change = pool.writer().await?;
    let portion = "DELETE FROM kernels WHERE id IN (SELECT id FROM kernels ORDER BY use_order LIMIT $1)";
    let kernels = change.execute(portion, &[Int(PORTION)]).await?;
    change.execute("DELETE FROM negatives", &[]).await?;
    change.commit().await?;
    Ok((kernels, kernels < PORTION.unsigned_abs()))
}

/// What is here of a kernel, its bytes not looked at.
pub(super) async fn about(pool: &Pool, id: &KernelId) -> Result<Option<Held>, sqlx::Error> {
    let found =
        "SELECT digest, CAST(LENGTH(bytes) AS BIGINT), stored_at_ms, used_at_ms, confirmed_at_ms, verdict
                 FROM kernels JOIN artifacts USING (id) WHERE id = $1";
    let Some(row) = pool.reader().await?.row(found, &[Text(id.as_str())]).await? else { return Ok(None) };
    let Ok(digest) = row.bytes(0)?.try_into() else { return Ok(None) };
    Ok(Some(Held {
        digest: Digest::from_bytes(digest),
        bytes: row.int(1)?.unsigned_abs(),
        stored_unix_ms: row.int(2)?,
        used_unix_ms: Some(row.int(3)?),
        confirmed_unix_ms: row.int(4)?,
        verdict: row.maybe_text(5)?.and_then(|verdict| serde_json::from_str(verdict).ok()).map(Arc::new),
    }))
}

/// The kernels with the most uses on the days from `since` to `now`.
pub(super) async fn most_used(
    pool: &Pool,
    since: i64,
    now: i64,
    limit: u32,
) -> Result<Vec<KernelId>, sqlx::Error> {
    // A day beyond the next was counted by a clock that was wrong.
    let ranked = "SELECT kernels.id FROM kernels JOIN daily_uses ON daily_uses.id = kernels.id
                  WHERE day >= $1 AND day <= $2
                  GROUP BY kernels.id, kernels.use_order
                  ORDER BY SUM(uses) DESC, kernels.use_order DESC LIMIT $3";
    let values = [Int(day_of(since)), Int(day_of(now) + 1), Int(limit.into())];
    let rows = pool.reader().await?.rows(ranked, &values).await?;
    let ids: Result<Vec<&str>, _> = rows.iter().map(|row| row.text(0)).collect();
    Ok(ids?.into_iter().filter_map(|id| id.parse().ok()).collect())
}

/// How many kernels are here, and their bytes.
pub(super) async fn contents(pool: &Pool) -> Result<(u64, u64), sqlx::Error> {
    let sums = "SELECT COUNT(*), CAST(COALESCE(SUM(size_bytes), 0) AS BIGINT) FROM kernels";
    let row = pool.reader().await?.row(sums, &[]).await?.ok_or(sqlx::Error::RowNotFound)?;
    Ok((row.int(0)?.unsigned_abs(), row.int(1)?.unsigned_abs()))
}
