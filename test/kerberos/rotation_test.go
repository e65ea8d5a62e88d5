package kerberos

import (
	"encoding/base64"
	"net/http"
	"testing"
	"time"

	"claviger/gssapi"
	"claviger/internal/kdctest"
)

// loginWith logs in with the tickets of a cache, which also keeps the ticket for the server.
func (s *kms) loginWith(cache string) (status int, body string) {
	s.t.Helper()
	i, err := gssapi.NewInitiator(gssapi.InitiatorConfig{CCache: "FILE:" + cache, Target: "HTTP@localhost",
		SPNEGO: true})
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = i.Close() }()
	token, _, err := i.Step(nil)
	if err != nil {
		s.t.Fatal(err)
	}
	return s.send(http.MethodGet, base64.StdEncoding.EncodeToString(token))
}

// TestRotateKeytab plays what docs/rotation.md says of keytabs: the KDC gets a new key, the keytab has both keys until
// all tickets of the old key have expired, and the server is not restarted.
func TestRotateKeytab(t *testing.T) {
	k := kdctest.StartRealm(t, realm)
	keytab := k.Keytab("served.keytab", "HTTP/localhost")
	users := k.Keytab("users.keytab", "alice")
	t.Setenv("KRB5_CONFIG", k.Krb5Conf)
	s := startKMS(t, k, k.Krb5Conf, keytab)
	login := func(step, cache string, want int) {
		t.Helper()
		if status, body := s.loginWith(cache); status != want {
			t.Errorf("%s: %d %s, want %d", step, status, body, want)
		}
		t.Logf("%s: %d", step, want)
	}
	old := k.LoginFor(users, "alice", 30*time.Minute)
	login("a ticket of the old key", old, http.StatusOK)
	k.Admin("ktadd -k " + keytab + " HTTP/localhost") // a new key, which is added to the file
	login("the keytab has both keys; the ticket of the old key", old, http.StatusOK)
	made := k.LoginFor(users, "alice", 29*time.Minute)
	login("the keytab has both keys; a ticket of the new key", made, http.StatusOK)
	k.Admin("ktremove -k " + keytab + " HTTP/localhost old")
	login("the old key was removed from the keytab; its ticket", old, http.StatusForbidden)
	login("the old key was removed from the keytab; the ticket of the new key", made, http.StatusOK)
}
