-- Times are milliseconds since 1970 UTC. Every table is STRICT, so that SQLite refuses a value of a wrong type.

-- +goose Up
CREATE TABLE ez_key (
    id          INTEGER PRIMARY KEY,
    name        TEXT    NOT NULL UNIQUE CHECK (name <> ''),
    cipher      TEXT    NOT NULL,
    bit_length  INTEGER NOT NULL CHECK (bit_length > 0),
    description TEXT,             -- NULL and '' are different descriptions
    attributes  TEXT    NOT NULL CHECK (json_type(attributes) = 'object'),
    created     INTEGER NOT NULL
) STRICT;

-- id is the CKA_ID of the HSM object, in hex. It is UNIQUE in the whole table, because two versions cannot have the
-- same object, whatever their keys are.
CREATE TABLE key_version (
    key_id      INTEGER NOT NULL REFERENCES ez_key (id) ON DELETE CASCADE,
    seq         INTEGER NOT NULL, -- place among the key's versions, 0 the oldest
    id          TEXT    NOT NULL UNIQUE CHECK (id <> ''),
    created     INTEGER NOT NULL,
    check_value BLOB    NOT NULL,
    PRIMARY KEY (key_id, seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE intent (
    seq         INTEGER PRIMARY KEY AUTOINCREMENT,
    key         TEXT    NOT NULL UNIQUE,
    op          TEXT    NOT NULL CHECK (op <> ''),
    ids         TEXT    NOT NULL CHECK (json_type(ids) = 'array'),
    begun       INTEGER NOT NULL,
    payload     BLOB    NOT NULL
) STRICT;

CREATE TABLE source_use (
    source      TEXT    NOT NULL,
    version     TEXT    NOT NULL,
    op          TEXT    NOT NULL,
    count       INTEGER NOT NULL,
    last        INTEGER NOT NULL,
    PRIMARY KEY (source, version, op)
) STRICT, WITHOUT ROWID;

CREATE TABLE journal (
    seq         INTEGER PRIMARY KEY AUTOINCREMENT,
    run         TEXT    NOT NULL CHECK (run <> ''),
    item        TEXT    NOT NULL, -- '' is the run's own record
    data        BLOB    NOT NULL,
    at          INTEGER NOT NULL,
    UNIQUE (run, item)
) STRICT;

CREATE TABLE setting (
    name        TEXT    NOT NULL PRIMARY KEY,
    value       TEXT    NOT NULL
) STRICT, WITHOUT ROWID;

-- +goose Down
DROP TABLE setting;
DROP TABLE journal;
DROP TABLE source_use;
DROP TABLE intent;
DROP TABLE key_version;
DROP TABLE ez_key;
