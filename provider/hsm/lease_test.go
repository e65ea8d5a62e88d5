package hsm_test

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/internal/faultmodule"
	"claviger/internal/softhsm/softhsmtest"
	"claviger/metastore"
	"claviger/pkcs11"
)

// eventually waits until done, and fails after 10 s.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for from := time.Now(); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Since(from) > 10*time.Second {
			t.Fatalf("%s: not after 10 s", what)
		}
	}
}

// TestLeaseCosts: a lease begins with one call to the token. Until a quarter of it has passed, neither its use nor that
// of 100 other callers makes a call. An encryption for a request renews the lease as well.
func TestLeaseCosts(t *testing.T) {
	b := newSite(t)
	version := b.create(t, "k")
	p := b.mustOpen(t)
	b.meter.Reset()
	use := func(length time.Duration) {
		t.Helper()
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				if err := p.Lease(t.Context(), version, length); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	use(time.Hour)
	use(time.Hour)
	if n := b.meter.Count("Encrypt"); n != 1 {
		t.Errorf("%d calls of C_Encrypt for a lease", n)
	}
	time.Sleep(20 * time.Millisecond) // more than proofGrain
	before := p.Leases(time.Hour)
	if before.Held != 1 || before.Oldest < 20*time.Millisecond {
		t.Errorf("%+v", before)
	}
	if err := p.EncryptBlocks(t.Context(), version, make([]byte, 16)); err != nil {
		t.Fatal(err)
	}
	if after := p.Leases(time.Hour); after.Held != 1 || after.Oldest >= before.Oldest {
		t.Errorf("%+v after an encryption, %+v before", after, before)
	}
	use(time.Hour)
	if n := b.meter.Count("Encrypt"); n != 2 {
		t.Errorf("%d calls of C_Encrypt", n)
	}
	from := time.Now()
	for time.Since(from) < time.Second { // the use of a lease of 200 ms renews it in the background
		if err := p.Lease(t.Context(), version, 200*time.Millisecond); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
	if n := b.meter.Count("Encrypt"); n < 4 || n > 24 {
		t.Errorf("%d calls of C_Encrypt in five leases", n)
	}
	mustClose(t, p)
	if err := p.Lease(t.Context(), version, time.Hour); !claviger.Is(err, claviger.Closed) {
		t.Errorf("after Close: %v", err)
	}
}

// TestLeaseInAnOutage: a lease that is in use is renewed after a quarter of its length. While the HSM is away, it goes
// on to its end, and CheckLeases says so. When the HSM is back, the next use begins a new lease.
func TestLeaseInAnOutage(t *testing.T) {
	const length = 2 * time.Second
	token := softhsmtest.New(t)
	m := faultmodule.New(t, token.Module)
	token.Module = m.Path
	b := newSiteAt(t, token)
	version, unused := b.create(t, "k"), b.create(t, "unused")
	p := b.mustOpen(t)
	lease := func(version string) error { return p.Lease(t.Context(), version, length) }
	for from := time.Now(); time.Since(from) < length*9/20; time.Sleep(5 * time.Millisecond) {
		if err := lease(version); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.CheckLeases(length); err != nil {
		t.Error(err)
	}
	m.OrderAll(faultmodule.Order{Action: faultmodule.Fail, Value: p11.CKR_DEVICE_REMOVED, Times: faultmodule.Always},
		faultmodule.EncryptInit, faultmodule.OpenSession, faultmodule.Login, faultmodule.GetSessionInfo)
	away := time.Now()
	age := p.Leases(length).Oldest
	if age > length*3/8 {
		t.Errorf("the lease in use is %v old", age)
	}
	if err := lease(unused); !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("a version that has no lease: %v", err)
	}
	said := false
	for lease(version) == nil {
		if err := p.CheckLeases(length); err != nil {
			said = said || strings.Contains(err.Error(), "new EDEKs of k@0 are made under leases, which end at ")
		}
		if time.Since(away) > 2*length {
			t.Fatal("the lease does not end")
		}
		time.Sleep(5 * time.Millisecond)
	}
	if lasted := time.Since(away); lasted < length-age || lasted > length-age+time.Second {
		t.Errorf("the lease, which was %v old, went on for %v", age, lasted)
	}
	if err := p.CheckLeases(length); !said || err == nil ||
		!strings.Contains(err.Error(), "no new EDEKs of k@0, unused@0 are made, because their leases have ended") {
		t.Errorf("said so: %t, then %v", said, err)
	}
	if f := p.Leases(length); f.Held != 0 {
		t.Errorf("%+v without the HSM", f)
	}
	m.Heal()
	eventually(t, "an encryption after the outage", func() bool {
		return p.EncryptBlocks(t.Context(), version, make([]byte, 16)) == nil
	})
	if err := p.CheckLeases(length); err == nil || strings.Contains(err.Error(), version) {
		t.Errorf("after an encryption with %s: %v", version, err)
	}
	eventually(t, "a lease after the outage", func() bool { return lease(version) == nil && lease(unused) == nil })
	if err := p.CheckLeases(length); err != nil {
		t.Error(err)
	}
	mustClose(t, p)
}

// TestLeaseEndsEarly: a renewal that finds another key in the HSM, a key that may not be used, or no version in the
// store, ends the lease long before its time.
func TestLeaseEndsEarly(t *testing.T) {
	const length = 2 * time.Second
	for name, row := range map[string]struct {
		fault func(t *testing.T, b *testSite, swap *atomic.Bool)
		kind  claviger.Kind
	}{
		"another key": {func(_ *testing.T, b *testSite, swap *atomic.Bool) {
			swap.Store(true)
			b.meter.Fail("Encrypt", 1, p11.Error(p11.CKR_SESSION_CLOSED)) // makes the token search the key again
		}, claviger.Unavailable},
		"disabled": {func(_ *testing.T, b *testSite, _ *atomic.Bool) {
			b.meter.Fail("Encrypt", 1000, p11.Error(p11.CKR_KEY_FUNCTION_NOT_PERMITTED))
		}, claviger.Unavailable},
		"deleted elsewhere": {func(t *testing.T, b *testSite, _ *atomic.Bool) {
			b.withStore(t, func(s metastore.Store) {
				if err := s.SoftDelete(t.Context(), "k"); err != nil {
					t.Error(err)
				}
			})
		}, claviger.VersionNotFound},
	} {
		t.Run(name, func(t *testing.T) {
			b := newSite(t)
			version, other := b.create(t, "k"), b.create(t, "other")
			id, label := b.object(t, other)
			var swap atomic.Bool
			b.wrap = func(c pkcs11.Boundary) pkcs11.Boundary {
				return &swapping{Boundary: c, swap: &swap, id: id, label: label}
			}
			p := b.mustOpen(t)
			from := time.Now()
			if err := p.Lease(t.Context(), version, length); err != nil {
				t.Fatal(err)
			}
			row.fault(t, b, &swap)
			var err error
			eventually(t, "the end of the lease", func() bool {
				err = p.Lease(t.Context(), version, length)
				return err != nil
			})
			if took := time.Since(from); !claviger.Is(err, row.kind) || took < length/4 || took >= length {
				t.Errorf("the lease of %v ended after %v: %v", length, took, err)
			}
			if f := p.Leases(length); f.Held != 0 {
				t.Errorf("%+v", f)
			}
			mustClose(t, p)
		})
	}
}

// TestLeaseWithHungCalls: calls of the library hang. The use of leases does not wait for them, and begins at most 16
// of them in the background. A caller without a lease waits until its context ends, or the provider is closed. Then
// the proofs end.
func TestLeaseWithHungCalls(t *testing.T) {
	const keys, length = 20, 4 * time.Second
	b := newSite(t)
	p := b.mustOpen(t)
	var versions []string
	for i := range keys {
		versions = append(versions, create(t, p, "k"+string(rune('a'+i))))
		if err := p.Lease(t.Context(), versions[i], length); err != nil {
			t.Fatal(err)
		}
	}
	unused := create(t, p, "unused")
	time.Sleep(length / 4) // the time after which a renewal is due
	release := b.meter.Hang("Encrypt")
	defer release()
	from := time.Now()
	for _, v := range versions {
		if err := p.Lease(t.Context(), v, length); err != nil {
			t.Error(err)
		}
	}
	if took := time.Since(from); took > length/2 {
		t.Errorf("the use of leases waited: %v", took)
	}
	if n := p.Renewals(); n != 16 {
		t.Errorf("%d proofs in the background", n)
	}
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := p.Lease(short, unused, length); !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("without a lease: %v", err)
	}
	closed, waiter := make(chan error, 1), make(chan error, 1)
	go func() { waiter <- p.Lease(t.Context(), unused, length) }()
	time.Sleep(50 * time.Millisecond) // the waiter should be waiting; else it finds the provider closed
	go func() { closed <- p.Close() }()
	if err := <-waiter; !claviger.Is(err, claviger.Closed) {
		t.Errorf("a caller that waits for a lease while the provider is closed: %v", err)
	}
	eventually(t, "the end of the proofs", func() bool { return p.Renewals() == 0 })
	release()
	if err := <-closed; err != nil {
		t.Error(err)
	}
	if err := p.Lease(t.Context(), versions[0], length); !claviger.Is(err, claviger.Closed) {
		t.Errorf("after Close: %v", err)
	}
}
