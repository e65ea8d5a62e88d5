// Package location makes the folder of a Key Trustee Server, and opens the store that the folder names: an
// SQLite file in the folder, or a database in PostgreSQL. No other package chooses between the stores.
package location

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"claviger"
	"claviger/owner"
	"claviger/shellword"
	"claviger/trustee"
	"claviger/trustee/replica"
	"claviger/trustee/server"
	"claviger/trustee/server/postgres"
	"claviger/trustee/server/sqlite"
)

// FileName is the name of the store in a folder whose keytrustee.conf names no database.
const FileName = "keytrustee.db"

// Load reads the folder of a Key Trustee Server. It refuses the folder of a Key Trustee KMS, which has the
// same files.
func Load(dir string) (*trustee.Folder, error) {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s does not exist. Make it with: claviger trustee init --confdir %s; or copy the "+
			"folder of the other trustee, without .ssl and %s", dir, shellword.Quote(dir), FileName)
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
		f.Path, trustee.ConfFile, shellword.Quote(f.Path))
}

// RefuseServer refuses the folder of a Key Trustee Server, because a backup of its files would not have the
// deposits.
func RefuseServer(dir string) error {
	f, err := trustee.LoadFolder(dir)
	if err != nil {
		return err
	}
	_, missing := os.Stat(file(f))
	if missing != nil && len(servedBefore(f)) == 0 && f.Store == "" {
		return nil
	}
	return claviger.Refuse("--keytrustee: %s is the folder of a Key Trustee Server, whose deposits would not be in "+
		"the backup: nothing was written. claviger trustee backup --confdir %s saves them, too", dir,
		shellword.Quote(dir))
}

// file returns the path of the SQLite file of a folder.
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
	return logStore(ctx, store, log)
}

// logStore returns a database that was opened, and logs its URI and role. log may be nil. After an error the
// database is closed.
func logStore(ctx context.Context, store database, log *slog.Logger) (server.Store, error) {
	role, err := store.Role(ctx)
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	if log != nil {
		log.Info("the deposits are in PostgreSQL", "store", store.URI(), "standby", role == server.RolePassive)
	}
	return store, nil
}

// OpenReadOnly opens the store that a folder names, for a caller that only reads. It changes nothing, and does not
// upgrade the schema, because an older server may use the store. Of a database with several hosts, a standby may
// answer. release closes the store.
func OpenReadOnly(ctx context.Context, f *trustee.Folder) (_ server.Store, release func() error, err error) {
	if f.Store == "" {
		return sqlite.OpenReadOnly(ctx, file(f))
	}
	c := databaseConfig(f)
	c.ReadOnly = true
	store, err := postgres.Open(ctx, c)
	if err != nil {
		return nil, nil, err
	}
	return store, store.Close, nil
}

// openDatabase opens the database that a folder names.
func openDatabase(ctx context.Context, f *trustee.Folder, log *slog.Logger) (*postgres.Store, error) {
	c := databaseConfig(f)
	c.Log = log
	return postgres.Open(ctx, c)
}

func databaseConfig(f *trustee.Folder) postgres.Config {
	return postgres.Config{URI: f.Store, Where: whereStore(f), Identity: f.Identity.Fingerprint()}
}

// whereStore says where the URI of a folder's database is configured, for errors.
func whereStore(f *trustee.Folder) string {
	return filepath.Join(f.Path, trustee.ConfFile) + ", DB_CONNECT"
}

// Claim makes this process the only server of the SQLite store of a folder. Other commands need no claim,
// because each of their changes is one transaction, and they cache nothing. A database in PostgreSQL needs
// no claim, because several servers may use it.
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
		err = fmt.Errorf("%w; only one trustee may serve it: stop that one, or give this one a folder of its own "+
			"(--confdir)", err)
	}
	return release, err
}

// servedBefore returns the files in a folder that show that a server has used a store which is missing now.
func servedBefore(f *trustee.Folder) []string {
	if _, err := os.Stat(file(f)); !errors.Is(err, fs.ErrNotExist) {
		return nil // the file exists, or the error of Open says more
	}
	return beside(f, ".lock", "-wal", ".schema-*", ".dropped-*", ".rescued-*")
}

// beside returns the files beside the store with one of these endings. An ending is a pattern.
func beside(f *trustee.Folder, endings ...string) (files []string) {
	for _, ending := range endings {
		list, _ := filepath.Glob(escape(file(f)) + ending) // fails only for a wrong pattern
		files = append(files, list...)
	}
	return files
}

// escape makes a pattern that matches only a path.
func escape(path string) string {
	return strings.NewReplacer("\\", "\\\\", "*", "\\*", "?", "\\?", "[", "\\[").Replace(path)
}

// dropped returns the stores beside a folder's store that may hold records which the store lacks: the
// stores that resync --drop kept, and those that a server rescued.
func dropped(f *trustee.Folder) []string {
	// SQLite makes files with these endings beside a copy that another process has open.
	return slices.DeleteFunc(beside(f, ".dropped-*", ".rescued-*"), func(name string) bool {
		return strings.HasSuffix(name, "-wal") || strings.HasSuffix(name, "-shm")
	})
}

// DroppedFile is a file beside the store, with what the store lacks of it.
type DroppedFile struct {
	File  string       `json:"file"`
	Lacks replica.Loss `json:"lacks"`
}

// CompareDropped compares the store with each of the files beside it that may hold records which it
// lacks. It changes nothing.
func CompareDropped(ctx context.Context, store server.Store, f *trustee.Folder) (list []DroppedFile, err error) {
	for _, name := range dropped(f) {
		r, err := Recover(ctx, store, name, replica.RecoverOptions{Dry: true})
		if err != nil {
			return nil, err
		}
		list = append(list, DroppedFile{name, r.Lacked})
	}
	return list, nil
}

// Recover calls replica.Recover with the store in the file path, which it only reads.
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
		return nil, fmt.Errorf("%s is an empty store of a trustee, even without an organization: name the file that "+
			"has the deposits", path)
	}
	return replica.Recover(ctx, into, from, o)
}
