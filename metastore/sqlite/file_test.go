package sqlite

import (
	"context"
	"database/sql"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pressly/goose/v3"
	"go.uber.org/goleak"

	"claviger"
	"claviger/metastore"
	"claviger/sqlitedb"
)

func newStore(t *testing.T) (*Store, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "metastore.db")
	s, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s, path
}

func testKey(name, id string) metastore.Key {
	return metastore.Key{Metadata: claviger.Metadata{Name: name, Cipher: "AES/CTR/NoPadding", BitLength: 128},
		List: []metastore.Version{{ID: id, Object: id + "0b", Check: []byte("12345678")}}}
}

// TestSchemaVersion checks that SchemaVersion is the number of the newest migration.
func TestSchemaVersion(t *testing.T) {
	files, err := fs.Glob(migrations, "migrations/*.sql")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	var newest int
	if _, err := fmt.Sscanf(filepath.Base(files[len(files)-1]), "%d_", &newest); err != nil ||
		newest != SchemaVersion {
		t.Errorf("newest migration is %d (%v), SchemaVersion is %d", newest, err, SchemaVersion)
	}
}

// TestOlderSchema opens a file of the first schema that has a key.
func TestOlderSchema(t *testing.T) {
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
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.UpTo(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	for _, q := range []string{
		fmt.Sprintf("PRAGMA application_id = %d", applicationID),
		`INSERT INTO ez_key VALUES (1, 'k', 'AES/CTR/NoPadding', 128, NULL, '{}', 0)`,
		`INSERT INTO key_version VALUES (1, 0, '01', 0, x'0102')`,
	} {
		if _, err := db.ExecContext(t.Context(), q); err != nil {
			t.Fatal(q, err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	if k, err := s.Get(t.Context(), "k"); err != nil || len(k) != 1 || len(k[0].List) != 1 || k[0].List[0].ID != "01" {
		t.Errorf("the key is %+v (%v)", k, err)
	}
	if first, err := s.NextSequences(t.Context(), 5); err != nil || first != 1 {
		t.Errorf("the first token has number %d (%v)", first, err)
	}
	kept := path + ".schema-1" // it has no table of deleted keys
	if f, err := Inspect(t.Context(), kept); err != nil || f.Schema != 1 || f.Keys != 1 || f.Deleted != 0 {
		t.Errorf("the copy that the upgrade kept: %+v, %v", f, err)
	}
}

// TestNumbersUsedUp checks that NextSequences fails before it would return a number above the largest int32.
func TestNumbersUsedUp(t *testing.T) {
	s, _ := newStore(t)
	if _, err := s.db.Writer.ExecContext(t.Context(), `UPDATE counter SET next = ?`, math.MaxInt32-1); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		n, want int32
	}{{3, 0}, {2, math.MaxInt32 - 1}, {1, 0}} {
		if first, err := s.NextSequences(t.Context(), c.n); first != c.want || (err == nil) != (c.want != 0) {
			t.Errorf("%d numbers begin at %d (%v), want %d", c.n, first, err, c.want)
		}
	}
}

// TestDamagedSince checks that the time at which the record of uses begins must be a number.
func TestDamagedSince(t *testing.T) {
	s, _ := newStore(t)
	if err := s.SetSetting(t.Context(), metastore.SettingLastUsesSince, "yesterday"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.LastUses(t.Context(), "k@0"); !claviger.Is(err, claviger.Internal) ||
		!strings.Contains(err.Error(), metastore.SettingLastUsesSince) {
		t.Error(err)
	}
}

// TestDamage checks that Open reports a damaged page, and that a Store which has the file open reports it when it reads
// the page.
func TestDamage(t *testing.T) {
	s, path := newStore(t)
	for i := range 200 {
		if err := s.Insert(t.Context(), testKey(fmt.Sprint("key", i), fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
	}
	var root int64
	if err := s.db.Reader.QueryRow(`SELECT rootpage FROM sqlite_schema WHERE name = 'ez_key'`).Scan(&root); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil { // Close moves the -wal into the file
		t.Fatal(err)
	}
	s, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("\xff\xff\xff\xff\xff\xff\xff\xff"), (root-1)*4096); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if again, err := Open(t.Context(), path); err == nil || !strings.Contains(err.Error(), path+" is damaged") {
		t.Errorf("opened: %v, %v", again, err)
	}
	if _, err := s.Get(t.Context(), "key7"); err == nil || !strings.Contains(err.Error(), path+" is damaged") {
		t.Errorf("Get: %v", err)
	}
}

// TestFull limits the number of pages. SQLite then returns the same error code as on a full disk.
func TestFull(t *testing.T) {
	s, path := newStore(t)
	ctx := t.Context()
	if err := s.Insert(ctx, testKey("before", "01")); err != nil {
		t.Fatal(err)
	}
	var pages, limit int64
	if err := s.db.Writer.QueryRow("PRAGMA page_count").Scan(&pages); err != nil {
		t.Fatal(err)
	}
	if err := s.db.Writer.QueryRow(fmt.Sprintf("PRAGMA max_page_count = %d", pages)).Scan(&limit); err != nil {
		t.Fatal(err)
	}
	big := testKey("big", "02")
	big.Attributes = map[string]string{"a": strings.Repeat("x", 100_000)}
	err := s.Insert(ctx, big)
	if !claviger.Is(err, claviger.Unavailable) || !strings.Contains(err.Error(), path) ||
		!strings.Contains(err.Error(), "the disk is full") {
		t.Errorf("insert on a full disk: %v", err)
	}
	got, err := s.Get(ctx, "before", "big")
	if err != nil || got[0] == nil || got[1] != nil {
		t.Errorf("after the failed insert: %v, %v", got, err)
	}
	if err := s.db.Writer.QueryRow("PRAGMA max_page_count = 1000000").Scan(&limit); err != nil {
		t.Fatal(err)
	}
	if err := s.Insert(ctx, big); err != nil {
		t.Errorf("insert after there is room again: %v", err)
	}
}

// TestObjectsAreUnique checks that two keys cannot have the same HSM object.
func TestObjectsAreUnique(t *testing.T) {
	s, _ := newStore(t)
	if err := s.Insert(t.Context(), testKey("a", "01")); err != nil {
		t.Fatal(err)
	}
	err := s.Insert(t.Context(), testKey("b", "01"))
	if err == nil || !strings.Contains(err.Error(), "version b@01 or HSM object 010b is already in use") {
		t.Errorf("error %v", err)
	}
	if got, err := s.Get(t.Context(), "b"); err != nil || got[0] != nil {
		t.Errorf("a part of the key was written: %v, %v", got, err)
	}
}

// TestNoGoroutineIsLeft checks that Close ends all goroutines, and that a failed Open leaves none.
func TestNoGoroutineIsLeft(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	path := filepath.Join(t.TempDir(), "m.db")
	s, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := s.Names(ctx); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(path, []byte(strings.Repeat("no database", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), path); err == nil {
		t.Error("Open accepted a file that is not a database")
	}
}

// BenchmarkOpen measures the opening of a store with 1000 keys, as at the start of a server.
func BenchmarkOpen(b *testing.B) {
	path := filepath.Join(b.TempDir(), "m.db")
	s, err := Open(b.Context(), path)
	if err != nil {
		b.Fatal(err)
	}
	for i := range 1000 {
		if err := s.Insert(b.Context(), testKey(fmt.Sprint("key", i), fmt.Sprint(i))); err != nil {
			b.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		s, err := Open(b.Context(), path)
		if err != nil {
			b.Fatal(err)
		}
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkByVersion measures the lookup of the key version of an EDEK.
func BenchmarkByVersion(b *testing.B) {
	s, err := Open(b.Context(), filepath.Join(b.TempDir(), "m.db"))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	for i := range 1000 {
		if err := s.Insert(b.Context(), testKey(fmt.Sprint("key", i), fmt.Sprint(i))); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		if _, _, err := s.ByVersion(b.Context(), "key500@500"); err != nil {
			b.Fatal(err)
		}
	}
}
