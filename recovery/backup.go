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

// Written describes a backup that was written.
type Written struct {
	sqlite.Facts
	Path string `json:"path"` // absolute
	// Moved says that the store was moved, and so is not in use any more; nil otherwise.
	Moved *metastore.Moved `json:"moved,omitempty"`
}

// Backup writes a copy of the configured SQLite store into a new file. Servers may run. Root may call it too, because
// any backup is better than none. Then the file gets the owner of the store, who verifies and restores it.
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
