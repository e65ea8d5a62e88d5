-- Times are milliseconds since 1970 UTC. Names sort by bytes (COLLATE "C"), like in the other stores, whatever
-- collation the database has.

-- +goose Up
-- Each change of a key takes the next epoch. If the epoch is the same as before, a node knows that its cached data of
-- the key is current.
CREATE SEQUENCE key_epoch AS bigint;

CREATE TABLE ez_key (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name        text COLLATE "C" NOT NULL UNIQUE CHECK (name <> ''),
    epoch       bigint NOT NULL DEFAULT nextval('key_epoch'),
    cipher      text   NOT NULL,
    bit_length  integer NOT NULL CHECK (bit_length > 0),
    description text,             -- NULL and '' are different descriptions
    attributes  text   NOT NULL CHECK (json_typeof(attributes::json) = 'object'),
    created     bigint NOT NULL
);

-- id is the CKA_ID of the HSM object, in hex. It is UNIQUE in the whole table, because two versions cannot have the
-- same object, whatever their keys are.
CREATE TABLE key_version (
    key_id      bigint  NOT NULL REFERENCES ez_key (id) ON DELETE CASCADE,
    seq         integer NOT NULL, -- place among the key's versions, 0 the oldest
    id          text COLLATE "C" NOT NULL UNIQUE CHECK (id <> ''),
    created     bigint  NOT NULL,
    check_value bytea   NOT NULL,
    PRIMARY KEY (key_id, seq)
);

CREATE TABLE intent (
    seq         bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    key         text COLLATE "C" PRIMARY KEY,
    op          text   NOT NULL CHECK (op <> ''),
    ids         text[] NOT NULL,
    begun       bigint NOT NULL,
    payload     bytea  NOT NULL
);

CREATE TABLE source_use (
    source      text COLLATE "C" NOT NULL,
    version     text COLLATE "C" NOT NULL,
    op          text COLLATE "C" NOT NULL,
    count       bigint NOT NULL,
    last        bigint NOT NULL,
    PRIMARY KEY (source, version, op)
);

CREATE TABLE journal (
    seq         bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    run         text COLLATE "C" NOT NULL CHECK (run <> ''),
    item        text COLLATE "C" NOT NULL, -- '' is the run's own record
    data        bytea  NOT NULL,
    at          bigint NOT NULL,
    PRIMARY KEY (run, item)
);

CREATE TABLE setting (
    name        text COLLATE "C" PRIMARY KEY,
    value       text NOT NULL
);

-- The tables below have the data that several nodes share beside keys.
CREATE SEQUENCE token_sequence AS integer;
CREATE SEQUENCE master_key_id AS integer;

CREATE TABLE master_key (
    id          integer PRIMARY KEY,
    expires     bigint NOT NULL,
    key         bytea  NOT NULL
);

CREATE TABLE delegation (
    sequence    integer PRIMARY KEY,
    identifier  bytea  NOT NULL,
    password    bytea  NOT NULL,
    renew       bigint NOT NULL
);
CREATE INDEX delegation_renew ON delegation (renew);

CREATE TABLE signer_secrets (
    one         boolean PRIMARY KEY DEFAULT true CHECK (one), -- there is one row at most
    version     bigint NOT NULL,
    next        bytea  NOT NULL,
    current     bytea  NOT NULL,
    previous    bytea,
    rollover    bigint NOT NULL
);

-- +goose Down
DROP TABLE signer_secrets, delegation, master_key, setting, journal, source_use, intent, key_version, ez_key;
DROP SEQUENCE master_key_id, token_sequence, key_epoch;
