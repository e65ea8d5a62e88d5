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

// TestRestoredLasts fails and cuts off each step of a restoration: a folder that is
// there is whole, with its private key.
func TestRestoredLasts(t *testing.T) {
	from, store := site(t, 1)
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	id, err := trustee.LoadFolder(from)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if _, err := backup.Write(t.Context(), &out, openpgp.EntityList{escrow()}, from, nil, time.Now()); err != nil {
		t.Fatal(err)
	}
	c := durabletest.Case{
		Do: func(dir string) error {
			in, err := backup.Decrypt(bytes.NewReader(out.Bytes()), bytes.NewReader(private(t)))
			if err != nil {
				return err
			}
			_, err = backup.Read(context.Background(), in, filepath.Join(dir, ".keytrustee"), nil, false)
			return err
		},
		Look: func(dir string) (string, error) {
			path := filepath.Join(dir, ".keytrustee")
			if _, err := os.Stat(path); err != nil {
				return "none", nil //nolint:nilerr // there is none
			}
			f, err := trustee.LoadFolder(path)
			if err != nil {
				return "", err
			}
			return fmt.Sprint(f.Identity.String() == id.Identity.String()), nil
		},
		NoRetry: true,
	}
	for _, fault := range durabletest.Faults(t, c) {
		t.Error(fault)
	}
}
