-- What was done to a key by a change that is missing: an operator must know of
-- deletions, which an older database has undone.

-- +goose Up
ALTER TABLE lost_change ADD COLUMN change text NOT NULL DEFAULT ''; -- '' where an older program has told of it

-- +goose Down
ALTER TABLE lost_change DROP COLUMN change;
