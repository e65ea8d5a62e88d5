-- Which versions were never used. A row comes with the number of a version, and goes
-- before the first answer that needs the version. What has no row may have been used:
-- all that is older than this table.

-- +goose Up
CREATE TABLE version_unused (
    version TEXT NOT NULL PRIMARY KEY -- full name
) STRICT, WITHOUT ROWID;

-- The newest time in the store is asked for at each deletion and comparison of clocks.
CREATE INDEX version_use_last ON version_use (last);
CREATE INDEX journal_at ON journal (at);

-- +goose Down
DROP INDEX journal_at;
DROP INDEX version_use_last;
DROP TABLE version_unused;
