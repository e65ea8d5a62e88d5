-- The changes of keys, newest last. With this table a node detects changes of which it got no notice, and a database
-- that has lost an acknowledged change.

-- +goose Up
CREATE TABLE change (
    seq         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, -- in the order of writing, not of commits
    id          text COLLATE "C" NOT NULL,                       -- random, so that changes of two databases differ
    key         text COLLATE "C" NOT NULL,
    change      text   NOT NULL,
    at          bigint NOT NULL
);

-- Changes that a node has seen, and that this database lacks. While the table has a row, every node refuses changes.
CREATE TABLE lost_change (
    id          text COLLATE "C" PRIMARY KEY,
    seq         bigint NOT NULL,
    key         text COLLATE "C" NOT NULL,
    at          bigint NOT NULL,
    told        bigint NOT NULL  -- when a node found it missing
);

-- +goose Down
DROP TABLE lost_change, change;
