-- A kernel's row is small and changes with every use; its bytes are large and never change, so they stand
-- apart: SQLite rewrites a row as a whole.
CREATE TABLE kernels (
    id            TEXT    NOT NULL PRIMARY KEY,
    digest        BLOB    NOT NULL,              -- SHA-256 of the artifact
    metadata      TEXT    NOT NULL,              -- the catalogue entry as JSON
    verdict       TEXT,                          -- the validator's verdict as JSON
    seal          BLOB    NOT NULL,              -- SHA-256 over id, digest, metadata, verdict and confirmed_at_ms
    size_bytes    INTEGER NOT NULL,
    uses          INTEGER NOT NULL DEFAULT 0,
    confirmed_at_ms INTEGER NOT NULL,            -- when the origin last vouched for it
    stored_at_ms  INTEGER NOT NULL,
    used_at_ms    INTEGER NOT NULL,
    use_order     INTEGER NOT NULL               -- rises with every use; the lowest is evicted first
) STRICT;

CREATE INDEX kernels_by_use ON kernels (use_order);

CREATE TABLE artifacts (
    id            TEXT    NOT NULL PRIMARY KEY REFERENCES kernels (id) ON DELETE CASCADE,
    bytes         BLOB    NOT NULL
) STRICT;

CREATE TABLE negatives (
    id            TEXT    NOT NULL PRIMARY KEY,
    code          TEXT    NOT NULL,
    reason        TEXT    NOT NULL,
    until_ms      INTEGER NOT NULL
) STRICT;
