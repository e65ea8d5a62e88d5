package pgdb

import (
	"errors"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"

	"github.com/jackc/pgx/v5"
)

// renew reads the password file and the TLS files of the URI again, so that a new password, client certificate or
// authority needs no restart. If they cannot be read, the earlier content stays.
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

// passwordFile returns an error if the password file of a libpq URI does not exist, or if this process may not open it.
// The driver ignores such a file. The error is nil if no file is named and the default file does not exist.
func passwordFile(uri string) error {
	u, err := url.Parse(uri)
	if err != nil {
		return nil //nolint:nilerr // parse refuses such a URI
	}
	path, named := u.Query().Get("passfile"), true
	if path == "" {
		path = os.Getenv("PGPASSFILE")
	}
	if path == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return nil //nolint:nilerr // then the driver reads none either
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
