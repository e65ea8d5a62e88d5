package pgdb

import (
	"errors"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"

	"github.com/jackc/pgx/v5"
)

// renew reads the files of the URI once more, the password file and those of TLS, so that
// a new password, client certificate or authority needs no restart. What was read before
// stays where they cannot be read.
func (d *DB) renew(cfg *pgx.ConnConfig) {
	now, err := pgx.ParseConfig(d.cfg.URI)
	if err != nil {
		return
	}
	if now.Password != "" {
		d.password.Store(&now.Password)
	}
	if last := d.password.Load(); last != nil {
		cfg.Password = *last
	}
	cfg.TLSConfig, cfg.Fallbacks = now.TLSConfig, now.Fallbacks
}

// passwordFile says what is wrong with the password file of a libpq URI, which the driver
// passes over where it cannot read it: the file is not there, or this process may not open
// it. It is nil where the file can be read, and where none is named and none is there.
func passwordFile(uri string) error {
	u, err := url.Parse(uri)
	if err != nil {
		return nil //nolint:nilerr // parse has refused it
	}
	path, named := u.Query().Get("passfile"), true
	if path == "" {
		path = os.Getenv("PGPASSFILE")
	}
	if path == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return nil //nolint:nilerr // then the driver looks for none
		}
		path, named = filepath.Join(home, ".pgpass"), false
	}
	f, err := os.Open(path) //nolint:gosec // the operator names the file
	switch {
	case err == nil:
		return f.Close()
	case errors.Is(err, fs.ErrNotExist) && !named:
		return nil
	}
	return err
}
