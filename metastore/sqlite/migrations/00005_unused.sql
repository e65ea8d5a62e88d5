-- Which versions were never used. A row comes with the number of a version, and goes
-- before the first answer that needs the version. What has no row may have been used:
-- all that is older than this table.

-- +goose Up
CREATE TABLE version_unused (
    version TEXT NOT NULL PRIMARY KEY -- full name
) STRICT, WITHOUT ROWID;

-- +goose Down
DROP TABLE version_unused;
