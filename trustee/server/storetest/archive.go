package storetest

import (
	"encoding/json"
	"errors"
	"testing"
	"time"

	"claviger/trustee"
	"claviger/trustee/server"
)

// exportImport: after an import of the records that a store exported, another store is equal. The records may be
// converted to JSON and back.
func exportImport(t *testing.T, from, to server.Store) {
	ctx := t.Context()
	Fill(t, from)
	want := Records(t, from)
	if len(want) != 2+1+5+7 || want[0].Org.Name != "EMPTY" || want[2].Client == nil ||
		want[4].Deposit.Sealed.Deleted == nil || want[8].Once.Digest != "d0" {
		t.Fatalf("%d records: %+v", len(want), want)
	}
	text, err := json.Marshal(want)
	check(t, err)
	var read []server.Record
	check(t, json.Unmarshal(text, &read))

	check(t, to.AddOrg(ctx, server.Org{Name: "OLD", UUID: "x"}))
	before := Digest(t, to)
	broken := errors.New("broken")
	for name, next := range map[string]func() (server.Record, error){
		"an interrupted import": func() (server.Record, error) { return server.Record{}, broken },
		"an empty record":       NextOf([]server.Record{want[0], {}}),
		"a duplicate record":    NextOf([]server.Record{want[0], want[0]}),
		"a client of no org":    NextOf(want[2:]),
	} {
		if err := to.Import(ctx, next); err == nil || name == "an interrupted import" && !errors.Is(err, broken) {
			t.Errorf("%s: %v", name, err)
		}
		if Digest(t, to) != before {
			t.Errorf("%s has changed the store", name)
		}
	}
	check(t, to.Import(ctx, NextOf(read)))
	if Digest(t, to) != Digest(t, from) {
		t.Error("the copy is not equal")
	}
	if got, _ := json.Marshal(Records(t, to)); string(got) != string(text) {
		t.Errorf("%s\n%s", got, text)
	}
	// The copy has the digests of requests, too, and refuses those requests.
	if err := to.Put(ctx, Row(7), "", Request("d1")); !errors.Is(err, trustee.ErrReplay) {
		t.Error(err)
	}
	if err := from.Export(ctx, func(server.Record) error { return broken }); !errors.Is(err, broken) {
		t.Error(err)
	}
	// More records than one batch of an import.
	const many = 1000
	large := append([]server.Record{}, want[:3]...)
	for i := range many {
		r := Row(1000 + i)
		large = append(large, server.Record{Deposit: &r})
	}
	check(t, to.Import(ctx, NextOf(large)))
	if got := Records(t, to); len(got) != len(large) || got[len(got)-1].Deposit.UUID != "u1999" {
		t.Errorf("%d records", len(got))
	}
}

// digestChanges: each change of an organization, client or deposit changes the digest.
func digestChanges(t *testing.T, s server.Store) {
	ctx := t.Context()
	Fill(t, s)
	seen := map[string]string{Digest(t, s): "no change"}
	for _, c := range []struct {
		name string
		do   func() error
	}{
		{"auth", func() error { return s.SetAuth(ctx, Org, "y") }},
		{"state", func() error { return s.SetState(ctx, Owner, server.Disabled) }},
		{"put", func() error { return s.Put(ctx, Row(6), "u2", Request("e1")) }},
		{"delete", func() error { return s.Delete(ctx, Owner, []string{"u4"}, time.UnixMilli(5), Request("e2")) }},
		{"undelete", func() error { return s.Undelete(ctx, Owner, []string{"u1"}, Request("e3")) }},
		{"purge", func() error { return s.Purge(ctx, Owner, []string{"u4"}, Request("e4")) }},
	} {
		check(t, c.do())
		d := Digest(t, s)
		if other, ok := seen[d]; ok {
			t.Errorf("the digest after %s is the digest after %s", c.name, other)
		}
		seen[d] = c.name
	}
	before := Digest(t, s)
	check(t, s.Forget(ctx, at.Add(time.Hour+time.Millisecond)))
	if Digest(t, s) == before { // u3 has expired
		t.Error("forget does not change the digest")
	}
}
