package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"

	"claviger/hadoopconf"
	"claviger/metastore"
	"claviger/metastore/postgres"
	"claviger/metastore/sqlite"
	"claviger/provider"
)

// storeFile is the name of a metastore that is not named by a property.
const storeFile = "claviger.db"

// storePlace is where the metastore is.
type storePlace struct {
	uri      string
	file     string // of an SQLite store; "" otherwise
	property hadoopconf.Property
}

// named puts the property before an error about the store.
func (p storePlace) named(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: property %s: %w", p.where(), hadoopconf.MetastoreURI, err)
}

// where says which line names the store, or why it is where it is.
func (p storePlace) where() string {
	if p.property.File == "" {
		return "built-in default, beside the keystore file of " + hadoopconf.ProviderURI
	}
	return p.property.Where()
}

// missing tells whether the store is a file that is not there.
func (p storePlace) missing() bool {
	if p.file == "" {
		return false
	}
	_, err := os.Stat(p.file)
	return errors.Is(err, fs.ErrNotExist)
}

// metastorePlace is where the configuration has the metastore. The place depends on
// the files of the configuration alone, never on the user who calls, his HOME or his
// working folder: two commands with one --conf must not see two stores.
func metastorePlace(conf *hadoopconf.Conf) (storePlace, error) {
	uri, set := conf.Get(hadoopconf.MetastoreURI)
	p, _ := conf.Lookup(hadoopconf.MetastoreURI)
	if !set {
		return defaultPlace(conf)
	}
	if place, ok := placeOf(uri); ok {
		place.property = p
		return place, nil
	}
	return storePlace{}, fmt.Errorf("%s: property %s %s; it must be sqlite:// and an absolute path, as in "+
		"sqlite:///var/lib/claviger/claviger.db, or for several nodes postgresql://USER@HOST:PORT/DATABASE",
		p.Where(), hadoopconf.MetastoreURI, noPlace(uri))
}

// noPlace says what a URI that names no metastore is. It does not repeat it: it may be a
// line of a password file, or hold a password in a form that nothing tells from a host.
func noPlace(uri string) string {
	scheme, _, _ := strings.Cut(strings.ToLower(uri), ":")
	switch scheme {
	case "sqlite", "sqlite3", "postgresql", "postgres", "jdbc", "mysql", "mariadb", "file", "oracle", "sqlserver":
		return "has a value of the scheme " + scheme + " that names no metastore (not shown, since it may hold a password)"
	}
	return "has a value that names no metastore (not shown, since it may hold a password)"
}

// placeOf is the place that a URI names; ok is false where it is none of a metastore.
func placeOf(uri string) (p storePlace, ok bool) {
	path, file := strings.CutPrefix(uri, "sqlite://")
	switch {
	case file && strings.HasPrefix(path, "/"):
		return storePlace{uri: uri, file: filepath.Clean(path)}, true
	case isPostgres(uri):
		return storePlace{uri: uri}, true
	}
	return storePlace{}, false
}

// defaultPlace is beside the file that the first provider's URI names.
func defaultPlace(conf *hadoopconf.Conf) (storePlace, error) {
	const cure = "set it in kms-site.xml to sqlite:///var/lib/claviger/claviger.db, or for several nodes to postgresql://USER@HOST:PORT/DATABASE"
	list, err := provider.SplitURIs(conf.String(hadoopconf.ProviderURI))
	if err != nil || len(list) == 0 {
		return storePlace{}, refuse(conf, hadoopconf.MetastoreURI, cure)
	}
	scheme, _, _ := strings.Cut(list[0], ":")
	keystore, err := provider.UnnestPath(list[0])
	if err != nil || !slices.Contains([]string{"cloudera.hsmkp", "jceks", "localjceks"}, strings.ToLower(scheme)) {
		return storePlace{}, refuse(conf, hadoopconf.MetastoreURI, "the first provider, of scheme "+scheme+", names no file beside which the metastore could be; "+cure)
	}
	place := storePlace{file: filepath.Join(filepath.Dir(keystore), storeFile)}
	place.uri = "sqlite://" + place.file
	return place, place.notForgotten()
}

// notForgotten refuses a default place without a store where an earlier version,
// whose default was the caller's home folder, has left one.
func (p storePlace) notForgotten() error {
	if !p.missing() {
		return nil
	}
	for _, home := range homes() {
		old := filepath.Join(home, storeFile)
		if st, err := os.Stat(old); err == nil && st.Mode().IsRegular() && old != p.file {
			return fmt.Errorf("property %s is not set, and there is no metastore at its default place %s, but one at %s, which was the default of earlier versions; if that is the metastore of this server, set the property to sqlite://%[3]s in kms-site.xml; if not, set it to sqlite://%[2]s",
				hadoopconf.MetastoreURI, p.file, old)
		}
	}
	return nil
}

// homes are the folders that ${user.home} stood for in earlier versions.
func homes() []string {
	var list []string
	if home := os.Getenv("HOME"); filepath.IsAbs(home) {
		list = append(list, home)
	}
	if u, err := user.Current(); err == nil && filepath.IsAbs(u.HomeDir) && !slices.Contains(list, u.HomeDir) {
		list = append(list, u.HomeDir)
	}
	return list
}

// A storeCreator is asked before a store is made where there is none; its error
// keeps it from being made.
type storeCreator func(ctx context.Context, uri string) error

// openStore opens the metastore that the configuration names, and makes it where it
// is not there and create (nil: always) has nothing against it.
func openStore(ctx context.Context, conf *hadoopconf.Conf, create storeCreator, log *slog.Logger) (metastore.Store, error) {
	return openStoreOf(ctx, conf, create, "", log)
}

// openStoreOf is openStore for a node that keeps in the file seen what it has seen of a
// metastore of several nodes; "" keeps nothing.
func openStoreOf(ctx context.Context, conf *hadoopconf.Conf, create storeCreator, seen string, log *slog.Logger) (metastore.Store, error) {
	place, err := metastorePlace(conf)
	if err != nil {
		return nil, err
	}
	if create != nil && place.missing() {
		if err := create(ctx, place.uri); err != nil {
			return nil, place.named(err)
		}
	}
	var st metastore.Store
	if place.file != "" {
		var file *sqlite.Store
		if file, err = sqlite.Open(ctx, place.file); err == nil {
			file.LogTo(log)
			st = file
		}
	} else {
		st, err = postgres.Open(ctx, postgres.Config{URI: place.uri, Property: hadoopconf.MetastoreURI, Seen: seen, SeenProperty: hadoopconf.MetastoreSeen, Log: log})
	}
	if err != nil {
		return nil, place.named(err)
	}
	if err := place.notMoved(ctx, st); err != nil {
		return nil, errors.Join(err, st.Close())
	}
	return st, nil
}

// errNoStore: there is no metastore to read.
var errNoStore = errors.New("there is no metastore yet")

// makeNone is the storeCreator of commands that change a metastore and make none.
func makeNone(_ context.Context, uri string) error {
	return fmt.Errorf("%w at %s", errNoStore, strings.TrimPrefix(uri, "sqlite://"))
}

// storeThatIsThere opens the metastore for changes, and makes none where there is none.
func storeThatIsThere(ctx context.Context, conf *hadoopconf.Conf, log *slog.Logger) (metastore.Store, error) {
	return openStore(ctx, conf, makeNone, log)
}

// readStore opens the metastore for a command that only looks. Such a command may be
// run by another user than the server's, so it writes nothing and makes no file.
// errNoStore where there is none.
func readStore(ctx context.Context, conf *hadoopconf.Conf, log *slog.Logger) (metastore.Store, error) {
	place, err := metastorePlace(conf)
	if err != nil {
		return nil, err
	}
	if place.missing() {
		return nil, place.named(makeNone(ctx, place.uri))
	}
	var st metastore.Store
	if place.file != "" {
		st, err = sqlite.OpenReadOnly(ctx, place.file)
	} else {
		st, err = postgres.Open(ctx, postgres.Config{URI: place.uri, Property: hadoopconf.MetastoreURI, Log: log, ReadOnly: true})
	}
	if err != nil {
		return nil, place.named(err)
	}
	if err := place.notMoved(ctx, st); err != nil {
		return nil, errors.Join(err, st.Close())
	}
	return st, nil
}

// emptyStore stands for a store that is not there, while a command looks.
func emptyStore(ctx context.Context, conf *hadoopconf.Conf) (metastore.Store, error) {
	place, err := metastorePlace(conf)
	if err != nil {
		return nil, err
	}
	return sqlite.OpenEmpty(ctx, place.file)
}

func isPostgres(uri string) bool {
	return strings.HasPrefix(uri, "postgresql://") || strings.HasPrefix(uri, "postgres://")
}

// withStore has work look into the metastore, if there is one.
func withStore(ctx context.Context, conf *hadoopconf.Conf, work func(metastore.Store) error) error {
	store, err := readStore(ctx, conf, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	return errors.Join(work(store), store.Close())
}
