package postgres_test

import (
	"context"
	"errors"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"

	"claviger"
	"claviger/internal/pgtest"
	"claviger/metastore"
	"claviger/metastore/postgres"
	"claviger/metastore/storetest"
	"claviger/pgdb/pgdbtest"
)

func open(ctx context.Context, uri string) (metastore.Store, error) {
	return postgres.Open(ctx, postgres.Config{URI: uri})
}

func TestMain(m *testing.M) {
	os.Exit(pgtest.Main(func() int { return storetest.Main(m, open) }))
}

// template is a database with an empty store: each test copies it, because that is faster than making the schema again.
var template struct {
	sync.Once
	name string
}

// emptyStore makes a database with an empty store on the shared server, and returns its URI.
func emptyStore(t *testing.T) string {
	t.Helper()
	server := pgtest.Shared(t)
	template.Do(func() {
		uri := server.Database(t)
		openOnce(t, uri)
		template.name = databaseOf(t, uri)
	})
	return server.Copy(t, template.name)
}

// databaseOf returns the name of a URI's database.
func databaseOf(t *testing.T, uri string) string {
	t.Helper()
	u, err := url.Parse(uri)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimPrefix(u.Path, "/")
}

// TestStore: a store passes the tests of each metastore.Store.
func TestStore(t *testing.T) {
	storetest.Run(t, storetest.Backend{
		New:   emptyStore,
		Open:  open,
		Nodes: true,
	})
}

// openTwice returns an empty store, opened by two nodes.
func openTwice(t *testing.T) (a, b *postgres.Store) {
	t.Helper()
	uri := emptyStore(t)
	var stores [2]*postgres.Store
	for i := range stores {
		s, err := postgres.Open(t.Context(), postgres.Config{URI: uri})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
		stores[i] = s
	}
	return stores[0], stores[1]
}

// TestDelegations: the store keeps delegation tokens as package storetest requires, also for two nodes.
func TestDelegations(t *testing.T) {
	storetest.Delegations(t, func(t *testing.T) (a, b metastore.Delegations) { return openTwice(t) })
}

// TestSigners: the store keeps signer secrets as package storetest requires, also for two nodes.
func TestSigners(t *testing.T) {
	storetest.Signers(t, func(t *testing.T) (a, b metastore.Signers) { return openTwice(t) })
}

// TestNotices: a node gets a notice of each change that another node makes.
func TestNotices(t *testing.T) {
	storetest.Notices(t, func(t *testing.T) (a, b storetest.NoticeStore) { return openTwice(t) })
}

// TestEpochs: each change of a key gives the key an epoch that it never had before, and both nodes see it.
func TestEpochs(t *testing.T) {
	storetest.Epochs(t, func(t *testing.T) (a, b storetest.EpochStore) { return openTwice(t) })
}

// TestReadOnly checks that a read-only store makes no schema in an empty database, and cannot write.
func TestReadOnly(t *testing.T) {
	ctx := t.Context()
	uri := pgtest.Database(t)
	openReadOnly := func() (*postgres.Store, error) {
		return postgres.Open(ctx, postgres.Config{URI: uri, ReadOnly: true})
	}
	if _, err := openReadOnly(); !claviger.Is(err, claviger.Unavailable) ||
		!errors.Is(err, postgres.ErrEmpty) {
		t.Fatalf("an empty database: %v", err)
	}
	s, err := postgres.Open(ctx, postgres.Config{URI: uri})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	if err := s.SetSetting(ctx, "x", "1"); err != nil {
		t.Fatal(err)
	}
	r, err := openReadOnly()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	if v, ok, err := r.Setting(ctx, "x"); err != nil || !ok || v != "1" {
		t.Errorf("%q %t %v", v, ok, err)
	}
	if err := r.SetSetting(ctx, "x", "2"); err == nil || !strings.Contains(err.Error(), "read-only") {
		t.Errorf("a write: %v", err)
	}
}

// TestUpgraded opens a store of an older release, in which versions had no numbers.
func TestUpgraded(t *testing.T) {
	uri := pgtest.Database(t)
	dump, err := os.ReadFile("testdata/schema2.sql")
	if err != nil {
		t.Fatal(err)
	}
	exec(t, uri, string(dump))
	s, err := postgres.Open(t.Context(), postgres.Config{URI: uri})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	storetest.Upgraded(t, s)
}

// TestParts: a schema that lacks a constraint or an index is refused, and the error names both.
func TestParts(t *testing.T) {
	uri, exists := pgtest.Database(t), false
	pgdbtest.TestParts(t, pgdbtest.Parts{
		URI: uri, Table: "goose_db_version", File: "parts.txt",
		Open: func() error {
			s, err := postgres.Open(t.Context(), postgres.Config{URI: uri, ReadOnly: exists})
			exists = true
			if err != nil {
				return err
			}
			return s.Close()
		},
		Break: []string{`ALTER TABLE key_version DROP CONSTRAINT key_version_object_key`},
		Lacks: "lacks 2 parts of its schema (constraint key_version.key_version_object_key, index " +
			"key_version_object_key)",
	})
}
