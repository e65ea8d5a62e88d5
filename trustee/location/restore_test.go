package location

import (
	"errors"
	"io"
	"path/filepath"
	"testing"

	"claviger"
	"claviger/durable"
	"claviger/trustee"
	"claviger/trustee/server"
	"claviger/trustee/server/storetest"
)

// TestOpenRestored checks that the folder of a trustee whose store was in a database gets a store in a file.
func TestOpenRestored(t *testing.T) {
	f := newFolder(t, inDatabase)
	unmount := durable.Mount(f.Path, badDisk{bad: trustee.PublicRing})
	_, _, err := OpenRestored(t.Context(), f.Path, "")
	unmount()
	if !errors.Is(err, errInjected) || exists(file(f)) {
		t.Errorf("the configuration cannot be written: %v", err)
	}
	s, undo, err := OpenRestored(t.Context(), f.Path, "")
	if err != nil {
		t.Fatal(err)
	}
	storetest.Fill(t, s)
	if err := errors.Join(s.Close(), undo(t.Context())); err != nil {
		t.Error(err)
	}
	if got, err := trustee.LoadFolder(f.Path); err != nil || got.Store != "" || !exists(file(f)) {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestOpenRestoredFails checks the errors of a folder, a file and a database that cannot be opened.
func TestOpenRestoredFails(t *testing.T) {
	if _, _, err := OpenRestored(t.Context(), t.TempDir(), ""); err == nil {
		t.Error("no folder")
	}
	f := newFolder(t, nil)
	write(t, filepath.Join(f.Path, FileName), "the file of another program")
	if _, _, err := OpenRestored(t.Context(), f.Path, ""); err == nil {
		t.Error("the file of another program")
	}
	if _, _, err := OpenRestored(t.Context(), f.Path, "postgresql://u@h:wrong/d"); err == nil {
		t.Error("a URI that cannot be parsed")
	}
}

// TestRestoredBefore checks that a second restoration accepts a database with records only if they are those of the
// backup, and that it ends with each error.
func TestRestoredBefore(t *testing.T) {
	held := newFailing(t, server.RoleActive)
	before := storetest.Records(t, held)
	s := &restoredBefore{Store: held, uri: failingURI}
	if err := s.Import(t.Context(), storetest.NextOf(before)); err != nil {
		t.Errorf("the same records: %v", err)
	}
	for name, list := range map[string][]server.Record{"fewer": before[1:], "none": nil} {
		wants(t, name, s.Import(t.Context(), storetest.NextOf(list)), failingURI+" already holds deposits",
			"nothing was overwritten")
	}
	// The backup has the same records, and one that is damaged.
	for name, c := range map[string]struct {
		err  error
		want func(error) bool
	}{
		"a damaged record": {errInjected, func(err error) bool { return errors.Is(err, errInjected) }},
		"an empty record":  {nil, func(err error) bool { return claviger.Is(err, claviger.Internal) }},
	} {
		next, first := storetest.NextOf(before), true
		err := s.Import(t.Context(), func() (server.Record, error) {
			if first {
				first = false
				return server.Record{}, c.err
			}
			return next()
		})
		if !c.want(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	held.calls, held.fail = 0, 1
	if err := s.Import(t.Context(), func() (server.Record, error) { return server.Record{}, io.EOF }); !errors.Is(err,
		errInjected) {
		t.Errorf("the database cannot be read: %v", err)
	}
}

// TestHoldsRecords checks holdsRecords with a store that has records, and with one that has none.
func TestHoldsRecords(t *testing.T) {
	used := newFailing(t, server.RoleActive)
	if yes, err := holdsRecords(t.Context(), used); err != nil || !yes {
		t.Errorf("a store with records: %t, %v", yes, err)
	}
	if err := used.Import(t.Context(), storetest.NextOf(nil)); err != nil {
		t.Fatal(err)
	}
	if yes, err := holdsRecords(t.Context(), used); err != nil || yes {
		t.Errorf("an empty store: %t, %v", yes, err)
	}
}
