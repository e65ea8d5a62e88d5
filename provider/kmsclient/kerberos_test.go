//go:build cgo && !nogssapi

package kmsclient_test

import (
	"strings"
	"sync"
	"testing"
	"time"

	"claviger"
	"claviger/authn"
	"claviger/gssapi"
	"claviger/internal/kdctest"
	"claviger/provider/kmsclient"
)

// countingAcceptor is an acceptor for authn that records all logins.
type countingAcceptor struct {
	acceptor *gssapi.Acceptor

	mu      sync.Mutex
	clients []string // the principal of each login
}

func (a *countingAcceptor) Accept(token []byte) (string, []byte, error) {
	got, err := a.acceptor.Accept(token)
	a.mu.Lock()
	defer a.mu.Unlock()
	if err != nil {
		return "", nil, &authn.NegotiationError{Reason: "GSSException", Explanation: err.Error(), Err: err}
	}
	a.clients = append(a.clients, got.Client)
	return got.Client, got.Reply, nil
}

func (a *countingAcceptor) Check() error { return a.acceptor.Check() }

// TestRealKerberos logs in at our own KMS with tickets of a real KDC.
func TestRealKerberos(t *testing.T) {
	k := kdctest.Start(t)
	t.Setenv("KRB5_CONFIG", k.Krb5Conf)
	t.Setenv("KRB5RCACHEDIR", k.Dir)
	services := k.Keytab("http.keytab", "HTTP/localhost")
	users := k.Keytab("users.keytab", "mig", "kms/localhost")
	mig := k.Login(users, "mig")

	acceptor, err := gssapi.NewAcceptor(gssapi.AcceptorConfig{Keytab: services, Principals: []string{"*"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(acceptor.Close)
	a := &countingAcceptor{acceptor: acceptor}
	handler, err := authn.NewKerberos(a, nil)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	now := time.Now()
	clock := func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	s, _ := serveOursBy(t, true, handler, authn.NewRandomSecrets(time.Hour, clock))
	uri := strings.Replace(uriOf(s), "127.0.0.1", "localhost", 1)
	login := func(c gssapi.InitiatorConfig) *kmsclient.Provider {
		return open(t, uri, kmsclient.Options{SleepMax: time.Millisecond,
			Negotiate: func(host string) (kmsclient.Negotiation, error) {
				c.Target, c.SPNEGO, c.Mutual = "HTTP@"+host, true, true
				return gssapi.NewInitiator(c)
			}})
	}

	byKeytab := login(gssapi.InitiatorConfig{Keytab: users, Principal: "kms/localhost"})
	byTickets := login(gssapi.InitiatorConfig{CCache: "FILE:" + mig})
	if _, err := byKeytab.Create(t.Context(), spec("k")); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for range 20 {
		for _, p := range []*kmsclient.Provider{byKeytab, byTickets} {
			all.Go(func() {
				if keys, err := p.Keys(t.Context()); err != nil || len(keys) != 1 {
					t.Errorf("%v, %v", keys, err)
				}
			})
		}
	}
	all.Wait()
	logins := func() string {
		a.mu.Lock()
		defer a.mu.Unlock()
		return strings.Join(a.clients, " ")
	}
	// One login for each client: parallel calls wait for the cookie and share it.
	if got := logins(); got != "kms/localhost@"+kdctest.Realm+" mig@"+kdctest.Realm {
		t.Errorf("logins: %s", got)
	}
	// After the secrets rolled twice, no cookie is valid, and each client logs in again.
	mu.Lock()
	now = now.Add(3 * time.Hour)
	mu.Unlock()
	if _, err := byTickets.Keys(t.Context()); err != nil || strings.Count(logins(), "mig@") != 2 {
		t.Errorf("after the secrets rolled: %v; logins: %s", err, logins())
	}
	// A principal that the KDC does not know.
	nobody := login(gssapi.InitiatorConfig{Keytab: users, Principal: "nobody"})
	if _, err := nobody.Keys(t.Context()); !claviger.Is(err, claviger.Unavailable) ||
		!strings.Contains(err.Error(), "logging in by Kerberos") {
		t.Errorf("nobody: %v", err)
	}
}
