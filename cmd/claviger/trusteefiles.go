package main

import (
	"path/filepath"

	"claviger/secret"
	"claviger/trustee"
	"claviger/trustee/location"
)

// trusteeSecretFiles are those of a Key Trustee Server.
func trusteeSecretFiles(folder *trustee.Folder) []secret.File {
	list := append(trustee.SecretFiles(folder.Path), secret.File{Path: filepath.Join(folder.Path, trustee.TLSKey), What: "private key"})
	if folder.Store != "" {
		return append(list, databaseFiles(folder.Store)...)
	}
	return append(list, sqliteFiles(filepath.Join(folder.Path, location.FileName))...)
}
