package authn_test

import (
	"net/http"
	"net/url"
	"path/filepath"
	"testing"
	"time"

	"claviger/authn"
	"claviger/metastore/sqlite"
)

// BenchmarkCookie measures the authentication of a request with a cookie that was used before.
func BenchmarkCookie(b *testing.B) {
	a, err := authn.New(authn.Config{Secrets: javaSecret, Validity: 1, Now: nil})
	if err != nil {
		b.Fatal(err)
	}
	authenticate(b, a, request("eek_op=decrypt",
		`hadoop.auth="`+javaSecret.sign("u=alice&p=alice&t=simple-dt&e=9795478610857")+`"`))
}

// BenchmarkToken measures the authentication of a request with a delegation token that a store in SQLite keeps.
func BenchmarkToken(b *testing.B) {
	for name, remember := range map[string]time.Duration{"read": 0, "remembered": time.Hour} {
		b.Run(name, func(b *testing.B) {
			store, err := sqlite.Open(b.Context(), filepath.Join(b.TempDir(), "store.db"))
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() { _ = store.Close() })
			tokens, err := authn.NewDelegations(authn.DelegationConfig{KeyUpdate: time.Hour, MaxLife: time.Hour,
				Renewal: time.Hour, Scan: time.Hour, Store: store, Digests: true, Remember: remember})
			if err != nil {
				b.Fatal(err)
			}
			a := newAuthenticator(b, authn.Config{Delegations: tokens})
			res, _ := a.Delegation(b.Context(), http.MethodGet, request("op=GETDELEGATIONTOKEN&user.name=alice"))
			authenticate(b, a, request("eek_op=decrypt&delegation="+url.QueryEscape(res.Token)))
		})
	}
}

func authenticate(b *testing.B, a *authn.Authenticator, r authn.Request) {
	b.ReportAllocs()
	for b.Loop() {
		if res := a.Authenticate(b.Context(), r); res.Principal == nil {
			b.Fatal(res.Refusal)
		}
	}
}
