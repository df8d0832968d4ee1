-- Written for SQLite. For PostgreSQL the types INTEGER and BLOB become BIGINT and BYTEA, and STRICT goes.
--
-- A kernel's row is small and changes with every use; its bytes are large and never change, so they stand
-- apart: both databases rewrite a row as a whole.
CREATE TABLE kernels (
    id              TEXT    NOT NULL PRIMARY KEY,
    digest          BLOB    NOT NULL,            -- SHA-256 of the artifact
    metadata        TEXT    NOT NULL,            -- the catalogue entry as JSON
    verdict         TEXT,                        -- the validator's verdict as JSON
    confirmed_at_ms INTEGER NOT NULL,            -- when the origin last vouched for it
    seal            BLOB    NOT NULL,            -- SHA-256 over id, digest, metadata, verdict, confirmed_at_ms
    size_bytes      INTEGER NOT NULL,            -- artifact, metadata and verdict together
    stored_at_ms    INTEGER NOT NULL,
    used_at_ms      INTEGER NOT NULL,            -- for people; no clock decides what is evicted
    use_order       INTEGER NOT NULL             -- rises with every use; the lowest is evicted first
) STRICT;

CREATE INDEX kernels_by_use ON kernels (use_order);

CREATE TABLE artifacts (
    id              TEXT    NOT NULL PRIMARY KEY REFERENCES kernels (id) ON DELETE CASCADE,
    bytes           BLOB    NOT NULL
) STRICT;

CREATE TABLE daily_uses (
    id              TEXT    NOT NULL REFERENCES kernels (id) ON DELETE CASCADE,
    day             INTEGER NOT NULL,            -- days since 1970
    uses            INTEGER NOT NULL,
    PRIMARY KEY (id, day)
) STRICT;

CREATE INDEX daily_uses_by_day ON daily_uses (day);

CREATE TABLE negatives (
    id              TEXT    NOT NULL PRIMARY KEY,
    code            TEXT    NOT NULL,
    reason          TEXT    NOT NULL,
    noted_at_ms     INTEGER NOT NULL,            -- a clock that stands before this has been set back
    until_ms        INTEGER NOT NULL
) STRICT;

CREATE INDEX negatives_by_end ON negatives (until_ms);
