package sqlite

import (
	"context"
	"fmt"
	"os"
	"sync"

	"claviger"
)

// place holds the file that was opened. SQLite continues to use a file that was moved, removed or
// replaced. Changes that it acknowledges then would be lost with that file.
type place struct {
	opened os.FileInfo

	mu      sync.Mutex
	rescued string // the copy that rescue has made; "" before
}

// inPlace returns an error of kind Unavailable if the store's path does not name the file that was
// opened.
func (s *Store) inPlace(op, key string) error {
	now, err := os.Stat(s.db.Path())
	if err == nil && os.SameFile(now, s.place.opened) {
		return nil
	}
	what := "was replaced by another file"
	if err != nil {
		what = fmt.Sprintf("is gone (%v)", err)
	}
	s.failures.Add(1)
	s.place.mu.Lock()
	defer s.place.mu.Unlock()
	kept := "it could not be copied"
	if s.place.rescued != "" {
		kept = "a copy of all that this server holds is " + s.place.rescued
	}
	return claviger.Errorf(op, claviger.Unavailable, key, "the trustee's store %s %s while this server uses it, so "+
		"this server accepts no changes; %s. Put the file back, with its -wal, or stop this server and put the copy "+
		"in its place", s.db.Path(), what, kept)
}

// rescue makes one copy of a file that was moved, removed or replaced. This process can still read the
// file, which may be its last copy.
func (s *Store) rescue(ctx context.Context) {
	s.place.mu.Lock()
	done := s.place.rescued != ""
	s.place.mu.Unlock()
	if done {
		return
	}
	if name, err := s.Save(ctx, "rescued"); err == nil { // there may be no folder; the next check tries again
		s.place.mu.Lock()
		s.place.rescued = name
		s.place.mu.Unlock()
	}
}
