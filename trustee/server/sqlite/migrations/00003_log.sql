-- +goose Up
-- The log of changes. A second server gets the changes from it. It is empty if there is no second server.
CREATE TABLE change (
  seq     INTEGER PRIMARY KEY,
  epoch   INTEGER NOT NULL,
  digest  TEXT NOT NULL,  -- over that of seq - 1, seq, epoch and payload
  payload BLOB NOT NULL   -- JSON of a server.Change
) STRICT;

-- One row: the role of the store as one of two, and the head of its log.
CREATE TABLE standing (
  one      INTEGER PRIMARY KEY CHECK (one = 1),
  role     TEXT NOT NULL CHECK (role IN ('single', 'active', 'passive')),
  epoch    INTEGER NOT NULL,
  alone    INTEGER NOT NULL,
  unshared INTEGER NOT NULL, -- seq, 0 is none
  seq      INTEGER NOT NULL,
  made     INTEGER NOT NULL, -- epoch of seq
  digest   TEXT NOT NULL
) STRICT;
INSERT INTO standing VALUES (1, 'single', 0, 0, 0, 0, 0, '');
