-- The kind of each missing change. An operator must know which deletions an older database has undone.

-- +goose Up
ALTER TABLE lost_change ADD COLUMN change text NOT NULL DEFAULT ''; -- '' if an older program has written the row

-- +goose Down
ALTER TABLE lost_change DROP COLUMN change;
