-- +goose Up
CREATE TABLE org (
  name     TEXT PRIMARY KEY,
  uuid     TEXT NOT NULL UNIQUE,
  contacts TEXT NOT NULL, -- JSON list
  auth     TEXT NOT NULL,
  created  INTEGER NOT NULL -- milliseconds since 1970, as all times here
) STRICT;

CREATE TABLE client (
  fingerprint TEXT PRIMARY KEY,
  org         TEXT NOT NULL REFERENCES org (name),
  public_key  BLOB NOT NULL,
  state       TEXT NOT NULL CHECK (state IN ('pending', 'active', 'disabled')),
  created     INTEGER NOT NULL
) STRICT;

CREATE TABLE deposit (
  uuid      TEXT PRIMARY KEY,
  owner     TEXT NOT NULL REFERENCES client (fingerprint),
  org       TEXT NOT NULL REFERENCES org (name),
  label     TEXT NOT NULL,
  access    TEXT NOT NULL, -- JSON list
  expires   INTEGER,
  deleted   INTEGER,
  statement BLOB NOT NULL,
  signature BLOB NOT NULL,
  content   BLOB NOT NULL
) STRICT;

CREATE UNIQUE INDEX deposit_live ON deposit (owner, label) WHERE deleted IS NULL;
CREATE INDEX deposit_deleted ON deposit (owner, label) WHERE deleted IS NOT NULL;
CREATE INDEX deposit_expires ON deposit (expires) WHERE expires IS NOT NULL;

-- Digests of requests that changed something. The server does not do a request again whose digest is in this table.
CREATE TABLE once (
  digest TEXT PRIMARY KEY,
  until  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX once_until ON once (until);
