package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/terminal"
	"claviger/trustee"
	"claviger/trustee/server"
	"claviger/trustee/server/sqlite"
)

// fullAfter is a store with room for a number of further deposits.
type fullAfter struct {
	server.Store
	room int
	err  error
}

func (s *fullAfter) Put(ctx context.Context, d server.Row, replaces string, once server.Once) error {
	if s.room--; s.room < 0 {
		return s.err
	}
	return s.Store.Put(ctx, d, replaces, once)
}

// TestRecoverBrokenOff: an interrupted recover prints what it has added, because the next call does not print that
// again. It says that nothing was changed only if that is true.
func TestRecoverBrokenOff(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	owner := strings.Repeat("A", 40)
	open := func(name string, deposits ...string) server.Store {
		t.Helper()
		s, err := sqlite.Open(ctx, filepath.Join(dir, name), true)
		if err == nil {
			t.Cleanup(func() { _ = s.Close() }) // it may be closed already
			err = s.AddOrg(ctx, server.Org{Name: "ORG", UUID: "u", Auth: "walrus", Created: time.Unix(1, 0)})
		}
		if err == nil {
			client := server.Client{Fingerprint: owner, Org: "ORG", PublicKey: []byte("k"), State: server.Active,
				Created: time.Unix(1, 0)}
			_, err = s.AddClient(ctx, client, server.Once{})
		}
		for i, label := range deposits {
			row := server.Row{UUID: label, Owner: owner, Org: "ORG", Label: label}
			row.Sealed = trustee.Sealed{Statement: fmt.Appendf(nil, `{"created":"2026-11-29T08:00:%02dZ"}`, i),
				Signature: []byte("s"), Content: []byte("c")}
			if err == nil {
				err = s.Put(ctx, row, "", server.Once{})
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	if err := open("file", "one", "two", "three").Close(); err != nil {
		t.Fatal(err)
	}
	full := claviger.E("test", claviger.Unavailable, "", errors.New("the disk is full"))
	passive := claviger.E("test", claviger.Unavailable, "", trustee.ErrPassive)
	for i, c := range []struct {
		room         int
		err          error
		added, whole string // the output, and the error
	}{
		{1, full, `added deposit "one"`, "the disk is full; the records added before remain in the store"},
		{2, passive, `added deposit "two"`, "the records added before remain in the store"}, // the store became passive
		{0, passive, "", "nothing was changed: copy"},
		{0, full, "", "the disk is full; nothing was changed"},
	} {
		var out strings.Builder
		store := &fullAfter{open(fmt.Sprint("store", i)), c.room, c.err}
		err := recoverFrom(ctx, terminal.To(&out), store, filepath.Join(dir, "file"), nil)
		if err == nil || !strings.Contains(err.Error(), c.whole) || !strings.Contains(out.String(), c.added) ||
			strings.Count(out.String(), "added deposit") != c.room {
			t.Errorf("case %d: %v\n%s", i, err, &out)
		}
	}
}
