-- +goose Up
-- The log of changes. A second server gets the changes from it. It is empty if there is no second server.
CREATE TABLE change (
  seq     INTEGER PRIMARY KEY,
  epoch   INTEGER NOT NULL,
  digest  TEXT NOT NULL,  -- over that of seq - 1, seq, epoch and payload
  payload BLOB NOT NULL   -- JSON of a replica.Change
) STRICT;

-- One row: the role of this store as one of two (its standing), and the head of its log, which is the last change.
-- It holds a replica.Position.
CREATE TABLE standing (
  one      INTEGER PRIMARY KEY CHECK (one = 1),
  role     TEXT NOT NULL CHECK (role IN ('single', 'active', 'passive')),
  epoch    INTEGER NOT NULL, -- counts promotions
  alone    INTEGER NOT NULL, -- 1 lets the active server make changes that the peer lacks
  unshared INTEGER NOT NULL, -- seq of the first change that the peer lacks, 0 for none
  seq      INTEGER NOT NULL, -- of the head
  made     INTEGER NOT NULL, -- epoch of the head
  digest   TEXT NOT NULL     -- of the head
) STRICT;
INSERT INTO standing VALUES (1, 'single', 0, 0, 0, 0, 0, '');
