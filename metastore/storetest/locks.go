package storetest

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/metastore"
	"claviger/owner"
)

func testClaims(t *testing.T, b Backend, s metastore.Store, location string) {
	ctx := t.Context()
	other := b.open(t, location)
	wantOwners := func(want ...string) {
		t.Helper()
		checkOwners(t, s, want...)
		checkOwners(t, other, want...)
	}
	refused := func(alone bool, names string) {
		t.Helper()
		_, err := other.Claim(ctx, owner.Self("claviger second", ""), alone)
		wantKind(t, err, claviger.Unavailable)
		var in *owner.InUseError
		if !errors.As(err, &in) || !strings.Contains(err.Error(), names) || !strings.Contains(err.Error(), s.URI()) {
			t.Errorf("a second claim: %v", err)
		}
	}
	wantOwners()
	release, err := s.Claim(ctx, owner.Self("claviger first", ""), false)
	must(t, err)
	wantOwners("claviger first")
	refused(true, "claviger first")
	if b.Nodes {
		releaseNode, err := other.Claim(ctx, owner.Self("claviger node", ""), false)
		must(t, err)
		wantOwners("claviger first", "claviger node")
		releaseNode()
		wantOwners("claviger first")
	} else {
		refused(false, "claviger first")
	}
	release()
	release()
	wantOwners()
	release, err = s.Claim(ctx, owner.Self("claviger alone", ""), true)
	must(t, err)
	wantOwners("claviger alone")
	refused(false, "claviger alone")
	refused(true, "claviger alone")
	release()
	// Close ends the claims of a store.
	third, err := b.Open(ctx, location)
	must(t, err)
	_, err = third.Claim(ctx, owner.Self("claviger third", ""), true)
	must(t, err)
	must(t, third.Close())
	wantOwners()
}

// checkOwners demands that this process has the claims want on a store, and that no other claim exists.
func checkOwners(t *testing.T, s metastore.Store, want ...string) {
	t.Helper()
	got, err := s.Owners(t.Context())
	must(t, err)
	var names []string
	for _, o := range got {
		names = append(names, o.What)
		if host, _ := os.Hostname(); o.ID != owner.Self("", "").ID || o.ID == "" || o.PID != os.Getpid() ||
			o.Host != host || time.Since(o.Since).Abs() > time.Minute {
			t.Errorf("owner is %+v", o)
		}
	}
	if strings.Join(names, ",") != strings.Join(want, ",") {
		t.Errorf("owners are %q, want %q", names, want)
	}
}

// claimCalls returns the calls of Claims, as in calls.
func claimCalls(s metastore.Store) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"Claim": func(ctx context.Context) error {
			_, err := s.Claim(ctx, owner.Self("claviger test", ""), false)
			return err
		},
		"Owners": func(ctx context.Context) error { _, err := s.Owners(ctx); return err },
	}
}

// wantHeld demands that Lock waits until its context ends, and that its error names the lock and the reason.
func wantHeld(t *testing.T, s metastore.Store, name string) {
	t.Helper()
	for limit := 60 * time.Millisecond; ; limit *= 2 {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		_, err := s.Lock(ctx, name)
		cancel()
		if !claviger.Is(err, claviger.Unavailable) || !errors.Is(err, context.DeadlineExceeded) ||
			!strings.Contains(err.Error(), name) {
			t.Errorf("Lock of a lock that is held: %v", err)
		}
		if err == nil || strings.Contains(err.Error(), "is held by") {
			return
		}
		// A slow machine did not complete the first attempt.
		if limit > time.Minute {
			t.Fatalf("the error does not say that the lock is held: %v", err)
		}
	}
}

func testLocks(t *testing.T, b Backend, s metastore.Store, location string) {
	ctx := t.Context()
	other := b.open(t, location)
	for _, second := range []metastore.Store{s, other} {
		unlock, err := s.Lock(ctx, "migration")
		must(t, err)
		if _, ok, err := second.TryLock(ctx, "migration"); ok || err != nil {
			t.Fatalf("TryLock took a lock that is held: %v, %v", ok, err)
		}
		wantHeld(t, second, "migration")
		free, ok, err := second.TryLock(ctx, "another")
		if !ok || err != nil {
			t.Fatalf("another lock: %v, %v", ok, err)
		}
		free()
		got := make(chan func(), 1)
		go func() {
			u, err := second.Lock(ctx, "migration")
			if err != nil {
				t.Error(err)
				u = func() {}
			}
			got <- u
		}()
		unlock()
		unlock() // a second call does nothing; it must not free the lock of the next holder
		next := <-got
		unlock()
		if _, ok, err := s.TryLock(ctx, "migration"); ok || err != nil {
			t.Errorf("an old unlock freed the new holder's lock: %v, %v", ok, err)
		}
		next()
		free, ok, err = s.TryLock(ctx, "migration")
		if !ok || err != nil {
			t.Fatalf("free lock: %v, %v", ok, err)
		}
		free()
	}
	// Close frees the locks that a store holds.
	third, err := b.Open(ctx, location)
	must(t, err)
	unlock, err := third.Lock(ctx, "migration")
	must(t, err)
	must(t, third.Close())
	free, ok, err := s.TryLock(ctx, "migration")
	if !ok || err != nil {
		t.Fatalf("lock of a closed store: %v, %v", ok, err)
	}
	unlock()
	free()
}
