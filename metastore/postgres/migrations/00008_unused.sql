-- Which versions were never used. A row comes with the number of a version, and goes
-- before the first answer that needs the version. What has no row may have been used:
-- all that is older than this table.

-- +goose Up
CREATE TABLE version_unused (
    version text COLLATE "C" NOT NULL -- full name
);
CREATE UNIQUE INDEX version_unused_digest ON version_unused (sha256(replace(version, '\', '\\')::bytea));
CREATE INDEX version_unused_hash ON version_unused USING hash (version);

-- +goose Down
DROP TABLE version_unused;
