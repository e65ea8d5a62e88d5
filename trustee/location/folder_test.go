package location

import (
	"database/sql"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"claviger/durable"
	"claviger/trustee"
	"claviger/trustee/server/sqlite"
)

// identity is the identity of each folder. A test that needs another one makes it.
var identity = sync.OnceValue(func() *trustee.Identity {
	id, err := trustee.NewIdentity("keytrustee", "test", "keytrustee@h", 2048, time.Now())
	if err != nil {
		panic(err)
	}
	return id
})

// hosts are the names for a certificate.
var hosts = []string{"trustee.example.com", "127.0.0.1"}

// newFolder makes a folder with an identity. change, if it is not nil, changes its configuration.
func newFolder(t *testing.T, change func(*trustee.Folder)) *trustee.Folder {
	t.Helper()
	f, err := trustee.NewFolder(filepath.Join(t.TempDir(), ".keytrustee"), identity())
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(f)
		if err := f.Save(); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// withOrganization makes a folder the folder of a Key Trustee KMS.
func withOrganization(f *trustee.Folder) { f.Org = "ORG" }

// withServer also makes a folder the folder of a Key Trustee KMS.
func withServer(f *trustee.Folder) { f.Servers = []*trustee.Party{&identity().Party} }

// inDatabase lets a folder name a database.
func inDatabase(f *trustee.Folder) { f.Store = "postgresql://u@h:1/d" }

// newStore makes the SQLite store of a folder.
func newStore(t *testing.T, f *trustee.Folder) {
	t.Helper()
	s, err := sqlite.Open(t.Context(), file(f), true)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// write writes a file.
func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// exists reports whether a file exists.
func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// wants fails the test unless an error has the words.
func wants(t *testing.T, what string, err error, words ...string) {
	t.Helper()
	for _, w := range words {
		if err == nil || !strings.Contains(err.Error(), w) {
			t.Errorf("%s: %v; want %q", what, err, w)
		}
	}
}

// wantClosed fails the test if this process has a file in the folder open.
func wantClosed(t *testing.T, what, folder string) {
	t.Helper()
	fds, err := filepath.Glob("/proc/self/fd/*")
	if err != nil || len(fds) == 0 {
		t.Fatal(fds, err)
	}
	for _, fd := range fds {
		if name, err := os.Readlink(fd); err == nil && strings.HasPrefix(name, folder+"/") {
			t.Errorf("%s: %s is open", what, name)
		}
	}
}

// dropTable removes a table from a store.
func dropTable(t *testing.T, path, table string) {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	_, err = db.ExecContext(t.Context(), "DROP TABLE "+table)
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
}

// badDisk is a disk on which files cannot be made or renamed if bad is a part of their name.
type badDisk struct {
	durable.OS
	bad string
}

func (d badDisk) OpenFile(name string, flag int, mode fs.FileMode) (durable.File, error) {
	if strings.Contains(filepath.Base(name), d.bad) {
		return nil, errInjected
	}
	return d.OS.OpenFile(name, flag, mode)
}

func (d badDisk) Rename(from, to string) error {
	if strings.Contains(filepath.Base(from), d.bad) {
		return errInjected
	}
	return d.OS.Rename(from, to)
}
