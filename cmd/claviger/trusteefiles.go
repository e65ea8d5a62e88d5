package main

import (
	"errors"
	"fmt"
	"path/filepath"

	"claviger/owner"
	"claviger/secret"
	"claviger/trustee"
)

// claimTrusteeStore takes a trustee's SQLite store for this server. Orgtool, whose
// changes each are one transaction that nobody caches, needs no claim.
func claimTrusteeStore(folder *trustee.Folder) (release func(), err error) {
	if folder.Store != "" {
		return func() {}, nil // PostgreSQL, which several servers may use
	}
	path := filepath.Join(folder.Path, trusteeStore)
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	release, err = owner.Claim(path+".lock", "the trustee's store "+path, owner.Self("claviger trustee", ""))
	if errors.As(err, new(*owner.InUseError)) {
		err = fmt.Errorf("%w; one trustee serves it at a time: stop that one, or give this one a folder of its own (--confdir)", err)
	}
	return release, err
}

// trusteeSecretFiles are those of a Key Trustee Server.
func trusteeSecretFiles(folder *trustee.Folder) []secret.File {
	list := append(trustee.SecretFiles(folder.Path), secret.File{Path: filepath.Join(folder.Path, trusteeTLSKey), What: "private key"})
	if folder.Store != "" {
		return append(list, databaseFiles(folder.Store)...)
	}
	return append(list, sqliteFiles(filepath.Join(folder.Path, trusteeStore))...)
}
