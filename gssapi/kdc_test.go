//go:build cgo && !nogssapi

package gssapi_test

import (
	"bytes"
	"errors"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"claviger/gssapi"
	"claviger/internal/kdctest"
)

// realm is a KDC with a service and a user. This process uses its krb5.conf.
type realm struct {
	*kdctest.KDC
	services, users string // keytabs
}

func newRealm(t testing.TB) realm {
	k := kdctest.Start(t)
	t.Setenv("KRB5_CONFIG", k.Krb5Conf)
	t.Setenv("KRB5RCACHEDIR", k.Dir)
	return realm{k, k.Keytab("http.keytab", "HTTP/localhost"), k.Keytab("users.keytab", "alice")}
}

func (r realm) acceptor(t testing.TB, rcache string) *gssapi.Acceptor {
	t.Helper()
	a, err := gssapi.NewAcceptor(gssapi.AcceptorConfig{Keytab: r.services, Principals: []string{"*"},
		ReplayCache: rcache})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	return a
}

// exchange does a complete login, and returns the token that was accepted.
func (r realm) exchange(a *gssapi.Acceptor, spnego bool) ([]byte, error) {
	i, err := gssapi.NewInitiator(gssapi.InitiatorConfig{Keytab: r.users, Principal: "alice", Target: "HTTP@localhost",
		SPNEGO: spnego, Mutual: true})
	if err != nil {
		return nil, err
	}
	defer func() { _ = i.Close() }()
	token, _, err := i.Step(nil)
	if err != nil {
		return nil, err
	}
	who, err := a.Accept(token)
	if err != nil {
		return nil, err
	}
	if who.Client != "alice@"+kdctest.Realm || who.Service != "HTTP/localhost@"+kdctest.Realm {
		return nil, errors.New(who.Client + " to " + who.Service)
	}
	if _, done, err := i.Step(who.Reply); err != nil || !done {
		return nil, errors.Join(errors.New("the service did not prove its identity"), err)
	}
	// Unwrap must refuse our own message.
	wrapped, err := i.Wrap([]byte("message"))
	if err != nil || !bytes.Contains(wrapped, []byte("message")) {
		return nil, errors.Join(errors.New("no wrapped message"), err)
	}
	if _, err := i.Unwrap(wrapped); err == nil {
		return nil, errors.New("Unwrap accepts our own message as one of the service")
	}
	return token, nil
}

// TestConcurrentLogins: one acceptor serves many goroutines, and accepts each token once.
func TestConcurrentLogins(t *testing.T) {
	r := newRealm(t)
	a := r.acceptor(t, "")
	var mu sync.Mutex
	var tokens [][]byte
	var all sync.WaitGroup
	for g := range 8 {
		all.Go(func() {
			for range 25 {
				token, err := r.exchange(a, g%2 == 0)
				if err != nil {
					t.Errorf("a concurrent login: %v", err)
					return
				}
				mu.Lock()
				tokens = append(tokens, token)
				mu.Unlock()
			}
		})
	}
	all.Wait()
	for _, token := range tokens {
		var e *gssapi.Error
		if _, err := a.Accept(token); !errors.As(err, &e) || e.Kind != gssapi.Replay || e.Cure == "" {
			t.Fatalf("a token that was used before: %v", err)
		}
	}
	// If many goroutines use the same token at the same time, it is accepted once.
	i, err := gssapi.NewInitiator(gssapi.InitiatorConfig{Keytab: r.users, Principal: "alice", Target: "HTTP@localhost",
		SPNEGO: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = i.Close() }()
	token, _, err := i.Step(nil)
	if err != nil {
		t.Fatal(err)
	}
	accepted := 0
	for range 8 {
		all.Go(func() {
			if _, err := a.Accept(token); err == nil {
				mu.Lock()
				defer mu.Unlock()
				accepted++
			}
		})
	}
	all.Wait()
	if accepted != 1 {
		t.Errorf("one token was accepted %d times", accepted)
	}
}

// resident returns the memory of this process in KiB, with the memory of C.
func resident(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Skip("no /proc here")
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			n, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(rest), " kB"))
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatal("no VmRSS")
	return 0
}

// TestMemoryIsFreed repeats each operation so often that a leak is visible. A leak is visible in each round; memory
// that the allocators keep for later is not.
func TestMemoryIsFreed(t *testing.T) {
	const (
		times  = 3000
		limit  = times * 64 / 1024 // KiB in one round; the names of one ticket have more than 64 bytes
		rounds = 12                // without a leak, memory stops growing; on a busy machine that needs some rounds
	)
	r := newRealm(t)
	a := r.acceptor(t, "none:")
	begin := func() (token []byte) {
		i, err := gssapi.NewInitiator(gssapi.InitiatorConfig{Keytab: r.users, Principal: "alice",
			Target: "HTTP@localhost", Mutual: true})
		if err != nil {
			t.Fatal(err)
		}
		if token, _, err = i.Step(nil); err != nil {
			t.Fatal(err)
		}
		if err := i.Close(); err != nil {
			t.Fatal(err)
		}
		return token
	}
	good := begin()
	bad := bytes.Clone(good)
	bad[len(bad)-1] ^= 1
	for _, c := range []struct {
		name string
		do   func()
	}{
		{"accepting", func() {
			if _, err := a.Accept(good); err != nil {
				t.Fatal(err)
			}
		}},
		{"refusing", func() {
			if _, err := a.Accept(bad); err == nil {
				t.Fatal("a changed token is accepted")
			}
		}},
		{"making tokens", func() { begin() }},
	} {
		var grown []int
		for len(grown) == 0 || slices.Min(grown) > limit && len(grown) < rounds {
			debug.FreeOSMemory()
			before := resident(t)
			for range times {
				c.do()
			}
			debug.FreeOSMemory()
			grown = append(grown, resident(t)-before)
		}
		if slices.Min(grown) > limit {
			t.Errorf("%s %d times needs %v KiB more in the rounds", c.name, times, grown)
		}
	}
}

func BenchmarkAccept(b *testing.B) {
	r := newRealm(b)
	for name, rcache := range map[string]string{"ReplayCache": "", "None": "none:"} {
		b.Run(name, func(b *testing.B) {
			a := r.acceptor(b, rcache)
			var tokens [][]byte
			for range b.N {
				i, err := gssapi.NewInitiator(gssapi.InitiatorConfig{Keytab: r.users, Principal: "alice",
					Target: "HTTP@localhost"})
				if err != nil {
					b.Fatal(err)
				}
				token, _, err := i.Step(nil)
				if err != nil {
					b.Fatal(err)
				}
				_ = i.Close()
				tokens = append(tokens, token)
			}
			b.ResetTimer()
			for _, token := range tokens {
				if _, err := a.Accept(token); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
