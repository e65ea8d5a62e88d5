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
		_, err := os.Stat(filepath.Join(path, trustee.ConfFile))
		if errors.Is(err, fs.ErrNotExist) || trustee.Unfinished(path) {
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
		// Where it was broken off, a second run finishes it.
		again := func(dir string) error {
			path := filepath.Join(dir, ".keytrustee")
			if f, err := trustee.LoadFolder(path); err == nil && f.Identity.String() == id.String() {
				return nil // as all who make one, it loads first
			}
			return make(dir)
		}
		// Three files in one folder, one of them renamed: the last sync of it is for all.
		durabletest.Run(t, durabletest.Case{Do: again, Look: look, Spare: 3})
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
