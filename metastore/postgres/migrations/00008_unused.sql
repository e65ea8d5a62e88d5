-- The versions that were never used. A row is written when a version gets its number, and removed before the first
-- answer that uses the version. A version without a row may have been used, for example if it is older than this table.

-- +goose Up
CREATE TABLE version_unused (
    version text COLLATE "C" NOT NULL -- full name
);
CREATE UNIQUE INDEX version_unused_digest ON version_unused (sha256(replace(version, '\', '\\')::bytea));
CREATE INDEX version_unused_hash ON version_unused USING hash (version);

-- +goose Down
DROP TABLE version_unused;
