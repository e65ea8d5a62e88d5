package diagnosis

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"claviger/internal/pgtest"
	"claviger/pgdb"
	"claviger/trustee"
	"claviger/trustee/server/postgres"
)

// database lets the folder name a database in PostgreSQL.
func (l *lab) database(uri string) {
	l.t.Helper()
	f, err := trustee.LoadFolder(l.dir)
	l.must(err)
	f.Store = uri
	l.must(f.Save())
}

// claim gives a database to a trustee.
func (l *lab) claim(uri, fingerprint string) {
	l.t.Helper()
	s, err := postgres.Open(l.t.Context(), postgres.Config{URI: uri, Identity: fingerprint, Claim: true})
	l.must(err)
	l.must(s.Close())
}

// TestDatabase: a store in PostgreSQL is read, and an empty database stays empty: the check makes no schema.
func TestDatabase(t *testing.T) {
	l, uri := newLab(t), pgtest.Database(t)
	l.database(uri)
	for range 2 {
		if text := l.check("D-trustee-store"); !strings.Contains(text, "failure  D-trustee-store") ||
			!strings.Contains(text, "DB_CONNECT") {
			t.Fatal(text)
		}
	}
	if _, err := postgres.Open(t.Context(), postgres.Config{URI: uri, ReadOnly: true}); !errors.Is(err, pgdb.ErrEmpty) {
		t.Errorf("the database is not empty any more: %v", err)
	}
	l.claim(uri, identity().Fingerprint())
	if text := l.check("D-trustee-store"); !strings.Contains(text, "ok       D-trustee-store") ||
		!strings.Contains(text, "it can be read; the role is active; deposits that a Key HSM has wrapped: 0") {
		t.Error(text)
	}
	if text := l.check("D-trustee-keyhsm"); !strings.Contains(text, "no deposit needs one") {
		t.Error(text)
	}
	conn, err := pgx.Connect(t.Context(), uri)
	l.must(err)
	defer conn.Close(context.Background()) //nolint:errcheck // the test ends
	_, err = conn.Exec(t.Context(), `ALTER TABLE trustee_deposit RENAME COLUMN wrapped TO lost`)
	l.must(err)
	if text := l.check("D-trustee-store"); !strings.Contains(text, "failure  D-trustee-store") {
		t.Errorf("deposits that cannot be read: %s", text)
	}
}
