package location

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"claviger/trustee"
	"claviger/trustee/server"
	"claviger/trustee/server/postgres"
	"claviger/trustee/server/sqlite"
)

// OpenRestored opens the empty store of a folder that is being restored: in the folder, or in the database
// that uri names. undo empties the database again. A database that already holds exactly the records of the
// backup is accepted.
func OpenRestored(ctx context.Context, dir, uri string) (_ server.Store, undo func(context.Context) error, err error) {
	folder, err := trustee.LoadFolder(dir)
	if err != nil {
		return nil, nil, err
	}
	// The folder in the backup names where the store was.
	if folder.Store != uri {
		folder.Store = uri
		if err := folder.Save(); err != nil {
			return nil, nil, err
		}
	}
	undo = func(context.Context) error { return nil } // a store in the folder is removed with the folder
	if uri == "" {
		store, err := sqlite.Open(ctx, filepath.Join(dir, FileName), true)
		return store, undo, err
	}
	conf := postgres.Config{URI: uri, Where: "--store", Identity: folder.Identity.Fingerprint(), Claim: true}
	store, err := postgres.Open(ctx, conf)
	if err != nil {
		return nil, nil, err
	}
	full, err := holdsRecords(ctx, store)
	switch {
	case err != nil:
		return nil, nil, err
	case full: // a killed restoration may have filled the database
		return &restoredBefore{Store: store, uri: store.URI()}, undo, nil
	}
	undo = func(ctx context.Context) (err error) {
		store, err := postgres.Open(ctx, conf)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, store.Close()) }()
		return store.Release(ctx)
	}
	return store, undo, nil
}

// holdsRecords reports whether a store holds any record. After an error the store is closed.
func holdsRecords(ctx context.Context, store server.Store) (bool, error) {
	full := errors.New("not empty")
	err := store.Export(ctx, func(server.Record) error { return full })
	if err != nil && !errors.Is(err, full) {
		return false, errors.Join(err, store.Close())
	}
	return err != nil, nil
}

// restoredBefore is a database that already holds deposits. If a restoration was killed after it had filled
// the database, a second restoration of the same backup completes it.
type restoredBefore struct {
	server.Store
	uri string
}

// Import writes nothing. It compares the records of the database with those of the backup.
func (s *restoredBefore) Import(ctx context.Context, next func() (server.Record, error)) error {
	given, held := new(server.Digester), new(server.Digester)
	for {
		r, err := next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = given.Add(r)
		}
		if err != nil {
			return err
		}
	}
	if err := s.Export(ctx, held.Add); err != nil {
		return err
	}
	if given.Sum() != held.Sum() {
		return fmt.Errorf("--store: %s already holds deposits of this trustee (%d, and the backup has %d), which "+
			"differ from those of the backup: nothing was overwritten; name an empty database, or let this folder use "+
			"this database by claviger trustee init --store", s.uri, held.Deposits, given.Deposits)
	}
	return nil
}
