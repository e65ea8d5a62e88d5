-- What was changed of keys, newest last: so that a node can tell a change that it has
-- not heard of, and a database that has lost a change which was acknowledged.

-- +goose Up
CREATE TABLE change (
    seq         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, -- in order of writing, which is not that of commits
    id          text COLLATE "C" NOT NULL,                       -- random: two histories have no change in common by chance
    key         text COLLATE "C" NOT NULL,
    change      text   NOT NULL,
    at          bigint NOT NULL
);

-- Changes that a node has seen and that this database lacks. Nothing is changed while
-- one is here: every node refuses to.
CREATE TABLE lost_change (
    id          text COLLATE "C" PRIMARY KEY,
    seq         bigint NOT NULL,
    key         text COLLATE "C" NOT NULL,
    at          bigint NOT NULL,
    told        bigint NOT NULL  -- when a node found it missing
);

-- +goose Down
DROP TABLE lost_change, change;
