// Package storetest is the suite that every store of a Key Trustee Server passes.
package storetest

import (
	"fmt"
	"io"
	"reflect"
	"sync"
	"testing"
	"time"

	"claviger"
	"claviger/trustee"
	"claviger/trustee/server"
)

// Owner is the client of Fill, of the organization Org.
const (
	Owner = "FF"
	Org   = "ORG"
)

// at is when everything was made.
var at = time.UnixMilli(1700000000123)

// Run runs the suite. open returns an empty store, which the suite closes.
func Run(t *testing.T, open func(t *testing.T) server.Store) {
	opened := func(t *testing.T) server.Store {
		s := open(t)
		t.Cleanup(func() {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
		return s
	}
	t.Run("Orgs", func(t *testing.T) { orgs(t, opened(t)) })
	t.Run("Clients", func(t *testing.T) { clients(t, opened(t)) })
	t.Run("Pending", func(t *testing.T) { pending(t, opened(t)) })
	t.Run("Put", func(t *testing.T) { put(t, opened(t)) })
	t.Run("Life", func(t *testing.T) { life(t, opened(t)) })
	t.Run("AtOnce", func(t *testing.T) { atOnce(t, opened(t)) })
	t.Run("List", func(t *testing.T) { list(t, opened(t)) })
	t.Run("Replay", func(t *testing.T) { replay(t, opened(t)) })
	t.Run("Forget", func(t *testing.T) { forget(t, opened(t)) })
	t.Run("Gone", func(t *testing.T) { gone(t, opened(t)) })
	t.Run("ExportImport", func(t *testing.T) { exportImport(t, opened(t), opened(t)) })
	t.Run("Digest", func(t *testing.T) { digestBites(t, opened(t)) })
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wants(t *testing.T, what string, err error, kind claviger.Kind) {
	t.Helper()
	if !claviger.Is(err, kind) {
		t.Errorf("%s: %v; want kind %v", what, err, kind)
	}
}

// Until is a request of that digest.
func Until(digest string) server.Once {
	return server.Once{Digest: digest, Until: time.UnixMilli(1700000600000)}
}

// Row is a deposit of Owner, "u<i>"; every other one is wrapped.
func Row(i int) server.Row {
	return server.Row{UUID: fmt.Sprintf("u%d", i), Owner: Owner, Org: Org, Label: fmt.Sprintf("<l&%d>\u2028", i), Access: []string{"A"}, Wrapped: i%2 == 0,
		Sealed: trustee.Sealed{Statement: []byte("s"), Signature: []byte("g"), Content: []byte{0, byte(i), 0xff}}}
}

// Fill adds something of everything: Org and EMPTY, Owner, and five deposits, of
// which u1 is deleted and u3 expires an hour on. The requests were d0 to d5 and d9.
func Fill(t *testing.T, s server.Store) {
	t.Helper()
	ctx := t.Context()
	check(t, s.AddOrg(ctx, server.Org{Name: Org, UUID: "o", Contacts: []string{"a@b"}, Auth: "x", Created: at}))
	check(t, s.AddOrg(ctx, server.Org{Name: "EMPTY", UUID: "e", Created: at}))
	_, err := s.AddClient(ctx, server.Client{Fingerprint: Owner, Org: Org, PublicKey: []byte{1}, State: server.Active, Created: at}, Until("d0"))
	check(t, err)
	for i := range 5 {
		r := Row(i)
		if i == 3 {
			r.Access, r.Expires = nil, at.Add(time.Hour)
		}
		check(t, s.Put(ctx, r, "", Until(fmt.Sprintf("d%d", i+1))))
	}
	check(t, s.Delete(ctx, Owner, []string{"u1"}, at, Until("d9")))
}

// Records are all that Export hands out.
func Records(t *testing.T, s server.Store) []server.Record {
	t.Helper()
	var list []server.Record
	check(t, s.Export(t.Context(), func(r server.Record) error { list = append(list, r); return nil }))
	return list
}

// Digest is the digest of a store's state.
func Digest(t *testing.T, s server.Store) string {
	t.Helper()
	d, err := server.StateDigest(t.Context(), s)
	check(t, err)
	return d
}

// NextOf hands out records as Import asks for them.
func NextOf(list []server.Record) func() (server.Record, error) {
	return func() (server.Record, error) {
		if len(list) == 0 {
			return server.Record{}, io.EOF
		}
		r := list[0]
		list = list[1:]
		return r, nil
	}
}

func orgs(t *testing.T, s server.Store) {
	ctx := t.Context()
	check(t, s.Check(ctx))
	before := Digest(t, s)
	check(t, s.CheckWrites(ctx))
	if now := Digest(t, s); now != before {
		t.Errorf("CheckWrites has changed the store: %s, %s", before, now)
	}
	if all, err := s.Orgs(ctx); err != nil || len(all) != 0 {
		t.Errorf("%v, %v", all, err)
	}
	for _, name := range []string{"b", "a", "B"} {
		check(t, s.AddOrg(ctx, server.Org{Name: name, UUID: "u-" + name, Contacts: []string{"x@" + name, "y"}, Auth: "s", Created: at}))
	}
	wants(t, "a name twice", s.AddOrg(ctx, server.Org{Name: "a", UUID: "other"}), claviger.KeyExists)
	all, err := s.Orgs(ctx)
	if err != nil || len(all) != 3 || all[0].Name != "B" || all[1].Name != "a" || all[2].Name != "b" {
		t.Errorf("%+v, %v: not in the order of bytes", all, err)
	}
	got, err := s.Org(ctx, "a")
	if err != nil || !got.Created.Equal(at) || got.UUID != "u-a" || got.Auth != "s" || !reflect.DeepEqual(got.Contacts, []string{"x@a", "y"}) {
		t.Errorf("%+v, %v", got, err)
	}
	check(t, s.SetAuth(ctx, "a", ""))
	if got, err := s.Org(ctx, "a"); err != nil || got.Auth != "" {
		t.Errorf("%+v, %v", got, err)
	}
	wants(t, "auth of none", s.SetAuth(ctx, "c", "x"), claviger.KeyNotFound)
	_, err = s.Org(ctx, "c")
	wants(t, "no org", err, claviger.KeyNotFound)
}

func clients(t *testing.T, s server.Store) {
	ctx := t.Context()
	check(t, s.AddOrg(ctx, server.Org{Name: "one", UUID: "1"}))
	check(t, s.AddOrg(ctx, server.Org{Name: "two", UUID: "2"}))
	c := server.Client{Fingerprint: "AA", Org: "one", PublicKey: []byte{0, 1, 0xff}, State: server.Active, Created: at}
	got, err := s.AddClient(ctx, c, Until("1"))
	if err != nil || !reflect.DeepEqual(got, c) {
		t.Errorf("%+v, %v", got, err)
	}
	check(t, s.SetState(ctx, "AA", server.Disabled))
	again := c
	again.Created = at.Add(time.Hour)
	if got, err := s.AddClient(ctx, again, Until("2")); err != nil || got.State != server.Disabled || !got.Created.Equal(at) {
		t.Errorf("one who registers again is told %+v, %v: a disabled one stays so", got, err)
	}
	again.Org = "two"
	_, err = s.AddClient(ctx, again, Until("3"))
	wants(t, "a client of another organization", err, claviger.KeyExists)
	again.Org, again.Fingerprint = "none", "BB"
	_, err = s.AddClient(ctx, again, Until("4"))
	if err == nil {
		t.Error("a client of no organization")
	}
	got, err = s.Client(ctx, "AA")
	if err != nil || got.State != server.Disabled || !got.Created.Equal(at) || !reflect.DeepEqual(got.PublicKey, c.PublicKey) || got.Org != "one" {
		t.Errorf("%+v, %v", got, err)
	}
	_, err = s.Client(ctx, "BB")
	wants(t, "no client", err, claviger.KeyNotFound)
	wants(t, "state of none", s.SetState(ctx, "BB", server.Active), claviger.KeyNotFound)
	_, err = s.AddClient(ctx, server.Client{Fingerprint: "0B", Org: "two", PublicKey: []byte{1}, State: server.Active}, Until("5"))
	check(t, err)
	for org, want := range map[string][]string{"": {"0B", "AA"}, "one": {"AA"}, "two": {"0B"}, "none": nil} {
		list, err := s.Clients(ctx, org)
		var names []string
		for _, c := range list {
			names = append(names, c.Fingerprint)
		}
		if err != nil || !reflect.DeepEqual(names, want) {
			t.Errorf("clients of %q: %v, %v", org, names, err)
		}
	}
}

// pending: no more than MaxPending wait, also where all come at once.
func pending(t *testing.T, s server.Store) {
	ctx := t.Context()
	check(t, s.AddOrg(ctx, server.Org{Name: Org, UUID: "o"}))
	const more = 12
	var group sync.WaitGroup
	errs := make([]error, server.MaxPending+more)
	fill := func(from, to int) {
		for i := from; i < to; i++ {
			_, errs[i] = s.AddClient(ctx, server.Client{Fingerprint: fmt.Sprintf("%04X", i), Org: Org, PublicKey: []byte{1}, State: server.Pending, Created: at}, Until(fmt.Sprint(i)))
		}
	}
	fill(0, server.MaxPending-4)
	for i := server.MaxPending - 4; i < len(errs); i++ {
		group.Go(func() { fill(i, i+1) })
	}
	group.Wait()
	refused := 0
	for _, err := range errs {
		if err != nil {
			wants(t, "one too many", err, claviger.Denied)
			refused++
		}
	}
	if all, err := s.Clients(ctx, Org); err != nil || len(all) != server.MaxPending || refused != more {
		t.Errorf("%d clients wait, %d were refused, %v", len(all), refused, err)
	}
	// One who waits already may ask again; one who has the secret is let in.
	if _, err := s.AddClient(ctx, server.Client{Fingerprint: "0000", Org: Org, PublicKey: []byte{1}, State: server.Pending}, Until("x")); err != nil {
		t.Error(err)
	}
	if _, err := s.AddClient(ctx, server.Client{Fingerprint: "FFFF", Org: Org, PublicKey: []byte{1}, State: server.Active}, Until("y")); err != nil {
		t.Error(err)
	}
}
