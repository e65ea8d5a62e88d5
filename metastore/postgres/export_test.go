package postgres

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"claviger/metastore"
)

// CatchUp reads the newest changes once, as a node that watches does every few seconds.
func (s *Store) CatchUp(ctx context.Context, fn func(metastore.Notice)) error {
	return s.catchUp(ctx, fn)
}

// Lose makes the node believe that it has seen changes of these keys, one each, which the store lacks.
func (s *Store) Lose(keys ...string) {
	var changes []changeRecord
	for i, key := range keys {
		changes = append(changes, changeRecord{Seq: int64(1000 + i), ID: "lost " + key, Key: key,
			At: millis(time.Now()), Change: string(metastore.Created)})
	}
	s.remember(changes...)
	s.setLost(changes)
}

// ForgetLost makes the node forget that the store lacks changes.
func (s *Store) ForgetLost() { s.history.lost.Store(nil) }

// ParseClaim returns the process of a claim's session.
var ParseClaim = parseClaim

// ChangeIDs returns the ids of the changes in the store, oldest first.
func (s *Store) ChangeIDs(ctx context.Context) (ids []string, err error) {
	rows, _ := s.db.Pool().Query(ctx, `SELECT id FROM change ORDER BY seq`) // the rows carry the error
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// ResetPool closes the connections of the pool, so that the next call opens one.
func (s *Store) ResetPool() { s.db.Pool().Reset() }

// Next waits for a notification.
var Next = next

// HeldLocks returns the number of locks that this store holds.
func (s *Store) HeldLocks() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.locks)
}
