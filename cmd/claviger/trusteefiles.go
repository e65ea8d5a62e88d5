package main

import (
	"path/filepath"

	"claviger/kms"
	"claviger/secret"
	"claviger/trustee"
	"claviger/trustee/location"
)

// trusteeSecretFiles are those of a Key Trustee Server.
func trusteeSecretFiles(folder *trustee.Folder) []secret.File {
	list := append(trustee.SecretFiles(folder.Path), secret.File{Path: filepath.Join(folder.Path, trustee.TLSKey), What: "private key"})
	if folder.Store != "" {
		return append(list, kms.DatabaseFiles(folder.Store)...)
	}
	return append(list, kms.SQLiteFiles(filepath.Join(folder.Path, location.FileName))...)
}
