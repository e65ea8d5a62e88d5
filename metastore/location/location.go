// Package location finds the metastore of a configuration, and opens it: an SQLite file, or a PostgreSQL database. It
// is the only package that lists the kinds of stores.
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

// FileName is the default name of a metastore file.
const FileName = "claviger.db"

// Location is the location of a configuration's metastore.
type Location struct {
	URI      string
	File     string // the file of an SQLite store; "" for PostgreSQL
	property hadoopconf.Property
}

// Wrap puts the property and its line before an error about the store. nil stays nil.
func (p Location) Wrap(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: property %s: %w", p.Where(), hadoopconf.MetastoreURI, err)
}

// Where returns the line that sets the location, or says that it is the default.
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
	loc, err := Parse(uri)
	if err != nil {
		return Location{}, fmt.Errorf("%s: property %s %w", p.Where(), hadoopconf.MetastoreURI, err)
	}
	loc.property = p
	return loc, nil
}

// Parse returns the location of a URI. The caller puts the origin of the URI before the error, which begins with "has".
// The error does not repeat the URI: it may be a line of a password file, or have a password that looks like a host.
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
	loc := Location{File: filepath.Join(filepath.Dir(keystore), FileName)}
	loc.URI = "sqlite://" + loc.File
	return loc, loc.checkOldDefault()
}

// checkOldDefault returns an error if the default location has no store, but the user's home folder has one. The home
// folder was the default of earlier versions.
func (p Location) checkOldDefault() error {
	if !p.Missing() {
		return nil
	}
	for _, home := range homes() {
		old := filepath.Join(home, FileName)
		if st, err := os.Stat(old); err == nil && st.Mode().IsRegular() && old != p.File {
			return fmt.Errorf("property %s is not set, and there is no metastore at its default place %s, but there "+
				"is one at %s, the default of earlier versions; if that is the metastore of this server, set the "+
				"property to sqlite://%[3]s in kms-site.xml; if not, set it to sqlite://%[2]s",
				hadoopconf.MetastoreURI, p.File, old)
		}
	}
	return nil
}

// homes returns the folders that were the default in earlier versions. A folder may be in the list twice.
func homes() []string {
	list := []string{os.Getenv("HOME")}
	if u, err := user.Current(); err == nil {
		list = append(list, u.HomeDir)
	}
	return slices.DeleteFunc(list, func(home string) bool { return !filepath.IsAbs(home) })
}

// Creator is called before Open makes a store that does not exist yet. Its error prevents that.
type Creator func(ctx context.Context, uri string) error

// Options say how Open opens a metastore.
type Options struct {
	Create Creator // nil: a missing store is always made
	Seen   string  // file in which a node records what it has seen of a PostgreSQL metastore; "" for none
	Log    *slog.Logger
	// Node: a server opens the store, and then claims it; see sqlite.OpenNode.
	Node bool
}

// Open opens the metastore that the configuration names, for changes.
func Open(ctx context.Context, conf *hadoopconf.Conf, o Options) (metastore.Store, error) {
	loc, err := Of(conf)
	if err != nil {
		return nil, err
	}
	if o.Create != nil && loc.Missing() {
		if err := o.Create(ctx, loc.URI); err != nil {
			return nil, loc.Wrap(err)
		}
	}
	var st metastore.Store
	if loc.File != "" {
		var file *sqlite.Store
		open := sqlite.Open
		if o.Node {
			open = sqlite.OpenNode
		}
		if file, err = open(ctx, loc.File); err == nil {
			file.LogTo(o.Log)
			st = file
		}
	} else {
		st, err = postgres.Open(ctx, postgres.Config{URI: loc.URI, Property: hadoopconf.MetastoreURI,
			Seen: o.Seen, SeenProperty: hadoopconf.MetastoreSeen, Log: o.Log})
	}
	return loc.refuseMoved(ctx, st, err)
}

// ErrNone says that there is no metastore.
var ErrNone = errors.New("there is no metastore yet")

// RefuseCreation is the Creator that always refuses.
func RefuseCreation(_ context.Context, uri string) error {
	return fmt.Errorf("%w at %s", ErrNone, strings.TrimPrefix(uri, "sqlite://"))
}

// OpenExisting opens the metastore for changes. If there is none, the error is ErrNone.
func OpenExisting(ctx context.Context, conf *hadoopconf.Conf, log *slog.Logger) (metastore.Store, error) {
	return Open(ctx, conf, Options{Create: RefuseCreation, Log: log})
}

// OpenReadOnly opens the metastore for a command that only reads. A user who is not the server's user may run such a
// command, so OpenReadOnly changes nothing; see sqlitedb.OpenReadOnly. If there is no metastore, the error is ErrNone.
func OpenReadOnly(ctx context.Context, conf *hadoopconf.Conf, log *slog.Logger) (metastore.Store, error) {
	loc, err := Of(conf)
	if err != nil {
		return nil, err
	}
	if loc.Missing() {
		return nil, loc.Wrap(RefuseCreation(ctx, loc.URI))
	}
	var st metastore.Store
	if loc.File != "" {
		st, err = sqlite.OpenReadOnly(ctx, loc.File)
	} else {
		st, err = postgres.Open(ctx, postgres.Config{URI: loc.URI, Property: hadoopconf.MetastoreURI, Log: log,
			ReadOnly: true})
		if errors.Is(err, postgres.ErrEmpty) {
			err = fmt.Errorf("%w: %w", ErrNone, err)
		}
	}
	return loc.refuseMoved(ctx, st, err)
}

// OpenEmpty returns an empty store in memory, for a command that only reads and finds no metastore.
func OpenEmpty(ctx context.Context, conf *hadoopconf.Conf) (metastore.Store, error) {
	loc, err := Of(conf)
	if err != nil {
		return nil, err
	}
	st, err := sqlite.OpenEmpty(ctx, loc.File)
	if err != nil {
		return nil, err // a nil *sqlite.Store would not be a nil Store
	}
	return st, nil
}

// IsPostgres reports whether uri names a PostgreSQL database.
func IsPostgres(uri string) bool {
	return strings.HasPrefix(uri, "postgresql://") || strings.HasPrefix(uri, "postgres://")
}

// Read opens the metastore read-only, calls work, and closes the metastore. If there is none, the error is ErrNone.
func Read(ctx context.Context, conf *hadoopconf.Conf, work func(metastore.Store) error) error {
	store, err := OpenReadOnly(ctx, conf, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	return errors.Join(work(store), store.Close())
}

// refuseMoved returns st and err, the result of opening a store. If the store was moved, refuseMoved closes it and
// returns an error.
func (p Location) refuseMoved(ctx context.Context, st metastore.Store, err error) (metastore.Store, error) {
	if err != nil {
		return nil, p.Wrap(err)
	}
	if err := p.checkNotMoved(ctx, st); err != nil {
		return nil, errors.Join(err, st.Close())
	}
	return st, nil
}

// checkNotMoved returns an error if the store was moved: the new store would lack keys that are added to this one.
func (p Location) checkNotMoved(ctx context.Context, st metastore.Store) error {
	m, err := metastore.MovedTo(ctx, st)
	if err != nil || m == nil {
		return p.Wrap(err)
	}
	return p.Wrap(fmt.Errorf("metastore %s was moved to %s at %s (claviger metastore copy): set %s to the new "+
		"location. If the new metastore and its backups are lost, this one can be used again (docs/nodes/move.md)",
		st.URI(), m.To, m.At.Format(time.RFC3339), hadoopconf.MetastoreURI))
}
