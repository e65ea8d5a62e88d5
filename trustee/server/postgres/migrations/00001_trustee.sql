-- +goose Up
-- COLLATE "C" compares texts by their bytes, because the protocol orders them so.
CREATE TABLE trustee_identity (
  one         BOOLEAN PRIMARY KEY CHECK (one),
  fingerprint TEXT NOT NULL
);

CREATE TABLE trustee_org (
  name     TEXT COLLATE "C" PRIMARY KEY,
  uuid     TEXT NOT NULL UNIQUE,
  contacts TEXT[] NOT NULL,
  auth     TEXT NOT NULL,
  created  BIGINT NOT NULL -- milliseconds since 1970, as all times here
);

CREATE TABLE trustee_client (
  fingerprint TEXT COLLATE "C" PRIMARY KEY,
  org         TEXT COLLATE "C" NOT NULL REFERENCES trustee_org (name),
  public_key  BYTEA NOT NULL,
  state       TEXT NOT NULL CHECK (state IN ('pending', 'active', 'disabled')),
  created     BIGINT NOT NULL
);
CREATE INDEX trustee_client_org ON trustee_client (org, state);

CREATE TABLE trustee_deposit (
  uuid      TEXT COLLATE "C" PRIMARY KEY,
  owner     TEXT COLLATE "C" NOT NULL REFERENCES trustee_client (fingerprint),
  org       TEXT COLLATE "C" NOT NULL REFERENCES trustee_org (name),
  label     TEXT COLLATE "C" NOT NULL,
  access    TEXT[] NOT NULL,
  expires   BIGINT,
  deleted   BIGINT,
  statement BYTEA NOT NULL,
  signature BYTEA NOT NULL,
  content   BYTEA NOT NULL,
  wrapped   BOOLEAN NOT NULL -- true if a Key HSM has wrapped the content
);

CREATE UNIQUE INDEX trustee_deposit_live ON trustee_deposit (owner, label) WHERE deleted IS NULL;
CREATE INDEX trustee_deposit_deleted ON trustee_deposit (owner, label, uuid) WHERE deleted IS NOT NULL;
CREATE INDEX trustee_deposit_expires ON trustee_deposit (expires) WHERE expires IS NOT NULL;

-- Digests of requests that changed something. The server does not do a request again whose digest is in this table.
CREATE TABLE trustee_once (
  digest TEXT COLLATE "C" PRIMARY KEY,
  until  BIGINT NOT NULL
);
CREATE INDEX trustee_once_until ON trustee_once (until);
