package sqlite

import (
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pressly/goose/v3"

	"claviger"
	"claviger/owner"
	"claviger/sqlitedb"
)

// TestUpgradeInUse checks that Open does not upgrade the schema while a server uses the store.
func TestUpgradeInUse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "old.db")
	db, err := sql.Open("sqlite", sqlitedb.URI(path, busyTimeout))
	if err != nil {
		t.Fatal(err)
	}
	sub, err := fs.Sub(migrations, "migrations")
	if err != nil {
		t.Fatal(err)
	}
	p, err := goose.NewProvider(goose.DialectSQLite3, db, sub)
	if err == nil {
		_, err = p.UpTo(t.Context(), 1)
	}
	if err == nil {
		_, err = db.ExecContext(t.Context(), fmt.Sprintf("PRAGMA application_id = %d", applicationID))
	}
	if err = errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	release, err := owner.Claim(path+".lock", "sqlite://"+path, owner.Self("claviger kms", "/etc/old"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), path); err == nil ||
		!strings.Contains(err.Error(), "in use by claviger kms, process") ||
		!strings.Contains(err.Error(), "stop that process first") {
		t.Errorf("the schema was upgraded while a server used the store: %v", err)
	}
	release()
	s, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// TestHardLinks checks that a file with two names cannot be claimed under either name, and that the error helps to find
// the other name. With one name the file can be claimed again.
func TestHardLinks(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "claviger.db")
	open := func(path string) error {
		s, err := Open(t.Context(), path)
		if err != nil {
			return err
		}
		_, err = s.Claim(t.Context(), owner.Self("claviger kms", ""), false)
		return errors.Join(err, s.Close())
	}
	if err := open(path); err != nil {
		t.Fatal(err)
	}
	// If Claim did not check the types of files, this symbolic link would count as a name of the file.
	if err := os.Symlink(path, filepath.Join(dir, "a link.db")); err != nil {
		t.Fatal(err)
	}
	sameFolder, otherFolder := filepath.Join(dir, "second.db"), filepath.Join(t.TempDir(), "claviger.db")
	for _, other := range []string{sameFolder, otherFolder} {
		if err := os.Link(path, other); err != nil {
			t.Fatal(err)
		}
		for name, otherName := range map[string]string{path: sameFolder, other: path} {
			want := "one of them is " + otherName
			if other == otherFolder {
				want = "find / -xdev -inum"
			}
			err := open(name)
			for _, want := range []string{want, name, "2 names (hard links)", "remove the other names"} {
				if !claviger.Is(err, claviger.Unavailable) || !strings.Contains(err.Error(), want) {
					t.Errorf("%q is not in %v", want, err)
				}
			}
		}
		if err := os.Remove(other); err != nil {
			t.Fatal(err)
		}
	}
	if err := open(path); err != nil {
		t.Error(err)
	}
}

// TestClaimOfEmptyStore checks that a store in memory can be claimed, and that no file is made for it.
func TestClaimOfEmptyStore(t *testing.T) {
	dir := t.TempDir()
	s, err := OpenEmpty(t.Context(), filepath.Join(dir, "x.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	release, err := s.Claim(t.Context(), owner.Self("claviger kms", ""), false)
	if err != nil {
		t.Fatal(err)
	}
	if owners, err := s.Owners(t.Context()); err != nil || owners != nil {
		t.Errorf("the owners are %v, %v", owners, err)
	}
	release()
	if files, err := os.ReadDir(dir); err != nil || len(files) > 0 {
		t.Errorf("the folder has %v, %v", files, err)
	}
}

// TestClosedDuringClaim closes the store before each call that Claim makes to SQLite. Claim must fail, and must leave
// neither a claim nor a connection.
func TestClosedDuringClaim(t *testing.T) {
	injectFaults(t)
	conns, _ := faults.Unclosed()
	s, path := newStore(t)
	closeStore := func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	for call, err := range faults.BeforeEach(closeStore, func() error {
		_, err := s.Claim(t.Context(), owner.Self("claviger kms", ""), false)
		return err
	}) {
		if call.Number == 0 {
			if err != nil {
				t.Error(err)
			}
			break
		}
		if !claviger.Is(err, claviger.Closed) {
			t.Errorf("closed before %s: %v", call, err)
		}
		if n, _ := faults.Unclosed(); n != conns {
			t.Errorf("closed before %s: %d connections are open", call, n-conns)
		}
		if s, err = Open(t.Context(), path); err != nil {
			t.Fatal(err)
		}
	}
	closeStore()
}

// TestOwnersUnreadable checks that Owners fails if the file of the locks cannot be read.
func TestOwnersUnreadable(t *testing.T) {
	s, path := newStore(t)
	if err := errors.Join(os.RemoveAll(path+".lock"), os.Symlink(path+".lock", path+".lock")); err != nil {
		t.Fatal(err)
	}
	if owners, err := s.Owners(t.Context()); !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("%v, %v", owners, err)
	}
}
