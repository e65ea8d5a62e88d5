-- The versions that were never used. A row is written when a version gets its number, and removed before the first
-- answer that uses the version. A version without a row may have been used, for example if it is older than this table.

-- +goose Up
CREATE TABLE version_unused (
    version TEXT NOT NULL PRIMARY KEY -- full name
) STRICT, WITHOUT ROWID;

-- Each deletion and each comparison of clocks queries the newest time in the store.
CREATE INDEX version_use_last ON version_use (last);
CREATE INDEX journal_at ON journal (at);

-- +goose Down
DROP INDEX journal_at;
DROP INDEX version_use_last;
DROP TABLE version_unused;
