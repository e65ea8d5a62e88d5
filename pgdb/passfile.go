package pgdb

import (
	"errors"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
)

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
