package sqlitedb

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestKeepsOwners: root opens no database for reading whose owner SQLite would give to the -wal and -shm of another
// user. The error has a command that names all three files.
func TestKeepsOwners(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give files away")
	}
	path := filepath.Join(t.TempDir(), "claviger.db")
	for _, name := range []string{path, path + "-wal", path + "-shm"} {
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := keepsOwners(path, 0); err != nil {
		t.Errorf("one owner: %v", err)
	}
	if err := os.Chown(path+"-wal", 4711, 4711); err != nil {
		t.Fatal(err)
	}
	d, err := OpenReadOnly(path, Config{What: "metastore"})
	if err == nil || !strings.Contains(err.Error(), "cure: chown 4711:4711 "+path+" "+path+"-wal "+path+"-shm") {
		t.Errorf("%v, %v", d, err)
	}
	info, err := os.Stat(path + "-wal")
	if err != nil || info.Sys().(*syscall.Stat_t).Uid != 4711 {
		t.Errorf("the owner was changed: %v", err)
	}
	if err := keepsOwners(path, 4711); err != nil {
		t.Errorf("another user than root changes no owner: %v", err)
	}
}
