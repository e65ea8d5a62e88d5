package recovery

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"claviger/hadoopconf"
	"claviger/metastore"
	"claviger/metastore/location"
	"claviger/metastore/sqlite"
	"claviger/owner"
)

// Written is a backup.
type Written struct {
	sqlite.Facts
	Path string `json:"path"` // absolute
	// Moved: the store was moved, and was not in use since; nil if not.
	Moved *metastore.Moved `json:"moved,omitempty"`
}

// Backup writes a copy of the configured SQLite store into a new file. Servers may run. Where root calls it,
// the file belongs to the store's user, who verifies and restores it. Root is not refused, because a backup
// is better than none.
func Backup(ctx context.Context, conf *hadoopconf.Conf, file string) (w Written, err error) {
	place, err := sqliteLocation(conf, ownTools)
	if err != nil {
		return w, err
	}
	if place.Missing() {
		return w, place.Wrap(fmt.Errorf("%w at %s", location.ErrNone, place.File))
	}
	if w.Path, err = filepath.Abs(file); err != nil {
		return w, err
	}
	if w.Facts, err = sqlite.Backup(ctx, place.File, w.Path); err != nil {
		return w, err
	}
	if err := owner.GiveFromRoot(w.Path, place.File); err != nil {
		return w, err
	}
	w.Moved, err = movedFile(ctx, place.File)
	return w, err
}

// movedFile returns the mark of a move in a store's file, or nil.
func movedFile(ctx context.Context, file string) (*metastore.Moved, error) {
	st, err := sqlite.OpenReadOnly(ctx, file)
	if err != nil {
		return nil, err
	}
	gone, err := metastore.MovedTo(ctx, st)
	return gone, errors.Join(err, st.Close())
}
