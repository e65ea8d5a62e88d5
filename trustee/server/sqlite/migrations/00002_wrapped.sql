-- +goose Up
-- 1: the content is as a Key HSM has wrapped it.
ALTER TABLE deposit ADD COLUMN wrapped INTEGER NOT NULL DEFAULT 0;
