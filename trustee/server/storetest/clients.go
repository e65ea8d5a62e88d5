package storetest

import (
	"fmt"
	"reflect"
	"sync"
	"testing"
	"time"

	"claviger"
	"claviger/trustee/server"
)

// clients: a client that registers again stays as it is, and belongs to one organization.
func clients(t *testing.T, s server.Store) {
	ctx := t.Context()
	check(t, s.AddOrg(ctx, server.Org{Name: "one", UUID: "1"}))
	check(t, s.AddOrg(ctx, server.Org{Name: "two", UUID: "2"}))
	c := server.Client{Fingerprint: "AA", Org: "one", PublicKey: []byte{0, 1, 0xff}, State: server.Active, Created: at}
	got, err := s.AddClient(ctx, c, Request("1"))
	if err != nil || !reflect.DeepEqual(got, c) {
		t.Errorf("%+v, %v", got, err)
	}
	check(t, s.SetState(ctx, "AA", server.Disabled))
	again := c
	again.Created = at.Add(time.Hour)
	if got, err := s.AddClient(ctx, again, Request("2")); err != nil || got.State != server.Disabled ||
		!got.Created.Equal(at) {
		t.Errorf("a disabled client registers again: %+v, %v; it must stay disabled", got, err)
	}
	again.Org = "two"
	_, err = s.AddClient(ctx, again, Request("3"))
	wants(t, "a client of another organization", err, claviger.KeyExists)
	again.Org, again.Fingerprint = "none", "BB"
	_, err = s.AddClient(ctx, again, Request("4"))
	wants(t, "a client of an unknown organization", err, claviger.KeyNotFound)
	got, err = s.Client(ctx, "AA")
	if err != nil || got.State != server.Disabled || !got.Created.Equal(at) ||
		!reflect.DeepEqual(got.PublicKey, c.PublicKey) || got.Org != "one" {
		t.Errorf("%+v, %v", got, err)
	}
	_, err = s.Client(ctx, "BB")
	wants(t, "no client", err, claviger.KeyNotFound)
	wants(t, "state of none", s.SetState(ctx, "BB", server.Active), claviger.KeyNotFound)
	_, err = s.AddClient(ctx, server.Client{Fingerprint: "0B", Org: "two", PublicKey: []byte{1}, State: server.Active},
		Request("5"))
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

// pending: at most MaxPending clients are pending, even if many register at once.
func pending(t *testing.T, s server.Store) {
	ctx := t.Context()
	check(t, s.AddOrg(ctx, server.Org{Name: Org, UUID: "o"}))
	const more = 12
	var group sync.WaitGroup
	errs := make([]error, server.MaxPending+more)
	fill := func(from, to int) {
		for i := from; i < to; i++ {
			_, errs[i] = s.AddClient(ctx, server.Client{Fingerprint: fmt.Sprintf("%04X", i), Org: Org,
				PublicKey: []byte{1}, State: server.Pending, Created: at}, Request(fmt.Sprint(i)))
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
			wants(t, "too many pending clients", err, claviger.Denied)
			refused++
		}
	}
	if all, err := s.Clients(ctx, Org); err != nil || len(all) != server.MaxPending || refused != more {
		t.Errorf("%d clients are pending, %d were refused, %v", len(all), refused, err)
	}
	// A pending client may register again. A client with the secret becomes active.
	if _, err := s.AddClient(ctx, server.Client{Fingerprint: "0000", Org: Org, PublicKey: []byte{1},
		State: server.Pending}, Request("x")); err != nil {
		t.Error(err)
	}
	if _, err := s.AddClient(ctx, server.Client{Fingerprint: "FFFF", Org: Org, PublicKey: []byte{1},
		State: server.Active}, Request("y")); err != nil {
		t.Error(err)
	}
}
