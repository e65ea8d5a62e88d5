// Package location says which store a Key Trustee Server's folder names, and opens it: an SQLite
// file in the folder, or a database in PostgreSQL. It makes the folder, and is the one list of
// stores.
package location

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"claviger"
	"claviger/owner"
	"claviger/trustee"
	"claviger/trustee/replica"
	"claviger/trustee/server"
	"claviger/trustee/server/postgres"
	"claviger/trustee/server/sqlite"
)

// FileName is the store in a folder whose keytrustee.conf names no database.
const FileName = "keytrustee.db"

// Load reads a Key Trustee Server's folder. A folder of a Key Trustee KMS, which has the same
// files, is refused.
func Load(dir string) (*trustee.Folder, error) {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s does not exist. Make it with: claviger trustee init --confdir %s; or copy the "+
			"folder of the other trustee, without .ssl and %s", dir, dir, FileName)
	}
	f, err := trustee.LoadFolder(dir)
	if err != nil {
		return nil, err
	}
	return f, refuseClient(f)
}

// refuseClient refuses the folder of a Key Trustee KMS.
func refuseClient(f *trustee.Folder) error {
	if f.Org == "" && len(f.Servers) == 0 {
		return nil
	}
	return claviger.Refuse("%s is the folder of a KT KMS (its %s names an organization or a server), not of a Key "+
		"Trustee Server: nothing was done. claviger trustee backup --keytrustee %s saves it",
		f.Path, trustee.ConfFile, f.Path)
}

// RefuseServer refuses the folder of a Key Trustee Server. A backup of its files alone would not
// have the deposits.
func RefuseServer(dir string) error {
	f, err := trustee.LoadFolder(dir)
	if err != nil {
		return err
	}
	left, err := servedBefore(f)
	if err != nil {
		return err
	}
	_, missing := os.Stat(file(f))
	if missing != nil && len(left) == 0 && f.Store == "" {
		return nil
	}
	return claviger.Refuse("--keytrustee: %s is the folder of a Key Trustee Server, whose deposits would not be in "+
		"the backup: nothing was written. claviger trustee backup --confdir %s saves them, too", dir, dir)
}

// file is the SQLite file of a folder.
func file(f *trustee.Folder) string { return filepath.Join(f.Path, FileName) }

// Open opens the store that a folder names. log may be nil.
func Open(ctx context.Context, f *trustee.Folder, log *slog.Logger) (server.Store, error) {
	if f.Store == "" {
		return sqlite.Open(ctx, file(f), false)
	}
	store, err := openDatabase(ctx, f, log)
	if err != nil {
		return nil, err
	}
	role, err := store.Role(ctx)
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	if log != nil {
		log.Info("the deposits are in PostgreSQL", "store", store.URI(), "standby", role == server.RolePassive)
	}
	return store, nil
}

// OpenReadOnly opens the store that a folder names, for a caller who only reads. The schema of a
// store in SQLite is not upgraded, since an older server may have the file open. release closes
// the store.
func OpenReadOnly(ctx context.Context, f *trustee.Folder) (_ server.Store, release func() error, err error) {
	if f.Store == "" {
		return sqlite.OpenReadOnly(ctx, file(f))
	}
	store, err := Open(ctx, f, nil)
	if err != nil {
		return nil, nil, err
	}
	return store, store.Close, nil
}

// openDatabase opens the database that a folder names.
func openDatabase(ctx context.Context, f *trustee.Folder, log *slog.Logger) (*postgres.Store, error) {
	return postgres.Open(ctx, postgres.Config{
		URI: f.Store, Where: whereStore(f), Identity: f.Identity.Fingerprint(), Log: log,
	})
}

// whereStore is where the URI of a folder's database is written, for errors.
func whereStore(f *trustee.Folder) string {
	return filepath.Join(f.Path, trustee.ConfFile) + ", DB_CONNECT"
}

// Claim gives the SQLite store of a folder to this process, as its only server. Other commands
// need no claim: each of their changes is one transaction, and nothing is cached. A database in
// PostgreSQL is not claimed, because several servers may use it.
func Claim(f *trustee.Folder) (release func(), err error) {
	if f.Store != "" {
		return func() {}, nil
	}
	path := file(f)
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	release, err = owner.Claim(path+".lock", "the trustee's store "+path, owner.Self("claviger trustee", ""))
	if errors.As(err, new(*owner.InUseError)) {
		err = fmt.Errorf("%w; one trustee serves it at a time: stop that one, or give this one a folder of its own "+
			"(--confdir)", err)
	}
	return release, err
}

// servedBefore returns the files in a folder which show that a store was served from it and is
// gone.
func servedBefore(f *trustee.Folder) (files []string, err error) {
	if _, err := os.Stat(file(f)); !errors.Is(err, fs.ErrNotExist) {
		return nil, nil // opening it says more
	}
	return beside(f, ".lock", "-wal", ".schema-*", ".dropped-*", ".rescued-*")
}

// beside returns the files beside the store that have one of these endings, which are patterns.
func beside(f *trustee.Folder, endings ...string) (files []string, err error) {
	for _, ending := range endings {
		list, err := filepath.Glob(escape(file(f)) + ending)
		if err != nil {
			return nil, err
		}
		files = append(files, list...)
	}
	return files, nil
}

// escape makes a pattern that matches a path alone.
func escape(path string) string {
	return strings.NewReplacer("\\", "\\\\", "*", "\\*", "?", "\\?", "[", "\\[").Replace(path)
}

// Dropped returns the stores beside a folder's store that hold what it may lack: those that
// resync --drop kept, and those that a server rescued.
func Dropped(f *trustee.Folder) (files []string, err error) {
	list, err := beside(f, ".dropped-*", ".rescued-*")
	for _, name := range list {
		// SQLite's own files, beside a copy that another process has open.
		if !strings.HasSuffix(name, "-wal") && !strings.HasSuffix(name, "-shm") {
			files = append(files, name)
		}
	}
	return files, err
}

// Recover is replica.Recover from a store in the file path, which is only read.
func Recover(ctx context.Context, into server.Store, path string, o replica.RecoverOptions) (
	_ *replica.Recovered, err error) {
	from, release, err := sqlite.OpenReadOnly(ctx, path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, release()) }()
	if orgs, err := from.Orgs(ctx); err != nil {
		return nil, err
	} else if len(orgs) == 0 {
		return nil, fmt.Errorf("%s is a trustee's store that holds nothing, no organization either: name the file "+
			"that has the deposits", path)
	}
	return replica.Recover(ctx, into, from, o)
}
