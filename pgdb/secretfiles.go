package pgdb

import (
	"net/url"
	"os"

	"claviger/secret"
)

// SecretFiles returns the password file and the private key that a libpq URI or the environment names.
func SecretFiles(uri string) []secret.File {
	u, err := url.Parse(uri)
	if err != nil {
		return nil
	}
	var list []secret.File
	for _, p := range []struct{ name, env, what string }{{"passfile", "PGPASSFILE", "password file"},
		{"sslkey", "PGSSLKEY", "private key"}} {
		path := u.Query().Get(p.name)
		if path == "" {
			path = os.Getenv(p.env)
		}
		if path != "" {
			list = append(list, secret.File{Path: path, Kind: p.what})
		}
	}
	return list
}
