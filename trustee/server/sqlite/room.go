package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"os"

	"claviger"
)

// probeRoom is how many bytes CheckWrites needs on the disk. A deposit of the greatest size needs room
// in the log of changes, and once more in the store.
const probeRoom = 2 << 20

// CheckWrites checks that there is room beside the store's file, and commits a change that changes
// nothing.
func (s *Store) CheckWrites(ctx context.Context) error {
	const op = "trustee/server/sqlite.CheckWrites"
	if err := s.room(); err != nil {
		s.failures.Add(1)
		return claviger.Errorf(op, claviger.Unavailable, "", "%d bytes cannot be written beside the trustee's store "+
			"%s: %w", probeRoom, s.db.Path(), err)
	}
	return s.change(ctx, op, "", func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "UPDATE standing SET epoch = epoch")
		return err
	})
}

// room writes a file beside the store and removes it. The file need not be durable, so room does not
// use package durable. It overwrites a file that a killed process left.
func (s *Store) room() (err error) {
	s.probe.Lock()
	defer s.probe.Unlock()
	name := s.db.Path() + ".room"
	f, err := os.OpenFile(name, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(name)) }()
	if _, err := f.Write(make([]byte, probeRoom)); err != nil {
		return err
	}
	return f.Sync()
}
