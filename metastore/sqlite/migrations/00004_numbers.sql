-- Versions are numbered: the id of a new version is a decimal number that is given once for a name. The CKA_ID of the
-- HSM object has its own column. Existing versions keep their ids, which are the CKA_ID in hex.

-- +goose Up
-- A row says that the numbers from first to next - 1 were given to versions of a name. The highest next of a name is
-- the next number to give. A row with first = next has no given numbers: lower numbers name versions elsewhere. No row
-- is ever removed, because EDEKs keep the names of versions for ever.
CREATE TABLE key_number (
    name        TEXT    NOT NULL CHECK (name <> ''),
    first       INTEGER NOT NULL CHECK (first >= 0),
    next        INTEGER NOT NULL CHECK (next BETWEEN first AND 2147483647),
    PRIMARY KEY (name, first)
) STRICT, WITHOUT ROWID;

-- Clients compute NAME@(versions-1), and the metadata of these keys counts their
-- versions. A roll after the upgrade gives the number that makes both agree.
INSERT INTO key_number (name, first, next)
SELECT name, max(n), max(n) FROM (
    SELECT k.name AS name, count(*) AS n FROM ez_key k JOIN key_version v ON v.key_id = k.id GROUP BY k.id
    UNION ALL
    SELECT k.name, count(*) FROM deleted_key k JOIN deleted_version v ON v.key_id = k.id GROUP BY k.id
    UNION ALL
    -- The number of versions that a migration found at its source: numbers below it may be in use there.
    SELECT item, json_extract(CAST(data AS TEXT), '$.source.versions') FROM journal
    WHERE run LIKE 'migration-%' AND item <> '' AND json_valid(CAST(data AS TEXT))
)
WHERE n BETWEEN 1 AND 2147483646 GROUP BY name;

CREATE TABLE version_new (
    key_id      INTEGER NOT NULL REFERENCES ez_key (id) ON DELETE CASCADE,
    seq         INTEGER NOT NULL, -- place among the key's versions, 0 the oldest
    id          TEXT    NOT NULL CHECK (id <> ''),
    object      TEXT    NOT NULL UNIQUE CHECK (object <> ''), -- no two versions may share an HSM object
    created     INTEGER NOT NULL,
    check_value BLOB    NOT NULL,
    PRIMARY KEY (key_id, seq),
    UNIQUE (key_id, id)
) STRICT, WITHOUT ROWID;
INSERT INTO version_new SELECT key_id, seq, id, id, created, check_value FROM key_version;
DROP TABLE key_version;
ALTER TABLE version_new RENAME TO key_version;

CREATE TABLE version_new (
    key_id      INTEGER NOT NULL REFERENCES deleted_key (id) ON DELETE CASCADE,
    seq         INTEGER NOT NULL,
    id          TEXT    NOT NULL,
    object      TEXT    NOT NULL UNIQUE,
    created     INTEGER NOT NULL,
    check_value BLOB    NOT NULL,
    PRIMARY KEY (key_id, seq),
    UNIQUE (key_id, id)
) STRICT, WITHOUT ROWID;
INSERT INTO version_new SELECT key_id, seq, id, id, created, check_value FROM deleted_version;
DROP TABLE deleted_version;
ALTER TABLE version_new RENAME TO deleted_version;

-- objects[i] is the HSM object of the version ids[i].
ALTER TABLE intent ADD COLUMN objects TEXT NOT NULL DEFAULT '[]' CHECK (json_type(objects) = 'array');
UPDATE intent SET objects = ids;

-- There is no way down: an older program would read a number as the CKA_ID of an object.
