-- Versions are numbered: the id of a new version is a decimal number that is given once for a name. The CKA_ID of the
-- HSM object has its own column. Existing versions keep their ids, which are the CKA_ID in hex.

-- +goose Up
-- A row says that the numbers from first to next - 1 were given to versions of a name. The highest next of a name is
-- the next number to give. A row with first = next has no given numbers: lower numbers name versions elsewhere. No row
-- is ever removed, because EDEKs keep the names of versions for ever.
CREATE TABLE key_number (
    name        text COLLATE "C" NOT NULL CHECK (name <> ''),
    first       integer NOT NULL CHECK (first >= 0),
    next        integer NOT NULL CHECK (next >= first),
    PRIMARY KEY (name, first)
);

-- Clients compute NAME@(versions-1), and the metadata of these keys counts their
-- versions. A roll after the upgrade gives the number that makes both agree.
INSERT INTO key_number (name, first, next)
SELECT name, max(n), max(n) FROM (
    SELECT k.name AS name, count(*) AS n FROM ez_key k JOIN key_version v ON v.key_id = k.id GROUP BY k.id, k.name
    UNION ALL
    SELECT k.name, count(*) FROM deleted_key k JOIN deleted_version v ON v.key_id = k.id GROUP BY k.id, k.name
    UNION ALL
    -- The number of versions that a migration found at its source: numbers below it may be in use there.
    SELECT item, (convert_from(data, 'UTF8')::json #>> '{source,versions}')::bigint FROM journal
    WHERE run LIKE 'migration-%' AND item <> ''
) AS known
WHERE n BETWEEN 1 AND 2147483646 GROUP BY name;

ALTER TABLE key_version ADD COLUMN object text COLLATE "C";
UPDATE key_version SET object = id;
ALTER TABLE key_version ALTER COLUMN object SET NOT NULL,
    ADD CHECK (object <> ''),
    DROP CONSTRAINT key_version_id_key,
    ADD UNIQUE (key_id, id),
    ADD CONSTRAINT key_version_object_key UNIQUE (object); -- no two versions may share an HSM object

ALTER TABLE deleted_version ADD COLUMN object text COLLATE "C";
UPDATE deleted_version SET object = id;
ALTER TABLE deleted_version ALTER COLUMN object SET NOT NULL,
    DROP CONSTRAINT deleted_version_id_key,
    ADD UNIQUE (key_id, id),
    ADD UNIQUE (object);

-- objects[i] is the HSM object of the version ids[i].
ALTER TABLE intent ADD COLUMN objects text[] NOT NULL DEFAULT '{}';
UPDATE intent SET objects = ids;
ALTER TABLE intent ADD CHECK (cardinality(objects) = cardinality(ids));

-- There is no way down: an older program would read a number as the CKA_ID of an object.
