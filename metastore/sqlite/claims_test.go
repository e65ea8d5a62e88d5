package sqlite

import (
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pressly/goose/v3"

	"claviger/owner"
)

// TestUpgradeInUse: the schema does not change under a server.
func TestUpgradeInUse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "old.db")
	db, err := sql.Open("sqlite", dsn(path))
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
	if _, err := Open(t.Context(), path); err == nil || !strings.Contains(err.Error(), "in use by claviger kms, process") || !strings.Contains(err.Error(), "stop that process first") {
		t.Errorf("the schema was changed under a server: %v", err)
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
