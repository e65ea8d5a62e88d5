package server_test

import (
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/trustee"
	"claviger/trustee/server"
)

// register sends a registration with the organization ORG.
func (b *tracedServer) register(id *trustee.Identity, auth string, alone bool) (active bool, err error) {
	b.t.Helper()
	var r trustee.RegisterResult
	err = b.send(id, trustee.VerbRegister, trustee.RegisterArgs{PublicKey: public(b.t, id), Org: "ORG", Auth: auth,
		Alone: alone}, &r).err
	return r.Active, err
}

// TestGuessing: nobody can guess a secret, and a client that knows the secret registers a minute later.
func TestGuessing(t *testing.T) {
	b := newTracedServer(t)
	for range server.GuessBurst {
		_, err := b.register(server.Identity(1), "guess", false)
		wantKind(t, "a guess", err, claviger.Denied)
	}
	_, err := b.register(server.Identity(1), "s3cret", false)
	wantKind(t, "after many guesses", err, claviger.Denied)
	if err == nil || !strings.Contains(err.Error(), "too many registrations have failed") {
		t.Error(err)
	}
	b.now = b.now.Add(time.Minute)
	if active, err := b.register(server.Identity(1), "s3cret", false); err != nil || !active {
		t.Errorf("a minute later: %t, %v", active, err)
	}
}

// bothOrders calls f with two clients, once with the lesser fingerprint first, and once with the greater: a store
// returns clients by fingerprint.
func bothOrders(f func(older, younger *trustee.Identity)) {
	a, b := server.Identity(1), server.Identity(2)
	f(a, b)
	f(b, a)
}

// TestAlone: a client that wants to be the only one of its organization is refused while the organization has an older
// client that is not disabled.
func TestAlone(t *testing.T) {
	bothOrders(func(older, younger *trustee.Identity) {
		b := newTracedServer(t)
		register := func(id *trustee.Identity, alone bool) error {
			active, err := b.register(id, "s3cret", alone)
			if active != (err == nil) {
				t.Errorf("active: %t, %v", active, err)
			}
			b.now = b.now.Add(time.Second)
			return err
		}
		refused := func(what string, err error) {
			t.Helper()
			if !claviger.Is(err, claviger.KeyExists) || !strings.Contains(err.Error(), older.Fingerprint()) {
				t.Errorf("%s: %v", what, err)
			}
		}
		for range 2 {
			if err := register(older, true); err != nil {
				t.Errorf("the only client: %v", err)
			}
		}
		refused("a second client", register(younger, true))
		if list, err := b.store.Clients(t.Context(), "ORG"); err != nil || len(list) != 1 {
			t.Errorf("%d clients, %v", len(list), err)
		}
		if err := register(younger, false); err != nil {
			t.Errorf("a second client that need not be alone: %v", err)
		}
		refused("the younger of two", register(younger, true))
		if err := register(older, true); err != nil {
			t.Errorf("the older of two: %v", err)
		}
		if err := b.store.SetState(t.Context(), older.Fingerprint(), server.Disabled); err != nil {
			t.Fatal(err)
		}
		if err := register(younger, true); err != nil {
			t.Errorf("after the older client was disabled: %v", err)
		}
	})
}

// TestClients: a client sees the clients of its organization, the oldest first.
func TestClients(t *testing.T) {
	bothOrders(func(older, younger *trustee.Identity) {
		b := newTracedServer(t)
		first := b.now.Truncate(time.Millisecond)
		created := []time.Time{first, first.Add(time.Second)}
		for i, id := range []*trustee.Identity{older, younger} {
			b.now = created[i]
			b.add(id, "ORG")
		}
		b.add(server.Identity(0), "MANUAL")
		if err := b.store.SetState(t.Context(), younger.Fingerprint(), server.Disabled); err != nil {
			t.Fatal(err)
		}
		var r trustee.ClientsResult
		if err := b.send(older, trustee.VerbClients, struct{}{}, &r).err; err != nil || r.Org != "ORG" ||
			len(r.Clients) != 2 {
			t.Fatalf("%+v, %v", r, err)
		}
		for i, id := range []*trustee.Identity{older, younger} {
			c := r.Clients[i]
			if c.Fingerprint != id.Fingerprint() || !c.Created.Equal(created[i]) || c.Disabled != (i == 1) {
				t.Errorf("client %d is %+v, want %s", i, c, id)
			}
		}
	})
}
