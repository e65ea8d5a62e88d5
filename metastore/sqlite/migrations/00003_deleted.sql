-- Deleted keys have tables of their own, so that no query for a live key can return a deleted one by mistake.

-- +goose Up
CREATE TABLE deleted_key (
    id          INTEGER PRIMARY KEY AUTOINCREMENT, -- grows: the order of deletion
    name        TEXT    NOT NULL,                  -- not unique: a name may be deleted again
    since       INTEGER NOT NULL,
    cipher      TEXT    NOT NULL,
    bit_length  INTEGER NOT NULL,
    description TEXT,
    attributes  TEXT    NOT NULL,
    created     INTEGER NOT NULL
) STRICT;
CREATE INDEX deleted_key_name ON deleted_key (name);

CREATE TABLE deleted_version (
    key_id      INTEGER NOT NULL REFERENCES deleted_key (id) ON DELETE CASCADE,
    seq         INTEGER NOT NULL,
    id          TEXT    NOT NULL UNIQUE,
    created     INTEGER NOT NULL,
    check_value BLOB    NOT NULL,
    PRIMARY KEY (key_id, seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE version_use (
    version     TEXT    NOT NULL PRIMARY KEY,
    last        INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO setting (name, value) VALUES ('version.use.since', strftime('%s', 'now') || '000');

-- +goose Down
DELETE FROM setting WHERE name = 'version.use.since';
DROP TABLE version_use;
DROP TABLE deleted_version;
DROP TABLE deleted_key;
