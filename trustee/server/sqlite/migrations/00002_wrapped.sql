-- +goose Up
-- wrapped is 1 if a Key HSM has wrapped the content, and 0 otherwise.
ALTER TABLE deposit ADD COLUMN wrapped INTEGER NOT NULL DEFAULT 0;
