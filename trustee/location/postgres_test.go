package location

import (
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"

	"claviger/durable"
	"claviger/internal/pgtest"
	"claviger/trustee"
	"claviger/trustee/server"
	"claviger/trustee/server/storetest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m.Run)) }

// TestInitDatabase checks that Init gives a database to a trustee, and writes its URI into the folder.
func TestInitDatabase(t *testing.T) {
	pg := pgtest.Shared(t)
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	uri, f := pg.Database(t), newFolder(t, nil)
	withStore := InitOptions{Store: uri}
	if err := os.Mkdir(filepath.Join(f.Path, ".ssl"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{trustee.TLSCert, trustee.TLSKey} {
		write(t, filepath.Join(f.Path, name), "") // Init makes no certificate then
	}
	unmount := durable.Mount(f.Path, badDisk{bad: trustee.PublicRing})
	_, err := Init(t.Context(), f.Path, withStore)
	unmount()
	if !errors.Is(err, errInjected) {
		t.Errorf("the configuration cannot be written: %v", err)
	}
	made, err := Init(t.Context(), f.Path, withStore)
	if err != nil || made.Folder.Store != uri || exists(file(f)) {
		t.Fatalf("%+v, %v, a file: %t", made, err, exists(file(f)))
	}
	conf := filepath.Join(f.Path, trustee.ConfFile)
	before, err := os.Stat(conf)
	if err != nil {
		t.Fatal(err)
	}
	for name, o := range map[string]InitOptions{"the same database": withStore, "no --store": {}} {
		if made, err := Init(t.Context(), f.Path, o); err != nil || made.Folder.Store != uri {
			t.Errorf("%s: %+v, %v", name, made, err)
		}
	}
	if after, err := os.Stat(conf); err != nil || !os.SameFile(before, after) {
		t.Errorf("Init wrote the same configuration again: %v", err)
	}
	_, err = Init(t.Context(), f.Path, InitOptions{Store: pg.Database(t)})
	wants(t, "another database, which is empty", err, "not a Key Trustee Server's yet")
	useDatabase(t, made.Folder)
}

// useDatabase opens the database of a folder in each way.
func useDatabase(t *testing.T, f *trustee.Folder) {
	t.Helper()
	s, err := Open(t.Context(), f, nil)
	if err != nil {
		t.Fatal(err)
	}
	storetest.Fill(t, s)
	digest := storetest.Digest(t, s)
	readOnly, release, err := OpenReadOnly(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	if got := storetest.Digest(t, readOnly); got != digest {
		t.Errorf("digest %s, want %s", got, digest)
	}
	if err := errors.Join(release(), s.Close()); err != nil {
		t.Error(err)
	}
	if st, err := StatusOf(t.Context(), f, true); err != nil || st.Role != server.RoleActive || st.Deposits != 4 ||
		st.Deleted != 1 || st.Digest != digest {
		t.Errorf("%+v, %v; want digest %s", st, err, digest)
	}
	_, err = Promote(t.Context(), f, true)
	wants(t, "Promote", err, "is a primary")
}

// databaseOf returns the name of a database.
func databaseOf(t *testing.T, uri string) string {
	t.Helper()
	u, err := url.Parse(uri)
	if err != nil {
		t.Fatal(err)
	}
	return u.Path[1:]
}

// TestRestoreIntoDatabase checks that a restoration into a database can be undone, and that a second one accepts the
// records that a killed restoration left.
func TestRestoreIntoDatabase(t *testing.T) {
	pg := pgtest.Shared(t)
	records := storetest.Records(t, newFailing(t, server.RoleActive)) // its store is open until the end
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	uri, f := pg.Database(t), newFolder(t, nil)
	s, undo, err := OpenRestored(t.Context(), f.Path, uri)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Import(t.Context(), storetest.NextOf(records)), s.Close()); err != nil {
		t.Fatal(err)
	}
	name := databaseOf(t, uri)
	pg.Exec(t, name, "CREATE ROLE limited LOGIN", "GRANT SELECT ON trustee_db_version, trustee_identity TO limited")
	_, _, err = OpenRestored(t.Context(), f.Path, pg.URI("limited", name))
	wants(t, "a role that may not read", err, "permission denied")
	again, keep, err := OpenRestored(t.Context(), f.Path, uri)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Import(t.Context(), storetest.NextOf(records)); err != nil {
		t.Error(err)
	}
	wants(t, "other records", again.Import(t.Context(), storetest.NextOf(nil)), "nothing was overwritten")
	if err := errors.Join(again.Close(), keep(t.Context())); err != nil {
		t.Error(err)
	}
	f.Store = uri
	if st, err := StatusOf(t.Context(), f, false); err != nil || st.Deposits != 4 {
		t.Errorf("after the second restoration: %+v, %v", st, err)
	}
	pg.Exec(t, name, "ALTER DATABASE "+name+" SET default_transaction_read_only = on")
	if err := undo(t.Context()); err == nil {
		t.Error("undo of a database that cannot be written")
	}
	pg.Exec(t, name, "SET default_transaction_read_only = off", "ALTER DATABASE "+name+
		" RESET default_transaction_read_only")
	if err := undo(t.Context()); err != nil {
		t.Error(err)
	}
	_, err = StatusOf(t.Context(), f, false)
	wants(t, "after undo", err, "not a Key Trustee Server's yet")
	pg.Exec(t, name, "INSERT INTO trustee_identity VALUES (true, 'AB12')")
	wants(t, "undo of another trustee's database", undo(t.Context()), "belongs to the Key Trustee Server AB12")
}
