-- A row of a btree index has at most a third of a page, 2,704 bytes, but a name may be longer. So the unique indexes
-- have digests of names, and hash indexes, which allow any length, find names.

-- +goose Up
-- A cast of a text with doubled backslashes to bytea returns the bytes of the text. The usual function for that,
-- convert_to, is not immutable, and a function of our own would cost each session time.
ALTER TABLE ez_key DROP CONSTRAINT ez_key_name_key;
CREATE UNIQUE INDEX ez_key_name_digest ON ez_key (sha256(replace(name, '\', '\\')::bytea));
CREATE INDEX ez_key_name_hash ON ez_key USING hash (name);

ALTER TABLE intent DROP CONSTRAINT intent_pkey;
CREATE UNIQUE INDEX intent_key_digest ON intent (sha256(replace(key, '\', '\\')::bytea));
CREATE INDEX intent_key_hash ON intent USING hash (key);

ALTER TABLE key_number DROP CONSTRAINT key_number_pkey;
CREATE UNIQUE INDEX key_number_name_digest ON key_number (sha256(replace(name, '\', '\\')::bytea), first);
CREATE INDEX key_number_name_hash ON key_number USING hash (name);

DROP INDEX deleted_key_name;
CREATE INDEX deleted_key_name_hash ON deleted_key USING hash (name);

ALTER TABLE source_use DROP CONSTRAINT source_use_pkey;
CREATE UNIQUE INDEX source_use_digest ON source_use
    (sha256(replace(source, '\', '\\')::bytea), sha256(replace(version, '\', '\\')::bytea), op);

ALTER TABLE version_use DROP CONSTRAINT version_use_pkey;
CREATE UNIQUE INDEX version_use_digest ON version_use (sha256(replace(version, '\', '\\')::bytea));
CREATE INDEX version_use_hash ON version_use USING hash (version);

ALTER TABLE journal DROP CONSTRAINT journal_pkey;
CREATE UNIQUE INDEX journal_item_digest ON journal (run, sha256(replace(item, '\', '\\')::bytea));

-- The alias of a key is a setting whose name contains the name of the key.
ALTER TABLE setting DROP CONSTRAINT setting_pkey;
CREATE UNIQUE INDEX setting_name_digest ON setting (sha256(replace(name, '\', '\\')::bytea));
CREATE INDEX setting_name_hash ON setting USING hash (name);

-- There is no way down: names that were written since may be too long for the older indexes.
