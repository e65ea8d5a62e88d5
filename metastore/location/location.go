// Package location says where a configuration has its metastore, and opens it there: an
// SQLite file, or a database in PostgreSQL. It is the one list of stores.
package location

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
	"time"

	"claviger/hadoopconf"
	"claviger/metastore"
	"claviger/metastore/postgres"
	"claviger/metastore/sqlite"
	"claviger/provider"
)

// FileName is the name of a metastore file that no property names.
const FileName = "claviger.db"

// Location is where a configuration has its metastore.
type Location struct {
	URI      string
	File     string // of an SQLite store; "" otherwise
	property hadoopconf.Property
}

// Wrap puts the property and its line before an error about the store. nil stays nil.
func (p Location) Wrap(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: property %s: %w", p.Where(), hadoopconf.MetastoreURI, err)
}

// Where names the line that sets the location, or says that it is the default.
func (p Location) Where() string {
	if p.property.File == "" {
		return "built-in default, beside the keystore file of " + hadoopconf.ProviderURI
	}
	return p.property.Where()
}

// Missing reports whether the store is a file that does not exist.
func (p Location) Missing() bool {
	if p.File == "" {
		return false
	}
	_, err := os.Stat(p.File)
	return errors.Is(err, fs.ErrNotExist)
}

// Of returns the location of a configuration's metastore. It depends on the configuration files only, and not
// on the user, HOME or the working folder: two commands with one --conf must not use two stores.
func Of(conf *hadoopconf.Conf) (Location, error) {
	uri, set := conf.Get(hadoopconf.MetastoreURI)
	p, _ := conf.Lookup(hadoopconf.MetastoreURI)
	if !set {
		return byDefault(conf)
	}
	place, err := Parse(uri)
	if err != nil {
		return Location{}, fmt.Errorf("%s: property %s %w", p.Where(), hadoopconf.MetastoreURI, err)
	}
	place.property = p
	return place, nil
}

// Parse returns the location that a URI names. Its error continues a sentence that names the URI's
// origin. It does not repeat the URI, which may be a line of a password file, or hold a password
// that no rule can tell from a host.
func Parse(uri string) (Location, error) {
	path, file := strings.CutPrefix(uri, "sqlite://")
	switch {
	case file && strings.HasPrefix(path, "/"):
		return Location{URI: uri, File: filepath.Clean(path)}, nil
	case IsPostgres(uri):
		return Location{URI: uri}, nil
	}
	of := ""
	scheme, _, _ := strings.Cut(strings.ToLower(uri), ":")
	switch scheme {
	case "sqlite", "sqlite3", "postgresql", "postgres", "jdbc", "mysql", "mariadb", "file", "oracle", "sqlserver":
		of = " of the scheme " + scheme
	}
	return Location{}, fmt.Errorf("has a value%s that names no metastore (not shown, since it may hold a password); "+
		"it must be sqlite:// and an absolute path, as in sqlite:///var/lib/claviger/claviger.db, or for several "+
		"nodes postgresql://USER@HOST:PORT/DATABASE", of)
}

// byDefault returns the location beside the file that the first provider's URI names.
func byDefault(conf *hadoopconf.Conf) (Location, error) {
	const cure = "set it in kms-site.xml to sqlite:///var/lib/claviger/claviger.db, or for several nodes to " +
		"postgresql://USER@HOST:PORT/DATABASE"
	list, err := provider.SplitURIs(conf.String(hadoopconf.ProviderURI))
	if err != nil || len(list) == 0 {
		return Location{}, conf.Refuse(hadoopconf.MetastoreURI, cure)
	}
	scheme, _, _ := strings.Cut(list[0], ":")
	keystore, err := provider.UnnestPath(list[0])
	if err != nil || !slices.Contains([]string{"cloudera.hsmkp", "jceks", "localjceks"}, strings.ToLower(scheme)) {
		return Location{}, conf.Refuse(hadoopconf.MetastoreURI,
			"the first provider, of scheme "+scheme+", names no file beside which the metastore could be; "+cure)
	}
	place := Location{File: filepath.Join(filepath.Dir(keystore), FileName)}
	place.URI = "sqlite://" + place.File
	return place, place.notForgotten()
}

// notForgotten refuses the default location where it holds no store and the user's home folder, the default of
// earlier versions, holds one.
func (p Location) notForgotten() error {
	if !p.Missing() {
		return nil
	}
	for _, home := range homes() {
		old := filepath.Join(home, FileName)
		if st, err := os.Stat(old); err == nil && st.Mode().IsRegular() && old != p.File {
			return fmt.Errorf("property %s is not set, and there is no metastore at its default place %s, but one "+
				"at %s, which was the default of earlier versions; if that is the metastore of this server, set the "+
				"property to sqlite://%[3]s in kms-site.xml; if not, set it to sqlite://%[2]s",
				hadoopconf.MetastoreURI, p.File, old)
		}
	}
	return nil
}

// homes returns the folders that were the default in earlier versions.
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

// A Creator is asked before Open makes a store where there is none. Its error prevents that.
type Creator func(ctx context.Context, uri string) error

// Options say how Open opens a metastore.
type Options struct {
	Create Creator // nil: a missing store is always made
	Seen   string  // file in which a node records what it has seen of a PostgreSQL metastore; "" records nothing
	Log    *slog.Logger
}

// Open opens the metastore that the configuration names, for changes.
func Open(ctx context.Context, conf *hadoopconf.Conf, o Options) (metastore.Store, error) {
	place, err := Of(conf)
	if err != nil {
		return nil, err
	}
	if o.Create != nil && place.Missing() {
		if err := o.Create(ctx, place.URI); err != nil {
			return nil, place.Wrap(err)
		}
	}
	var st metastore.Store
	if place.File != "" {
		var file *sqlite.Store
		if file, err = sqlite.Open(ctx, place.File); err == nil {
			file.LogTo(o.Log)
			st = file
		}
	} else {
		st, err = postgres.Open(ctx, postgres.Config{URI: place.URI, Property: hadoopconf.MetastoreURI,
			Seen: o.Seen, SeenProperty: hadoopconf.MetastoreSeen, Log: o.Log})
	}
	return place.unlessMoved(ctx, st, err)
}

// ErrNone says that there is no metastore.
var ErrNone = errors.New("there is no metastore yet")

// MakeNone is the Creator that always refuses.
func MakeNone(_ context.Context, uri string) error {
	return fmt.Errorf("%w at %s", ErrNone, strings.TrimPrefix(uri, "sqlite://"))
}

// OpenExisting opens the metastore for changes. Where there is none, the error is ErrNone.
func OpenExisting(ctx context.Context, conf *hadoopconf.Conf, log *slog.Logger) (metastore.Store, error) {
	return Open(ctx, conf, Options{Create: MakeNone, Log: log})
}

// OpenReadOnly opens the metastore for a command that only reads. Another user than the server's may run such a
// command, so it writes nothing and makes no file. Where there is no metastore, the error is ErrNone.
func OpenReadOnly(ctx context.Context, conf *hadoopconf.Conf, log *slog.Logger) (metastore.Store, error) {
	place, err := Of(conf)
	if err != nil {
		return nil, err
	}
	if place.Missing() {
		return nil, place.Wrap(MakeNone(ctx, place.URI))
	}
	var st metastore.Store
	if place.File != "" {
		st, err = sqlite.OpenReadOnly(ctx, place.File)
	} else {
		st, err = postgres.Open(ctx, postgres.Config{URI: place.URI, Property: hadoopconf.MetastoreURI, Log: log,
			ReadOnly: true})
	}
	return place.unlessMoved(ctx, st, err)
}

// OpenEmpty returns an empty store for a command that reads where there is no metastore.
func OpenEmpty(ctx context.Context, conf *hadoopconf.Conf) (metastore.Store, error) {
	place, err := Of(conf)
	if err != nil {
		return nil, err
	}
	return sqlite.OpenEmpty(ctx, place.File)
}

// IsPostgres says whether uri names a PostgreSQL database.
func IsPostgres(uri string) bool {
	return strings.HasPrefix(uri, "postgresql://") || strings.HasPrefix(uri, "postgres://")
}

// Read opens the metastore read-only for the function work. Where there is none, the error is ErrNone.
func Read(ctx context.Context, conf *hadoopconf.Conf, work func(metastore.Store) error) error {
	store, err := OpenReadOnly(ctx, conf, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	return errors.Join(work(store), store.Close())
}

// unlessMoved returns the result of opening the store, but closes and refuses a store that was moved.
func (p Location) unlessMoved(ctx context.Context, st metastore.Store, err error) (metastore.Store, error) {
	if err != nil {
		return nil, p.Wrap(err)
	}
	if err := p.notMoved(ctx, st); err != nil {
		return nil, errors.Join(err, st.Close())
	}
	return st, nil
}

// notMoved refuses a store that was moved: keys that it got now would be missing in the other store.
func (p Location) notMoved(ctx context.Context, st metastore.Store) error {
	m, err := metastore.MovedTo(ctx, st)
	if err != nil || m == nil {
		return p.Wrap(err)
	}
	return p.Wrap(fmt.Errorf("metastore %s was moved to %s at %s (claviger metastore copy): name that one by %s. "+
		"Where it is lost, with its backups, this one can be used again (docs/nodes.md, From SQLite to PostgreSQL, and "+
		"back)", st.URI(), m.To, m.At.Format(time.RFC3339), hadoopconf.MetastoreURI))
}
