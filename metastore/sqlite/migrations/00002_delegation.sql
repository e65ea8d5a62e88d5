-- Delegation tokens and master keys. The table counter replaces sequences, which SQLite does not have: each kind of
-- number has a row, and next is the next number to give.

-- +goose Up
CREATE TABLE counter (
    name        TEXT    NOT NULL PRIMARY KEY,
    next        INTEGER NOT NULL CHECK (next BETWEEN 1 AND 2147483648)
) STRICT, WITHOUT ROWID;
INSERT INTO counter (name, next) VALUES ('token', 1), ('master key', 1);

CREATE TABLE master_key (
    id          INTEGER PRIMARY KEY,
    expires     INTEGER NOT NULL,
    key         BLOB    NOT NULL
) STRICT;

CREATE TABLE delegation (
    sequence    INTEGER PRIMARY KEY,
    identifier  BLOB    NOT NULL,
    password    BLOB    NOT NULL,
    renew       INTEGER NOT NULL
) STRICT;
CREATE INDEX delegation_renew ON delegation (renew);

-- +goose Down
DROP TABLE delegation;
DROP TABLE master_key;
DROP TABLE counter;
