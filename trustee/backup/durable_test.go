package backup_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"

	"claviger/durable/durabletest"
	"claviger/trustee"
	"claviger/trustee/backup"
)

// TestRestoreSurvivesFaults fails and interrupts each step of a restoration. If the folder exists afterwards, it is
// complete, with its private key.
func TestRestoreSurvivesFaults(t *testing.T) {
	from, store := site(t, 1)
	id, err := trustee.LoadFolder(from)
	if err != nil {
		t.Fatal(err)
	}
	var ofClient, ofTrustee bytes.Buffer
	_, err = backup.Write(t.Context(), &ofClient, openpgp.EntityList{escrow()}, from, nil, time.Now())
	if err == nil {
		_, err = backup.Write(t.Context(), &ofTrustee, openpgp.EntityList{escrow()}, from, store, time.Now())
	}
	if err != nil {
		t.Fatal(err)
	}
	for name, out := range map[string]*bytes.Buffer{"client": &ofClient, "trustee": &ofTrustee} {
		t.Run(name, func(t *testing.T) {
			restoredLasts(t, decrypted(t, out.Bytes()), id.Identity, out == &ofTrustee)
		})
	}
}

// restoredLasts restores the archive of a backup of an identity. SQLite writes the file of the store, so the test only
// checks that the file exists.
func restoredLasts(t *testing.T, archive []byte, id *trustee.Identity, store bool) {
	c := durabletest.Case{
		Do: func(dir string) error {
			_, err := backup.Read(context.Background(), bytes.NewReader(archive), filepath.Join(dir, ".keytrustee"),
				open, store)
			return err
		},
		State: func(dir string) (string, error) {
			path := filepath.Join(dir, ".keytrustee")
			if _, err := os.Stat(path); err != nil {
				return "none", nil //nolint:nilerr // there is none
			}
			f, err := trustee.LoadFolder(path)
			if err != nil {
				return "", err
			}
			if _, err := os.Stat(filepath.Join(path, "keytrustee.db")); store && err != nil {
				return "", err
			}
			return fmt.Sprint(f.Identity.String() == id.String()), nil
		},
		NoRetry: true,
	}
	for _, fault := range durabletest.Faults(t, c) {
		t.Error(fault)
	}
}
