package trustee_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"claviger/durable/durabletest"
	"claviger/trustee"
)

// TestFolderLasts fails and cuts off each step of making and changing a folder: the
// identity, to which deposits are encrypted, is there whole when NewFolder has said
// so, and stays as it was whatever becomes of a change.
func TestFolderLasts(t *testing.T) {
	id, err := trustee.NewIdentity("keytrustee", "test", "keytrustee@h", 2048, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	look := func(dir string) (string, error) {
		path := filepath.Join(dir, ".keytrustee")
		if _, err := os.Stat(filepath.Join(path, trustee.ConfFile)); errors.Is(err, fs.ErrNotExist) {
			return "none", nil
		}
		f, err := trustee.LoadFolder(path)
		if err != nil {
			return "", err
		}
		return fmt.Sprint(f.Identity.String() == id.String(), f.Org), nil
	}
	make := func(dir string) error {
		_, err := trustee.NewFolder(filepath.Join(dir, ".keytrustee"), id)
		return err
	}
	t.Run("NewFolder", func(t *testing.T) {
		// A ring without keytrustee.conf is not overwritten, so it is not done again.
		durabletest.Run(t, durabletest.Case{Do: make, Look: look, NoRetry: true, Spare: 2}) // three files in one folder: the last sync is for all
	})
	t.Run("Save", func(t *testing.T) {
		durabletest.Run(t, durabletest.Case{
			Setup: make,
			Do: func(dir string) error {
				f, err := trustee.LoadFolder(filepath.Join(dir, ".keytrustee"))
				if err != nil {
					return err
				}
				f.Org = "SITE"
				return f.Save()
			},
			Look:  look,
			Spare: 2, // the public ring stays the same
		})
	})
}
