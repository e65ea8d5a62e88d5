package sqlite

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"testing"
	"time"

	"claviger"
	"claviger/trustee"
	"claviger/trustee/server"
)

func open(t *testing.T) *Store {
	t.Helper()
	s, err := Open(t.Context(), filepath.Join(t.TempDir(), "trustee.db"), true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func until(digest string) server.Once {
	return server.Once{Digest: digest, Until: time.UnixMilli(1700000600000)}
}

func row(owner string, i int) server.Row {
	return server.Row{UUID: fmt.Sprintf("u%d", i), Owner: owner, Org: "ORG", Label: fmt.Sprintf("<l&%d>\u2028", i), Access: []string{"A"}, Wrapped: i%2 == 0,
		Sealed: trustee.Sealed{Statement: []byte("s"), Signature: []byte("g"), Content: []byte{0, byte(i), 0xff}}}
}

// filled has something of everything, a deleted deposit and one that expires.
func filled(t *testing.T) *Store {
	t.Helper()
	ctx, s := t.Context(), open(t)
	fill(ctx, t, s)
	return s
}

func fill(ctx context.Context, t *testing.T, s *Store) {
	t.Helper()
	at := time.UnixMilli(1700000000123)
	check(t, s.AddOrg(ctx, server.Org{Name: "ORG", UUID: "o", Contacts: []string{"a@b"}, Auth: "x", Created: at}))
	check(t, s.AddOrg(ctx, server.Org{Name: "EMPTY", UUID: "e", Created: at}))
	_, err := s.AddClient(ctx, server.Client{Fingerprint: "FF", Org: "ORG", PublicKey: []byte{1}, State: server.Active, Created: at}, until("d0"))
	check(t, err)
	for i := range 5 {
		r := row("FF", i)
		if i == 3 {
			r.Access, r.Expires = nil, at.Add(time.Hour)
		}
		check(t, s.Put(ctx, r, "", until(fmt.Sprintf("d%d", i+1))))
	}
	check(t, s.Delete(ctx, "FF", []string{"u1"}, at, until("d9")))
}

func records(t *testing.T, s *Store) []server.Record {
	t.Helper()
	var list []server.Record
	check(t, s.Export(t.Context(), func(r server.Record) error { list = append(list, r); return nil }))
	return list
}

func digest(t *testing.T, s server.Store) string {
	t.Helper()
	d, err := server.StateDigest(t.Context(), s)
	check(t, err)
	return d
}

func nextOf(list []server.Record) func() (server.Record, error) {
	return func() (server.Record, error) {
		if len(list) == 0 {
			return server.Record{}, io.EOF
		}
		r := list[0]
		list = list[1:]
		return r, nil
	}
}

// TestExportImport: what one store exports makes another its equal, through JSON
// too.
func TestExportImport(t *testing.T) {
	from, ctx := filled(t), t.Context()
	want := records(t, from)
	if len(want) != 2+1+5+7 || want[0].Org.Name != "EMPTY" || want[2].Client == nil || want[4].Deposit.Sealed.Deleted == nil || want[8].Once.Digest != "d0" {
		t.Fatalf("%d records: %+v", len(want), want)
	}
	text, err := json.Marshal(want)
	check(t, err)
	var read []server.Record
	check(t, json.Unmarshal(text, &read))

	to := open(t)
	check(t, to.AddOrg(ctx, server.Org{Name: "OLD", UUID: "x"}))
	before := digest(t, to)
	broken := errors.New("broken")
	for name, next := range map[string]func() (server.Record, error){
		"cut short":          func() (server.Record, error) { return server.Record{}, broken },
		"an empty record":    nextOf([]server.Record{want[0], {}}),
		"one twice":          nextOf([]server.Record{want[0], want[0]}),
		"a client of no org": nextOf(want[2:]),
	} {
		if err := to.Import(ctx, next); err == nil || name == "cut short" && !errors.Is(err, broken) {
			t.Errorf("%s: %v", name, err)
		}
		if digest(t, to) != before {
			t.Errorf("%s has changed the store", name)
		}
	}
	check(t, to.Import(ctx, nextOf(read)))
	if digest(t, to) != digest(t, from) {
		t.Error("the copy is not equal")
	}
	if got, _ := json.Marshal(records(t, to)); string(got) != string(text) {
		t.Errorf("%s\n%s", got, text)
	}
	// What was done is still known, so that it is not done again.
	if err := to.Put(ctx, row("FF", 7), "", until("d1")); !errors.Is(err, trustee.ErrReplay) {
		t.Error(err)
	}
}

// TestDigestBites: no change of what counts goes unseen, and onces do not count.
func TestDigestBites(t *testing.T) {
	s, ctx := filled(t), t.Context()
	seen := map[string]string{digest(t, s): "as it was"}
	for _, c := range []struct {
		name string
		do   func() error
	}{
		{"auth", func() error { return s.SetAuth(ctx, "ORG", "y") }},
		{"state", func() error { return s.SetState(ctx, "FF", server.Disabled) }},
		{"put", func() error { return s.Put(ctx, row("FF", 6), "u2", until("e1")) }},
		{"delete", func() error { return s.Delete(ctx, "FF", []string{"u4"}, time.UnixMilli(5), until("e2")) }},
		{"undelete", func() error { return s.Undelete(ctx, "FF", []string{"u1"}, until("e3")) }},
		{"purge", func() error { return s.Purge(ctx, "FF", []string{"u4"}, until("e4")) }},
	} {
		check(t, c.do())
		d := digest(t, s)
		if other, ok := seen[d]; ok {
			t.Errorf("after %s the digest is that of %s", c.name, other)
		}
		seen[d] = c.name
	}
	before := digest(t, s)
	check(t, s.Forget(ctx, time.UnixMilli(1700003600124)))
	if digest(t, s) == before { // u3 has expired
		t.Error("forget is not seen")
	}
	if err := s.SetAuth(ctx, "NONE", "y"); !claviger.Is(err, claviger.KeyNotFound) {
		t.Error(err)
	}
}
