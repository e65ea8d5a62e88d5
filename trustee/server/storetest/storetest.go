// Package storetest is the test suite for the stores of a Key Trustee Server.
package storetest

import (
	"fmt"
	"io"
	"testing"
	"time"

	"claviger"
	"claviger/trustee"
	"claviger/trustee/server"
)

// Owner is the client that Fill adds, and Org its organization.
const (
	Owner = "FF"
	Org   = "ORG"
)

// at is the time of creation of all records.
var at = time.UnixMilli(1700000000123)

// Run runs the suite. open returns an empty store. The suite closes it.
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
	t.Run("Checks", func(t *testing.T) { checks(t, opened(t)) })
	t.Run("Orgs", func(t *testing.T) { orgs(t, opened(t)) })
	t.Run("Clients", func(t *testing.T) { clients(t, opened(t)) })
	t.Run("Pending", func(t *testing.T) { pending(t, opened(t)) })
	t.Run("Put", func(t *testing.T) { put(t, opened(t)) })
	t.Run("PutRefuses", func(t *testing.T) { putRefuses(t, opened(t)) })
	t.Run("Replace", func(t *testing.T) { replace(t, opened(t)) })
	t.Run("Lifecycle", func(t *testing.T) { lifecycle(t, opened(t)) })
	t.Run("ConcurrentChanges", func(t *testing.T) { concurrentChanges(t, opened(t)) })
	t.Run("List", func(t *testing.T) { list(t, opened(t)) })
	t.Run("ListDeleted", func(t *testing.T) { listDeleted(t, opened(t)) })
	t.Run("Replay", func(t *testing.T) { replay(t, opened(t)) })
	t.Run("Forget", func(t *testing.T) { forget(t, opened(t)) })
	t.Run("Cancelled", func(t *testing.T) { cancelled(t, opened(t)) })
	t.Run("ExportImport", func(t *testing.T) { exportImport(t, opened(t), opened(t)) })
	t.Run("Digest", func(t *testing.T) { digestChanges(t, opened(t)) })
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

// Request returns a request with a digest.
func Request(digest string) server.Once {
	return server.Once{Digest: digest, Until: time.UnixMilli(1700000600000)}
}

// Row returns a deposit of Owner with the uuid "u<i>". It is wrapped if i is even.
func Row(i int) server.Row {
	return server.Row{UUID: fmt.Sprintf("u%d", i), Owner: Owner, Org: Org, Label: fmt.Sprintf("<l&%d>\u2028", i),
		Access: []string{"A"}, Wrapped: i%2 == 0,
		Sealed: trustee.Sealed{Statement: []byte("s"), Signature: []byte("g"), Content: []byte{0, byte(i), 0xff}}}
}

// Fill adds records of each kind: the organizations Org and EMPTY, the client Owner, and five deposits: u1 is
// deleted, and u3 expires an hour after its creation. The digests of the requests are d0 to d5 and d9.
func Fill(t *testing.T, s server.Store) {
	t.Helper()
	ctx := t.Context()
	check(t, s.AddOrg(ctx, server.Org{Name: Org, UUID: "o", Contacts: []string{"a@b"}, Auth: "x", Created: at}))
	check(t, s.AddOrg(ctx, server.Org{Name: "EMPTY", UUID: "e", Created: at}))
	_, err := s.AddClient(ctx, server.Client{Fingerprint: Owner, Org: Org, PublicKey: []byte{1}, State: server.Active,
		Created: at}, Request("d0"))
	check(t, err)
	for i := range 5 {
		r := Row(i)
		if i == 3 {
			r.Access, r.Expires = nil, at.Add(time.Hour)
		}
		check(t, s.Put(ctx, r, "", Request(fmt.Sprintf("d%d", i+1))))
	}
	check(t, s.Delete(ctx, Owner, []string{"u1"}, at, Request("d9")))
}

// Records returns all records of Export.
func Records(t *testing.T, s server.Store) []server.Record {
	t.Helper()
	var list []server.Record
	check(t, s.Export(t.Context(), func(r server.Record) error { list = append(list, r); return nil }))
	return list
}

// Digest returns the digest of the records of a store.
func Digest(t *testing.T, s server.Store) string {
	t.Helper()
	d, err := server.StateDigest(t.Context(), s)
	check(t, err)
	return d
}

// NextOf returns a function for Import that returns the records of a list, one by one.
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

// checks: the health checks of a store change no record, and a store that is not in a pair accepts changes.
func checks(t *testing.T, s server.Store) {
	ctx := t.Context()
	Fill(t, s)
	before := Digest(t, s)
	check(t, s.Check(ctx))
	check(t, s.CheckWrites(ctx))
	if now := Digest(t, s); now != before {
		t.Errorf("the checks changed the store: %s, %s", before, now)
	}
	role, err := s.Role(ctx)
	check(t, err)
	check(t, role.MayChange("storetest", ""))
}
