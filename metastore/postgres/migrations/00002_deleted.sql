-- Deleted keys have tables of their own, so that no query for a live key can return a deleted one by mistake.

-- +goose Up
CREATE TABLE deleted_key (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, -- grows: the order of deletion
    name        text COLLATE "C" NOT NULL,                       -- not unique: a name may be deleted again
    since       bigint NOT NULL,
    cipher      text   NOT NULL,
    bit_length  integer NOT NULL,
    description text,
    attributes  text   NOT NULL,
    created     bigint NOT NULL
);
CREATE INDEX deleted_key_name ON deleted_key (name);

CREATE TABLE deleted_version (
    key_id      bigint  NOT NULL REFERENCES deleted_key (id) ON DELETE CASCADE,
    seq         integer NOT NULL,
    id          text COLLATE "C" NOT NULL UNIQUE,
    created     bigint  NOT NULL,
    check_value bytea   NOT NULL,
    PRIMARY KEY (key_id, seq)
);

CREATE TABLE version_use (
    version     text COLLATE "C" PRIMARY KEY,
    last        bigint NOT NULL
);
INSERT INTO setting (name, value) VALUES ('version.use.since', (extract(epoch FROM now()) * 1000)::bigint::text);

-- +goose Down
DELETE FROM setting WHERE name = 'version.use.since';
DROP TABLE version_use, deleted_version, deleted_key;
