package location

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"claviger/owner"
	"claviger/trustee"
	"claviger/trustee/replica"
	"claviger/trustee/server"
	"claviger/trustee/server/sqlite"
	"claviger/trustee/server/storetest"
)

// TestLoad checks that only the folder of a Key Trustee Server is loaded.
func TestLoad(t *testing.T) {
	for name, change := range map[string]func(*trustee.Folder){"a file": nil, "a database": inDatabase} {
		f := newFolder(t, change)
		if got, err := Load(f.Path); err != nil || got.Store != f.Store ||
			got.Identity.Fingerprint() != f.Identity.Fingerprint() {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	for name, change := range map[string]func(*trustee.Folder){"organization": withOrganization, "server": withServer} {
		_, err := Load(newFolder(t, change).Path)
		wants(t, name, err, "is the folder of a KT KMS")
	}
	missing := filepath.Join(t.TempDir(), "missing")
	_, err := Load(missing)
	wants(t, "no folder", err, "claviger trustee init --confdir "+missing)
	f := newFolder(t, nil)
	write(t, filepath.Join(f.Path, trustee.ConfFile), "{")
	_, err = Load(f.Path)
	wants(t, "a damaged folder", err, "is not the JSON that it should be")
}

// TestRefuseServer checks that the folder of a server is recognized by a store, by the traces of a store that is
// missing, or by its configuration. The folder of a client has none of them.
func TestRefuseServer(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*trustee.Folder)
		make   string // a file beside the store
	}{"a store": {nil, ""}, "a database": {inDatabase, ""}, "a lock": {nil, ".lock"}, "a log": {nil, "-wal"},
		"a copy": {nil, ".schema-1"}} {
		f := newFolder(t, c.change)
		if c.change == nil {
			write(t, file(f)+c.make, "")
		}
		wants(t, name, RefuseServer(f.Path), "is the folder of a Key Trustee Server")
	}
	if err := RefuseServer(newFolder(t, withOrganization).Path); err != nil {
		t.Errorf("the folder of a client: %v", err)
	}
	wants(t, "an empty folder", RefuseServer(t.TempDir()), "does not exist or is empty")
}

// TestOpen checks that the store in a folder is opened, and that a missing store is not made.
func TestOpen(t *testing.T) {
	f := newFolder(t, nil)
	log := slog.New(slog.DiscardHandler)
	if _, err := Open(t.Context(), f, log); err == nil || exists(file(f)) {
		t.Errorf("no store: %v, made: %t", err, exists(file(f)))
	}
	newStore(t, f)
	s, err := Open(t.Context(), f, log)
	if err != nil {
		t.Fatal(err)
	}
	storetest.Fill(t, s)
	readOnly, release, err := OpenReadOnly(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := storetest.Digest(t, readOnly), storetest.Digest(t, s); got != want {
		t.Errorf("digest %s, want %s", got, want)
	}
	if err := readOnly.AddOrg(t.Context(), server.Org{Name: "X", UUID: "x"}); err == nil {
		t.Error("a change of a store that was opened for reading")
	}
	if err := errors.Join(release(), s.Close()); err != nil {
		t.Error(err)
	}
	wantClosed(t, "after release and Close", f.Path)
}

// TestClaim checks that only one trustee serves a store in a file, also if a second folder has a link to the file. A
// database needs no claim.
func TestClaim(t *testing.T) {
	f := newFolder(t, nil)
	newStore(t, f)
	linked := newFolder(t, nil)
	if err := os.Symlink(file(f), file(linked)); err != nil {
		t.Fatal(err)
	}
	release, err := Claim(f)
	if err != nil {
		t.Fatal(err)
	}
	for name, second := range map[string]*trustee.Folder{"the same folder": f, "a link": linked} {
		if _, err := Claim(second); !errors.As(err, new(*owner.InUseError)) {
			t.Errorf("%s: %v", name, err)
		} else {
			wants(t, name, err, "only one trustee may serve it")
		}
	}
	release()
	release, err = Claim(linked)
	if err != nil {
		t.Fatal(err)
	}
	release()
	if exists(file(linked) + ".lock") {
		t.Error("the lock is beside the link")
	}
	missing := &trustee.Folder{Path: filepath.Join(t.TempDir(), "missing")}
	if _, err := Claim(missing); err == nil || strings.Contains(err.Error(), "only one trustee") {
		t.Errorf("a folder that is missing: %v", err)
	}
	missing.Store = "postgresql://u@h:1/d"
	if release, err = Claim(missing); err != nil {
		t.Errorf("a database: %v", err)
	} else {
		release()
	}
}

// kept makes a store beside that of a folder, as resync --drop does. It has two organizations.
func kept(t *testing.T, f *trustee.Folder, ending string) string {
	t.Helper()
	path := file(f) + ending
	s, err := sqlite.Open(t.Context(), path, true)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"A", "B"} {
		err = errors.Join(err, s.AddOrg(t.Context(), server.Org{Name: name, UUID: name, Created: time.Now()}))
	}
	if err := errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestCompareDropped checks that a store is compared with each file that may hold records which it lacks.
func TestCompareDropped(t *testing.T) {
	f := newFolder(t, nil)
	newStore(t, f)
	store, err := Open(t.Context(), f, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close() //nolint:errcheck // the test only reads it
	var want []string
	for _, ending := range []string{".dropped-1", ".rescued-1"} {
		want = append(want, kept(t, f, ending))
		// Another process has the file open.
		write(t, file(f)+ending+"-wal", "")
		write(t, file(f)+ending+"-shm", "")
	}
	before := storetest.Digest(t, store)
	list, err := CompareDropped(t.Context(), store, f)
	var got []string
	for _, d := range list {
		got = append(got, d.File)
		if d.Lacks.None() {
			t.Errorf("the empty store lacks nothing of %s", d.File)
		}
	}
	if err != nil || !slices.Equal(got, want) || storetest.Digest(t, store) != before {
		t.Errorf("%q, %v; want %q", got, err, want)
	}
	write(t, file(f)+".dropped-2", "no store")
	if list, err := CompareDropped(t.Context(), store, f); err == nil || list != nil {
		t.Errorf("with a file that is not a store: %v, %v", list, err)
	}
}

// TestRecover checks that records are taken from a file, which is then closed. A file without any record is refused,
// since it is probably the wrong one.
func TestRecover(t *testing.T) {
	f, other := newFolder(t, nil), newFolder(t, nil)
	newStore(t, f)
	store, err := Open(t.Context(), f, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close() //nolint:errcheck // the test only reads it
	path := kept(t, other, ".dropped-1")
	r, err := Recover(t.Context(), store, path, replica.RecoverOptions{})
	if err != nil || r.Lacked.None() {
		t.Errorf("%+v, %v", r, err)
	}
	if orgs, err := store.Orgs(t.Context()); err != nil || len(orgs) != 2 {
		t.Errorf("%d organizations were taken, %v", len(orgs), err)
	}
	newStore(t, other)
	_, err = Recover(t.Context(), store, file(other), replica.RecoverOptions{})
	wants(t, "an empty store", err, "is an empty store of a trustee")
	_, err = Recover(t.Context(), store, file(other)+"-missing", replica.RecoverOptions{})
	wants(t, "a missing file", err, "no such file")
	unreadable := kept(t, other, ".dropped-2")
	dropTable(t, unreadable, "org")
	if r, err := Recover(t.Context(), store, unreadable, replica.RecoverOptions{}); err == nil || r != nil {
		t.Errorf("a store without a table: %v, %v", r, err)
	}
	wantClosed(t, "after Recover", other.Path)
}

// TestOpenFailure checks that the error of a database that cannot be opened names the configuration.
func TestOpenFailure(t *testing.T) {
	f := newFolder(t, func(f *trustee.Folder) { f.Store = "postgresql://u@h:wrong/d" })
	var log bytes.Buffer
	for name, open := range map[string]func() error{
		"Open": func() error {
			_, err := Open(t.Context(), f, slog.New(slog.NewTextHandler(&log, nil)))
			return err
		},
		"OpenReadOnly": func() error { _, _, err := OpenReadOnly(t.Context(), f); return err },
		"StatusOf":     func() error { _, err := StatusOf(t.Context(), f, false); return err },
		"Promote":      func() error { _, err := Promote(t.Context(), f, true); return err },
		"Init":         func() error { _, err := Init(t.Context(), f.Path, InitOptions{Hosts: hosts}); return err },
	} {
		if err := open(); err == nil {
			t.Errorf("%s of a URI that cannot be parsed", name)
		}
	}
	if log.Len() > 0 {
		t.Errorf("log %q", &log)
	}
}
