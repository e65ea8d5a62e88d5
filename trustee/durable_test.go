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

// TestFolderSurvivesFaults fails and interrupts each step of NewFolder and Save. After NewFolder has succeeded, the
// folder has the whole identity. A failed Save does not change the identity.
func TestFolderSurvivesFaults(t *testing.T) {
	id, err := trustee.NewIdentity("keytrustee", "test", "keytrustee@h", 2048, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	state := func(dir string) (string, error) {
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
		// After an interruption, a second run completes the folder.
		makeOrFinish := func(dir string) error {
			path := filepath.Join(dir, ".keytrustee")
			if f, err := trustee.LoadFolder(path); err == nil && f.Identity.String() == id.String() {
				return nil // like all callers of NewFolder, load the folder first
			}
			return make(dir)
		}
		// Three files are in one folder, and one of them is renamed. The last sync of the folder is enough for all.
		durabletest.Run(t, durabletest.Case{Do: makeOrFinish, State: state, UnneededSyncs: 3})
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
			State:         state,
			UnneededSyncs: 2, // the public ring stays the same
		})
	})
}
